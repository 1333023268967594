"""How a tuning is chosen: among candidates, only where it is clearly faster, never where it changes a result."""

from __future__ import annotations

import pytest
from test_bench import CONFIG

from tmac_llm import kernels, tune
from tmac_llm.errors import KernelError
from tmac_llm.kernels import Matrix, MatrixShape, Tuning
from tmac_llm.model.config import ModelConfig
from tmac_llm.synthetic import SyntheticModel, synthetic_model

SHAPE = MatrixShape(128, 256, 2, 64, True, 0.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "MEMORY_BYTES", 1)


def chosen(monkeypatch: pytest.MonkeyPatch, default: list[float], *others: list[float]) -> tune.Found:
    """What is chosen where the default and both candidates take these times, round by round."""
    monkeypatch.setattr(tune, "PREFETCH", (-1, 4096))
    monkeypatch.setattr(tune, "PANEL", (1 << 16, 1 << 20))
    times = {Tuning(): default, Tuning(-1): others[0], Tuning(4096): others[1]}
    times |= {Tuning(0, 1 << 16): others[0], Tuning(0, 1 << 20): others[1]}
    now, rounds = [Tuning()], dict.fromkeys(times, 0)

    def run(calls):
        for call in calls:
            call()
        rounds[now[0]] += 1
        return times[now[0]][(rounds[now[0]] - 1) % len(default)]

    monkeypatch.setattr(tune, "_all", run)
    monkeypatch.setattr(Matrix, "tune", lambda self, choice: now.append(choice) or now.pop(0))
    (found,) = tune.run([(SHAPE, "int8")], len(default))
    return found


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(monkeypatch, [2.0] * 5, [1.5] * 5, [1.0] * 5)
    assert found.tuning == Tuning(4096, 1 << 20)
    assert found.decode == found.prefill == (2.0, 1.0)


def test_the_default_stays_unless_one_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(monkeypatch, [1.0] * 5, [0.99] * 5, [1.2] * 5)
    assert found.tuning == Tuning()
    assert found.decode == (1.0, 1.0)
    # Faster in 3 of 5 rounds, and in the median: luck.
    assert chosen(monkeypatch, [1.0] * 5, [0.9, 0.9, 0.9, 1.3, 1.3], [2.0] * 5).tuning == Tuning()


def test_every_candidate_is_run_and_real_times_work() -> None:
    (found,) = tune.run([(SHAPE, "int8")], rounds=1)
    assert found.tuning.prefetch in (0, *tune.PREFETCH)
    assert found.tuning.panel_bytes in (0, *tune.PANEL)
    assert min(*found.decode, *found.prefill) > 0


def test_a_candidate_that_changes_a_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = Matrix.bind
    wrong = {"now": False}

    def tampered(self, x, out, tables="int8", x_scales=None):
        call = bind(self, x, out, tables, x_scales)

        def multiply():
            call()
            if wrong["now"]:
                out[0, 3] = -out[0, 3]

        return multiply

    monkeypatch.setattr(Matrix, "bind", tampered)
    monkeypatch.setattr(Matrix, "tune", lambda self, choice: wrong.update(now=choice == Tuning(-1)))
    with pytest.raises(KernelError, match="changes the result"):
        list(tune.run([(SHAPE, "int8")], rounds=1))


def test_the_shapes_of_a_model_each_once() -> None:
    model = SyntheticModel(ModelConfig.from_dict(CONFIG), bits=2, group_size=32)
    found = tune.shapes_of(model)
    assert len(found) == len(set(found)) == 5
    assert {tables for _, tables in found} == {"int8"}
    ternary = tune.shapes_of(synthetic_model("bitnet-2b-4t"))
    assert [tables for shape, tables in ternary if shape.encoding == "ternary"] == ["exact"] * 4
    assert [tables for shape, tables in ternary if shape.encoding != "ternary"] == ["int8"]


def test_thread_speeds(threads: None) -> None:
    kernels.set_threads(3)
    speeds = tune.thread_speeds(SHAPE, "int8", rounds=1)
    assert list(speeds) == [1, 2, 3]
    assert min(speeds.values()) > 0
    assert kernels.n_threads() == 3
