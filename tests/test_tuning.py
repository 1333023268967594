"""What `tune` stores: read back as it was written, refused otherwise, applied when weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_bench import CONFIG

from tmac_llm import kernels, machine, tuning
from tmac_llm.errors import StoreError
from tmac_llm.kernels import Matrix, MatrixShape, Tuning
from tmac_llm.load import load_decoder
from tmac_llm.model.config import ModelConfig
from tmac_llm.synthetic import SyntheticModel

SHAPE = MatrixShape(64, 128, 2, 64, True, 0.0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home."""
    monkeypatch.setenv("TMAC_HOME", str(tmp_path))
    return tmp_path


def test_choices_come_back_and_are_merged() -> None:
    assert tuning.load() == {}
    tuning.save({"a": Tuning(2048, 0), "b": Tuning(-1, 1 << 20)})
    where = tuning.save({"b": Tuning(), "c": Tuning(5, 7)})
    assert where == tuning.path()
    assert tuning.load() == {"a": Tuning(2048, 0), "b": Tuning(), "c": Tuning(5, 7)}
    assert tuning.reset()
    assert not tuning.reset()
    assert tuning.load() == {}


def test_one_file_per_cpu_instruction_set_and_version(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    own = tuning.path()
    assert own.is_relative_to(home)
    monkeypatch.setattr(machine, "cpu_name", lambda: "../../Another (TM) CPU @ 2 GHz")
    another = tuning.path()
    assert another.parent == own.parent
    assert another != own
    monkeypatch.setattr(kernels, "isa_selected", lambda: "other")
    third = tuning.path()
    monkeypatch.setattr("tmac_llm.__version__", "99")
    assert len({own, another, third, tuning.path()}) == 4


def test_keys_tell_apart_what_is_tuned_apart() -> None:
    shapes = [
        (SHAPE, "int8"),
        (SHAPE, "exact"),
        (MatrixShape(64, 128, 2, 64, False, 0.0), "int8"),
        (MatrixShape(64, 128, 2, 32, True, 0.0), "int8"),
        (MatrixShape(64, 128, 3, 64, True, 0.0), "int8"),
        (MatrixShape(128, 64, 2, 64, True, 0.0), "int8"),
        (MatrixShape(64, 128, 2, 0, False, 1.0), "exact"),
        (MatrixShape(64, 128, 2, 0, False, 1.0, "ternary"), "exact"),
    ]
    assert len({tuning.key(*shape) for shape in shapes}) == len(shapes)


GOOD = {"prefetch": 0, "panel_bytes": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 99999,
        "\x00" * 100,
        {"cpu": "another"},
        {"isa": "another"},
        {"version": "another"},
        {"choices": None},
        {"choices": []},
        {"choices": {"a": None}},
        {"choices": {"a": {"prefetch": 0}}},
        {"choices": {"a": {**GOOD, "more": 1}}},
        {"choices": {"a": {**GOOD, "prefetch": -2}}},
        {"choices": {"a": {**GOOD, "prefetch": 1 << 30}}},
        {"choices": {"a": {**GOOD, "prefetch": True}}},
        {"choices": {"a": {**GOOD, "prefetch": 1.0}}},
        {"choices": {"a": {**GOOD, "panel_bytes": "1"}}},
        {"choices": {"a": {**GOOD, "panel_bytes": -1}}},
    ],
    ids=lambda text: repr(text)[:40],
)
def test_a_damaged_file_is_refused_with_the_way_out(text: str | dict) -> None:
    where = tuning.save({"a": Tuning()})
    stored = json.loads(where.read_text())
    where.write_text(text if isinstance(text, str) else json.dumps({**stored, **text}))
    with pytest.raises(StoreError, match=r"`tmac-llm tune --reset` removes it"):
        tuning.load()
    with pytest.raises(StoreError, match="tune --reset"):
        load_decoder(SyntheticModel(ModelConfig.from_dict(CONFIG), group_size=32))
    tuning.save({"b": Tuning(1, 2)})
    assert tuning.load() == {"b": Tuning(1, 2)}


def test_a_file_that_cannot_be_read(home: Path) -> None:
    tuning.path().mkdir(parents=True)
    with pytest.raises(StoreError, match="Is a directory"):
        tuning.load()


def test_choices_are_applied_to_the_matrices_of_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SyntheticModel(ModelConfig.from_dict(CONFIG), bits=2, group_size=32)
    shape = model.shape("model.layers.0.mlp.down_proj")
    head = model.shape("lm_head")
    tuning.save({tuning.key(shape, "int8"): Tuning(-1, 4096), tuning.key(head, "exact"): Tuning(1, 1)})
    applied = []
    monkeypatch.setattr(Matrix, "tune", lambda self, choice: applied.append((self.shape, choice)))
    load_decoder(model)
    assert applied == [(shape, Tuning(-1, 4096))] * 2
