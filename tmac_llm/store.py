"""The local store: packed models in one directory, by name; knows how names are found, not how models run.

A model is a directory of `home() / "models"`. Its name tells source and bits: "org/model" at 2 bits is
"org--model-2bit".
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tmac_llm.errors import PackedModelError, StoreError
from tmac_llm.packed.files import CONFIG, MANIFEST, TEMPORARY, read_json, temporary_name
from tmac_llm.paths import expand_user

_ENCODING = re.compile(r"-(?:[0-9]+bit|ternary)(?:-g[0-9]+)?(?:-h[0-9]+)?(?:-sym)?(?:-gptq)?$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the store. bits: of the linear layers, 16 for float. n_bytes: of its directory.

    source: the Hub id or absolute path that it was converted from, "" where unknown.
    """

    name: str
    path: Path
    bits: int
    n_bytes: int
    source: str
    source_format: str


def home() -> Path:
    """Where everything is kept between runs: TMAC_HOME, or the user data directory of the platform.

    Raises StoreError for a user without a home directory.
    """
    try:
        path = expand_user(os.environ.get("TMAC_HOME") or platformdirs.user_data_path("tmac-llm"))
    except RuntimeError:
        raise StoreError("no home directory is known; set TMAC_HOME to the path of a directory") from None
    if str(path).startswith("~"):
        raise StoreError(f"{path}: there is no such user; set TMAC_HOME to the path of a directory")
    return path


def models_dir() -> Path:
    """Where packed models lie; need not exist."""
    return home() / "models"


def model_name(source: str, *, encoding: str) -> str:
    """The name of a model converted from a Hub id or path; encoding: such as "2bit" or "ternary"."""
    path = expand_user(source)
    if path.exists():
        path = path.resolve()
        name_of_file = path.stem if path.suffix == ".gguf" else path.parent.name
        source = name_of_file if path.is_file() else path.name
    return f"{_readable(source)}-{encoding}"


def list_models() -> list[Entry]:
    """All complete models of the store, by name."""
    return sorted(_entries(), key=lambda entry: entry.name)


def find(name: str) -> Entry:
    """The model of this exact name. Raises StoreError where there is none, with the names that there are."""
    for entry in list_models():
        if entry.name == name:
            return entry
    raise _unknown(name)


def matches(name: str) -> list[Entry]:
    """The models that `name` may mean: the one of this exact name, else those converted from it, else, for a
    name without a slash, those that contain it.

    "org/model-7b" and "model-7b" mean every "org--model-7b-<encoding>"; upper and lower case are the same.
    The path of a checkpoint means what was converted from it after its files last changed.
    """
    entries = list_models()
    path = expand_user(name)
    if path.exists():
        files = path.iterdir() if path.is_dir() else (path,)
        changed = max((file.stat().st_mtime for file in files), default=0.0)
        source = str(path.resolve())
        return [e for e in entries if e.source == source and (e.path / MANIFEST).stat().st_mtime >= changed]
    exact = [entry for entry in entries if entry.name == name]
    wanted = _readable(name).lower()
    sources = [(entry, _ENCODING.sub("", entry.name).lower()) for entry in entries]
    same = [entry for entry, source in sources if wanted in (source, source.rpartition("--")[2])]
    part = [] if "/" in name else [entry for entry in entries if wanted in entry.name.lower()]
    return exact or same or part


def resolve(name_or_path: str | Path) -> Path:
    """The directory of a packed model, given as a path or as a name that `matches` understands.

    Raises StoreError where nothing matches, or several do: then it lists them.
    """
    path = expand_user(name_or_path)
    if (path / MANIFEST).is_file():
        return path
    name = str(name_or_path)
    found = matches(name)
    if not found:
        raise _unknown(name)
    if len(found) > 1:
        several = ", ".join(entry.name for entry in found)
        raise StoreError(f"{name}: matches several models, give the name of one: {several}")
    return found[0].path


def remove(name: str) -> int:
    """Remove the model of this exact name. Returns the bytes freed; raises StoreError where there is none."""
    entry = find(name)
    # One rename makes it disappear as a whole; what a killed removal leaves has a name that convert clears.
    aside = entry.path.with_name(temporary_name(name))
    try:
        entry.path.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise StoreError(f"{entry.path}: cannot be removed: {error.strerror}") from None
    return entry.n_bytes


def _entries() -> Iterator[Entry]:
    if not models_dir().is_dir():
        return
    for path in sorted(models_dir().iterdir()):
        if TEMPORARY.fullmatch(path.name) or not (path / MANIFEST).is_file():
            continue
        try:
            config = read_json(path / CONFIG)
        except PackedModelError:
            config = {}
        quantization = config.get("quantization_config")
        facts = quantization if isinstance(quantization, dict) else {}
        n_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        bits = facts.get("bits")
        # A damaged model is listed all the same, so that it can be removed.
        yield Entry(
            name=path.name,
            path=path,
            bits=bits if isinstance(bits, int) else 0,
            n_bytes=n_bytes,
            source=str(facts.get("source", "")),
            source_format=str(facts.get("source_format", "damaged")),
        )


def _readable(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "--", source).strip(".-") or "model"


def _unknown(name: str) -> StoreError:
    names = [entry.name for entry in list_models()]
    known = f"known are {', '.join(names)}" if names else f"{models_dir()} is empty"
    return StoreError(f"{name}: no packed model of this name or path; {known}; `tmac-llm convert` makes one")
