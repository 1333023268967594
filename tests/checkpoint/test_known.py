"""The manifests of well-known models: they parse, and their shapes give the published parameter counts."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tmac_llm.checkpoint.names import linear_shapes, vector_shapes
from tmac_llm.model.config import ModelConfig
from tmac_llm.synthetic import synthetic_model

KNOWN = Path(__file__).parents[2] / "models" / "known"
# What no published source gives.
ASSUMED = {
    "falcon-e-1b": {
        "vocab_size",
        "intermediate_size",
        "max_position_embeddings",
        "rope_theta",
        "rms_norm_eps",
    },
    "falcon-e-3b": {"vocab_size", "max_position_embeddings", "rope_theta", "rms_norm_eps"},
    "falcon3-1b-1.58": {"max_position_embeddings"},
    "falcon3-3b-1.58": {"max_position_embeddings"},
}
# As published, or added up by hand from the shapes: embedding and head once each unless tied.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "bitnet-2b-4t": 2_412_820_480,
}


def manifest(name: str) -> Any:
    return json.loads((KNOWN / f"{name}.json").read_text())


def n_parameters(config: ModelConfig) -> int:
    shapes = [*linear_shapes(config).values(), *vector_shapes(config).values()]
    n_embeddings = 1 if config.tie_word_embeddings else 2
    return sum(prod(shape) for shape in shapes) + n_embeddings * config.vocab_size * config.hidden_size


@pytest.mark.parametrize("path", sorted(KNOWN.glob("*.json")), ids=lambda path: path.stem)
def test_manifests_are_complete(path: Path) -> None:
    fields = json.loads(path.read_text())
    assert fields.keys() - {"assumed"} == {"name", "repo_id", "config", "chat", "stop_ids", "notes"}
    assert fields["name"] == path.stem
    assert fields["repo_id"].count("/") == 1
    assumed = fields.get("assumed", {})
    assert assumed.keys() == ASSUMED.get(path.stem, set())
    assert not assumed.keys() & fields["config"].keys()
    config = ModelConfig.from_dict(fields["config"] | assumed)
    assert all(0 <= i < config.vocab_size for i in fields["stop_ids"])
    assert fields["stop_ids"] or path.stem.startswith("falcon-e")
    assert fields["chat"] is None or len(fields["chat"]) > 5
    assert all(note.endswith(".") for note in fields["notes"])


@pytest.mark.parametrize("name", sorted(path.stem for path in KNOWN.glob("*.json")))
def test_every_manifest_makes_a_synthetic_model(name: str) -> None:
    assert synthetic_model(name).n_bytes > 1e8


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    assert n_parameters(ModelConfig.from_dict(manifest(name)["config"])) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "millions"), [("bitnet-large", 729), ("bitnet-3b", 3324), ("trilm-3.9b", 3990)]
)
def test_rounded_parameter_counts(name: str, millions: int) -> None:
    assert n_parameters(ModelConfig.from_dict(manifest(name)["config"])) == pytest.approx(
        millions * 1e6, rel=1e-3
    )


def test_ternary_models_have_int8_activations() -> None:
    for path in KNOWN.glob("*.json"):
        fields = manifest(path.stem)
        config = ModelConfig.from_dict(fields["config"] | fields.get("assumed", {}))
        trained = "1.58" in path.stem or path.stem.startswith(("bitnet", "falcon-e"))
        assert config.int8_activations == trained, path.stem
        assert config.sub_norms == path.stem.startswith("bitnet")
