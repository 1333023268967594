"""Errors of quantised weights and tables, against what theory says of Gaussian numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tmac_llm import kernels
from tmac_llm.bench_accuracy import nmse, run
from tmac_llm.errors import KernelError

# Least mean squared error of a uniform quantiser with 2^bits levels of a Gaussian (Max, 1960).
UNIFORM = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154}


@pytest.mark.parametrize("bits", UNIFORM)
def test_quantised_weights_err_as_theory_says(bits: int) -> None:
    """A scale and a zero point for 128 weights fit them better than the best for all Gaussians."""
    result = run(512, 1024, bits)
    assert 0.55 < result.weights / UNIFORM[bits] < 0.97
    assert run(512, 1024, bits, n=64).weights == pytest.approx(result.weights, rel=0.1)
    assert result.weights < 0.95 * result.minmax
    int8 = result.tables["int8"]
    assert 0 < int8.against_stored <= 1e-4
    assert int8.against_float == pytest.approx(result.weights, rel=0.05)


def test_small_groups_and_fast_aggregation() -> None:
    small, large = run(256, 1024, 4, group_size=32), run(256, 1024, 4)
    assert small.weights < 0.8 * large.weights
    assert small.tables["int8"].against_stored < large.tables["int8"].against_stored
    assert set(large.tables) == ({"int8", "fast"} if kernels.has_fast_aggregation() else {"int8"})
    if "fast" in large.tables:
        fast, int8 = large.tables["fast"], large.tables["int8"]
        assert int8.against_stored < fast.against_stored < 7e-4


def test_ternary_is_exact() -> None:
    result = run(200, 300, None)
    assert (result.bits, result.weights, set(result.tables)) == (None, 0.0, {"exact"})
    assert result.tables["exact"].against_stored < 1e-13


def test_the_seed_decides() -> None:
    assert run(64, 128, 2, seed=3) == run(64, 128, 2, seed=3)
    assert run(64, 128, 2, seed=3) != run(64, 128, 2, seed=4)


def test_nmse() -> None:
    assert nmse(np.array([1.0, 2.0]), np.array([1.0, 3.0])) == pytest.approx(0.1)


@pytest.mark.parametrize("bits", [2, None])
def test_a_wrong_product_is_not_reported(bits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.Matrix.matmul

    def wrong(self, x, out=None, tables="int8", x_scales=None):
        y = right(self, x, out, tables, x_scales)
        y[:, 5] += y.std()
        return y

    monkeypatch.setattr(kernels.Matrix, "matmul", wrong)
    with pytest.raises(KernelError, match="kernel is wrong"):
        run(64, 128, bits)
