"""Encoding of weights: stacking, schemes, chunks, and what is stored against what was given."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from tmac_llm import kernels, quantize
from tmac_llm.checkpoint import CodedRows, CodedWeight, DenseWeight, TernaryWeight
from tmac_llm.errors import KernelError
from tmac_llm.quantize import Scheme, SearchError


def dense(values: np.ndarray, bias: np.ndarray | None = None) -> DenseWeight:
    return DenseWeight(values.shape, values.dtype, lambda begin, end: values[begin:end].copy(), bias)


def ternary(values: np.ndarray, scales: np.ndarray, bias: np.ndarray | None = None) -> TernaryWeight:
    return TernaryWeight(values.shape, lambda begin, end: values[begin:end].copy(), scales, bias)


def gaussian(m: int, k: int, dtype=np.float32, seed: int = 0) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_normal((m, k))).astype(dtype)


def encode_all(weight, shape, error=None) -> np.ndarray:
    """The whole matrix, chunk by chunk."""
    parts = []
    for begin, end in quantize.chunks(weight.shape):
        parts.append(quantize.encode(weight, shape, begin, weight.rows(begin, end), error or SearchError()))
    return np.concatenate(parts)


def decode(shape, packed) -> np.ndarray:
    return kernels.dequantize_rows(shape, packed, np.arange(shape.m, dtype=np.int32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_error_reported_is_the_error_made(bits, symmetric, dtype):
    values = gaussian(100, 200, dtype)
    weight, error = dense(values), SearchError()
    shape = Scheme(bits, 64, symmetric).shape(weight)
    decoded = decode(shape, encode_all(weight, shape, error))
    exact = values.astype(np.float64)
    assert error.power == pytest.approx((exact**2).sum(), rel=1e-4)
    assert error.search == pytest.approx(((decoded - exact) ** 2).sum(), rel=1e-3)
    assert error.nmse == pytest.approx(((decoded - exact) ** 2).sum() / (exact**2).sum(), rel=2e-3)
    assert 0 <= error.gain < 1
    assert error.search <= error.minmax


# Squared error of the best uniform quantiser of a Gaussian, relative to its power (Max 1960, table II).
@pytest.mark.parametrize(("bits", "best"), [(1, 0.3634), (2, 0.1188), (3, 0.03744), (4, 0.01154)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_groups_of_their_own_beat_the_best_quantiser_of_the_whole(bits, best, symmetric):
    weight, error = dense(gaussian(64, 4096)), SearchError()
    encode_all(weight, Scheme(bits, 128, symmetric).shape(weight), error)
    assert error.nmse < best


def test_plain_min_max_is_far_worse_at_two_bits():
    weight, error = dense(gaussian(64, 4096)), SearchError()
    encode_all(weight, Scheme(2, 128).shape(weight), error)
    assert error.gain > 0.4


@pytest.mark.parametrize("bits", [1, 2, 3])  # few enough that every level occurs
def test_symmetric_levels_lie_evenly_around_zero(bits):
    weight = dense(gaussian(64, 128))
    shape = Scheme(bits, 128, True).shape(weight)
    assert not shape.has_zeros
    assert shape.zero == (2**bits - 1) / 2
    codes, scales, zeros = kernels.unpack(shape, encode_all(weight, shape))
    levels = np.unique((codes - shape.zero) * np.sign(scales))
    assert np.array_equal(levels, -levels[::-1])
    assert zeros is None


def test_groups_have_zero_points_unless_symmetric():
    shape = Scheme(4, 32).shape(dense(gaussian(3, 40)))
    assert (shape.m, shape.k, shape.bits, shape.group_size, shape.has_zeros) == (3, 40, 4, 32, True)


def test_no_error_is_known_before_anything_was_quantised():
    assert SearchError().gain is None
    assert SearchError().nmse is None


def test_weights_of_zero_have_no_error_and_no_ratio():
    weight, error = dense(np.zeros((64, 64), np.float32)), SearchError()
    shape = Scheme(2, 32).shape(weight)
    assert not decode(shape, encode_all(weight, shape, error)).any()
    assert error.gain is None
    assert error.nmse is None


@pytest.mark.parametrize("int8_activations", [False, True])
@pytest.mark.parametrize("m", [1, 63, 64, 65, 130])
def test_ternary_weights_are_stored_exactly(m, int8_activations, monkeypatch):
    monkeypatch.setattr(quantize, "CHUNK_WEIGHTS", 64 * 70)
    rng = np.random.default_rng(m)
    values = rng.integers(-1, 2, (m, 70), dtype=np.int8)
    scales = np.exp(rng.uniform(-20, 20, m)).astype(np.float32)
    weight = ternary(values, scales)
    shape = quantize.ternary_shape(weight, 128, int8_activations)
    assert shape.encoding == ("ternary" if int8_activations else "planes")
    assert np.array_equal(decode(shape, encode_all(weight, shape)), values * scales[:, None])


@pytest.mark.parametrize("group_size", [32, 64])
def test_float_weights_that_are_ternary_in_blocks_of_columns_are_stored_exactly(group_size):
    rng = np.random.default_rng(0)
    scales = np.repeat(rng.uniform(0.001, 1, (100, 3)).astype(np.float16), 64, axis=1)
    values = rng.integers(-1, 2, (100, 192)) * scales
    values[:4, :64] = [[0], [1], [-1], [1]] * np.abs(values[:4, :64])  # groups of one sign, or of zeros
    weight = dense(values.astype(np.float16))
    shape = quantize.ternary_shape(weight, group_size, True)
    assert shape.encoding == "planes"
    assert np.array_equal(decode(shape, encode_all(weight, shape)), values.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_float_rows_are_passed_through(dtype):
    values = gaussian(5, 7, dtype)
    assert quantize.encode(dense(values), None, 0, values, SearchError()) is values


@pytest.mark.parametrize(
    "shape", [(1, 1), (64, 100), (1000, 4096), (2048, 4096), (1025, 4096), (300, 1 << 22)]
)
def test_chunks_are_blocks_of_rows_that_cover_the_matrix(shape):
    ranges = list(quantize.chunks(shape))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == shape[0]
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert all((end - begin) % 64 == 0 for begin, end in ranges[:-1])
    assert all(
        (end - begin) * shape[1] <= max(quantize.CHUNK_WEIGHTS, 64 * shape[1]) for begin, end in ranges
    )


def test_chunks_do_not_change_the_result(monkeypatch):
    values = gaussian(200, 96)
    stacked = quantize.stack([dense(values[:70]), dense(values[70:75]), dense(values[75:])])
    shape = Scheme(3, 32).shape(stacked)
    whole = encode_all(dense(values), shape)
    monkeypatch.setattr(quantize, "CHUNK_WEIGHTS", 64 * 96)
    assert len(list(quantize.chunks(stacked.shape))) == 4
    assert np.array_equal(encode_all(stacked, shape), whole)


def test_stacked_rows_follow_each_other():
    values = np.arange(60, dtype=np.float32).reshape(12, 5)
    parts = [dense(values[:1]), dense(values[1:8], np.ones(7, np.float32)), dense(values[8:])]
    stacked = quantize.stack(parts)
    assert stacked.shape == (12, 5)
    assert stacked.dtype == np.float32
    assert np.array_equal(stacked.bias, [0] + [1] * 7 + [0] * 4)
    for begin in range(12):
        for end in range(begin + 1, 13):
            assert np.array_equal(stacked.rows(begin, end), values[begin:end])


def test_stacked_ternary_rows_keep_their_scales():
    values = np.array([[1, 0, -1], [0, 1, 1], [-1, -1, 0]], np.int8)
    scales = np.array([2.0, 3.0, 5.0], np.float32)
    stacked = quantize.stack([ternary(values[:1], scales[:1]), ternary(values[1:], scales[1:])])
    assert isinstance(stacked, TernaryWeight)
    assert np.array_equal(stacked.scales, scales)
    assert stacked.bias is None
    assert np.array_equal(stacked.rows(0, 3), values)


def test_what_is_encoded_differently_is_not_stacked():
    rows, scales = np.zeros((2, 3), np.int8), np.ones(2, np.float32)
    mixed = [dense(gaussian(2, 3)), ternary(rows, scales)]
    assert quantize.stack(mixed) is None
    assert quantize.stack(mixed[::-1]) is None
    assert quantize.stack([dense(gaussian(2, 3)), dense(gaussian(2, 3, np.float16))]) is None


def test_ternary_weights_as_floats():
    values = np.array([[1, 0, -1], [0, 1, 1]], np.int8)
    weight = quantize.as_dense(ternary(values, np.array([2.0, 3.0], np.float32)))
    assert weight.dtype == np.float32
    assert np.array_equal(weight.rows(0, 2), [[2, 0, -2], [0, 3, 3]])
    assert np.array_equal(weight.rows(1, 2), [[0, 3, 3]])


def coded(seed: int, m: int, zero: float | None = None, perm: np.ndarray | None = None) -> CodedWeight:
    """(m, 64) of 3 bits in groups of 32, random."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 8, (m, 64), np.uint8)
    scales = rng.uniform(0.1, 1, (m, 2)).astype(np.float16)
    zeros = None if zero is not None else rng.uniform(0, 7, (m, 2)).astype(np.float16)

    def rows(begin: int, end: int) -> CodedRows:
        points = None if zeros is None else zeros[begin:end]
        return CodedRows(codes[begin:end], scales[begin:end], points)

    return CodedWeight((m, 64), 3, 32, zero, rows, None, perm)


