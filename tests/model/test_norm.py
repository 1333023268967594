"""RMSNorm against double precision, for one token and many."""

import numpy as np
import pytest

from tmac_llm.model.norm import RMSNorm


def expected(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


@pytest.mark.parametrize("shape", [(1, 96), (2, 96), (50, 96), (1, 4, 24), (40, 4, 24), (1, 1), (1, 6912)])
def test_norm_over_the_last_axis(shape):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape, np.float32), rng.standard_normal(shape[-1], np.float32)
    out = np.full(shape, np.nan, np.float32)
    RMSNorm(weight, 1e-2).bind(x, out)()
    np.testing.assert_allclose(out, expected(x, weight, 1e-2), rtol=2e-6, atol=1e-7)


def test_in_place_and_tokens_are_independent():
    rng = np.random.default_rng(1)
    norm = RMSNorm(rng.standard_normal(64, np.float32), 1e-5)
    x = rng.standard_normal((37, 64), np.float32)
    alone = np.concatenate([_applied(norm, x[t : t + 1]) for t in range(37)])
    norm.bind(x, x)()
    np.testing.assert_array_equal(x, alone)


@pytest.mark.parametrize("n", [1, 3, 70])
def test_norm_of_two_kinds_of_heads_side_by_side(n):
    rng = np.random.default_rng(2)
    x, (q, k) = rng.standard_normal((n, 5, 24), np.float32), rng.standard_normal((2, 24), np.float32)
    both = RMSNorm.of_heads([(q, 3), (k, 2)], 1e-5)
    out = np.full(x.shape, np.nan, np.float32)
    both.bind(x, out)()
    np.testing.assert_array_equal(out[:, :3], _applied(RMSNorm(q, 1e-5), np.ascontiguousarray(x[:, :3])))
    np.testing.assert_array_equal(out[:, 3:], _applied(RMSNorm(k, 1e-5), np.ascontiguousarray(x[:, 3:])))


def test_zeros_give_zeros_and_eps_is_inside_the_root():
    norm = RMSNorm(np.ones(8, np.float32), 1e-4)
    assert not _applied(norm, np.zeros((1, 8), np.float32)).any()
    small = np.full((1, 8), 1e-2, np.float32)
    np.testing.assert_allclose(_applied(norm, small), 1e-2 / np.sqrt(2e-4), rtol=1e-6)


def _applied(norm: RMSNorm, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    norm.bind(x, out)()
    return out
