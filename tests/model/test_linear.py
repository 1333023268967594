"""Every way to store a linear layer gives the same product; BitNet's rounding follows its recipe."""

import ml_dtypes
import numpy as np
import pytest

from tmac_llm import kernels
from tmac_llm.kernels import Matrix, MatrixShape
from tmac_llm.model import linear as module
from tmac_llm.model.embedding import DenseEmbedding, PackedEmbedding
from tmac_llm.model.linear import DenseLinear, LutLinear, PermutedLinear, SplitLinear, round_to_int8


def ternary(m: int, k: int, seed: int = 0) -> tuple[Matrix, np.ndarray]:
    """A packed ternary matrix and its float64 weights."""
    rng = np.random.default_rng(seed)
    codes, scales = rng.integers(0, 3, (m, k), np.uint8), rng.uniform(0.5, 2, m).astype(np.float32)
    shape = MatrixShape(m, k, 2, 0, False, 1.0)
    return Matrix(shape, kernels.pack(shape, codes, scales)), (codes - 1.0) * scales[:, None]


def recipe(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """BitNet's integer recipe in double precision."""
    s = 127 / np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-5))
    return np.rint((x * s).astype(np.float32)).astype(np.float64) @ weights.T / s


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("n", [1, 5])
def test_dense(dtype, n):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((37, 50)).astype(dtype), rng.standard_normal(37, np.float32)
    x = rng.standard_normal((n, 50), np.float32)
    out = DenseLinear(weight, bias)(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, x @ weight.astype(np.float64).T + bias, rtol=1e-5, atol=1e-5)


def test_dense_portions_and_threads_do_not_change_a_bit(monkeypatch):
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((300, 40), np.float32), rng.standard_normal((3, 40), np.float32)
    monkeypatch.setattr(module, "_DENSE_PORTION", 64 * 40)
    before, results = kernels.n_threads(), []
    try:
        for n_threads in (1, 3):
            kernels.set_threads(n_threads)
            results.append(DenseLinear(weight)(x))
    finally:
        kernels.set_threads(before)
    np.testing.assert_array_equal(*results)
    np.testing.assert_allclose(results[0], x @ weight.astype(np.float64).T, rtol=1e-5, atol=1e-5)


def test_lut_exact_equals_the_recipe_and_dense_with_int8_activations():
    matrix, weights = ternary(70, 96)
    rng = np.random.default_rng(1)
    x, bias = rng.standard_normal((4, 96), np.float32), rng.standard_normal(70, np.float32)
    expected = recipe(x, weights) + bias
    np.testing.assert_allclose(LutLinear(matrix, bias, "exact")(x), expected, rtol=1e-5, atol=1e-5)
    dense = DenseLinear(weights.astype(np.float32), bias, int8_activations=True)
    np.testing.assert_allclose(dense(x), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(DenseLinear(weights.astype(np.float32), bias)(x) - expected).max() > 1e-2


def test_a_bound_linear_reads_and_writes_its_arrays_anew():
    matrix, weights = ternary(70, 96)
    linear = LutLinear(matrix, tables="exact")
    x, out = np.zeros((1, 96), np.float32), np.empty((1, 70), np.float32)
    multiply = linear.bind(x, out)
    for seed in range(3):
        x[:] = np.random.default_rng(seed).standard_normal(96)
        multiply()
        np.testing.assert_allclose(out, recipe(x, weights), rtol=1e-5, atol=1e-5)
    other = np.ones((2, 96), np.float32)
    np.testing.assert_allclose(linear(other), recipe(other, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_split_puts_parts_side_by_side(n):
    first, w1 = ternary(70, 96, 1)
    third, w3 = ternary(5, 96, 3)
    w2 = np.random.default_rng(2).standard_normal((33, 96)).astype(np.float32)
    parts = [LutLinear(first, tables="exact"), DenseLinear(w2), LutLinear(third, tables="exact")]
    linear = SplitLinear(parts)
    assert (linear.m, linear.k) == (108, 96)
    out = np.full((n, 108), np.nan, np.float32)
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((n, 96), np.float32)
        linear(x, out)
        expected = np.concatenate([recipe(x, w1), x @ w2.T.astype(np.float64), recipe(x, w3)], axis=1)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=2e-5)


def test_rounding_to_int8():
    x = np.array([[0.5, -1.0, 0.25], [0, 0, 0], [1e-7, -2e-7, 0]], np.float32)
    q, scales = round_to_int8(x)
    np.testing.assert_array_equal(q, [[64, -127, 32], [0, 0, 0], [1, -3, 0]])
    np.testing.assert_allclose(scales[:, 0], [127, 127e5, 127e5], rtol=1e-6)


@pytest.mark.parametrize("ids", [[0], [3, 0, 9, 3]])
def test_embeddings(ids):
    rng = np.random.default_rng(0)
    shape = MatrixShape(10, 40, 4, 32, False, 7.5)
    codes, scales = rng.integers(0, 16, (10, 40), np.uint8), rng.uniform(0.5, 1, (10, 2)).astype(np.float16)
    weights = (codes - 7.5) * scales.astype(np.float64)[:, np.arange(40) // 32]
    out = np.full((len(ids), 40), np.nan, np.float32)
    PackedEmbedding(shape, kernels.pack(shape, codes, scales))(np.array(ids), out)
    np.testing.assert_allclose(out, weights[ids], rtol=1e-6)
    dense = weights.astype(ml_dtypes.bfloat16)
    DenseEmbedding(dense)(np.array(ids), out)
    np.testing.assert_array_equal(out, dense[ids].astype(np.float32))


@pytest.mark.parametrize("bias", [False, True])
def test_permuted_columns(bias):
    """Decoding and prompts, rows that lie apart, given and new outputs: as the linear on permuted inputs."""
    rng = np.random.default_rng(5)
    matrix, _ = ternary(40, 96)
    perm = rng.permutation(96).astype(np.int32)
    lut = LutLinear(matrix, rng.standard_normal(40, np.float32) if bias else None)
    permuted = PermutedLinear(lut, perm)
    assert (permuted.m, permuted.k) == (40, 96)
    wide, out = rng.standard_normal((7, 200), np.float32), np.empty((1, 40), np.float32)
    for x in (wide[:, 3:99], wide[2:3, :96], wide[3:4, :96], wide[:, 100:196]):
        expected = lut(np.ascontiguousarray(x[:, perm]))
        np.testing.assert_array_equal(permuted(x), expected)
        if len(x) == 1:
            assert permuted(x, out) is out
            np.testing.assert_array_equal(out, expected)