@pytest.mark.parametrize("zero", [None, 4.0])
def test_codes_as_floats_and_as_packed_rows(zero):
    perm = np.random.default_rng(1).permutation(64).astype(np.int32)
    weight = coded(0, 70, zero, perm)
    parts = weight.rows(0, 70)
    points = parts.zeros.astype(float) if zero is None else np.full((70, 2), zero)
    expected = np.empty((70, 64))
    for j in range(64):
        expected[:, perm[j]] = (parts.codes[:, j] - points[:, j // 32]) * parts.scales[:, j // 32]
    shape, error = quantize.coded_shape(weight), SearchError()
    np.testing.assert_allclose(quantize.as_dense(weight).rows(2, 70), expected[2:], rtol=1e-6, atol=1e-6)
    codes, scales, zeros = kernels.unpack(shape, encode_all(weight, shape, error))
    assert np.array_equal(codes, parts.codes)
    assert np.array_equal(scales, parts.scales)
    assert zeros is None if zero else np.array_equal(zeros, parts.zeros)
    assert error == SearchError()


def test_coded_weights_stack_where_they_are_coded_alike():
    perm = np.arange(64, dtype=np.int32)[::-1].copy()
    stacked = quantize.stack([coded(0, 5, perm=perm), coded(1, 6, perm=perm.copy())])
    assert np.array_equal(stacked.perm, perm)
    parts = [coded(0, 5).rows(0, 5), coded(1, 6).rows(0, 6)]
    for key in ("codes", "scales", "zeros"):
        both = np.concatenate([getattr(part, key) for part in parts])
        assert np.array_equal(getattr(stacked.rows(3, 9), key), both[3:9])
    for other in (coded(1, 6), coded(1, 6, perm=perm[::-1]), coded(1, 6, 4.0, perm)):
        assert quantize.stack([coded(0, 5, perm=perm), other]) is None


def test_weights_too_large_for_a_float16_scale():
    weight = dense(np.array([[1e30, -1e30]], np.float32))
    shape = Scheme(2, 32).shape(weight)
    with pytest.raises(KernelError):
        encode_all(weight, shape)
