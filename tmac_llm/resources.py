"""The files that ship with the package: the embedded model and the manifests of well-known ones.

Knows where they lie in a wheel and in a source tree, not what they mean.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tmac_llm
from tmac_llm.errors import StoreError


class KnownModel(NamedTuple):
    """A manifest of models/known: a model that people ask for by name.

    config: the Hugging Face config fields that give its shapes, those of `assumed` included, which are not published
    and which a checkpoint says itself. chat: how messages are written, None for a base model. stop_ids: token ids that
    end an answer; empty where only the repository says. notes: what is special, and known traps.
    """

    name: str
    repo_id: str
    config: dict[str, Any]
    assumed: list[str]
    chat: str | None
    stop_ids: list[int]
    notes: list[str]


@cache
def models_dir() -> Path:
    """The models/ directory: of the source tree where there is one, else the installed copy."""
    parts = [Path(part) for part in tmac_llm.__path__]
    for folder in [part.parent / "models" for part in parts] + [part / "models" for part in parts]:
        if (folder / "known").is_dir():
            return folder
    raise StoreError("models/known is missing from this installation of tmac-llm; install it again")


def default_model() -> Path:
    """The checkpoint that `chat` runs when no model is named."""
    folder = models_dir() / "default"
    if not folder.is_dir():
        raise StoreError(f"{folder}: the embedded model is missing; install tmac-llm again, or name a model")
    return folder


def known_models() -> dict[str, KnownModel]:
    """Manifests by name."""
    models = {}
    for path in sorted((models_dir() / "known").glob("*.json")):
        fields = json.loads(path.read_text(encoding="utf-8"))
        assumed = fields.get("assumed", {})
        models[fields["name"]] = KnownModel(
            name=fields["name"],
            repo_id=fields["repo_id"],
            config=fields["config"] | assumed,
            assumed=list(assumed),
            chat=fields["chat"],
            stop_ids=fields["stop_ids"],
            notes=fields["notes"],
        )
    return models
