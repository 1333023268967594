"""Blocks of GGUF tensors: codes, scales and zero points against the values that the gguf package decodes."""

import math
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import TYPES, pack_i2_s, random_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from tmac_llm.checkpoint.gguf import blocks
from tmac_llm.checkpoint.gguf.types import TYPES as OURS


def quantised(kind: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, the values they stand for), both by the package."""
    stored = gguf.quants.quantize(values.astype(np.float32), TYPES[kind])
    return stored, gguf.quants.dequantize(stored, TYPES[kind])


def spread(per_group: np.ndarray, size: int = 32) -> np.ndarray:
    return np.repeat(per_group.astype(np.float32), size, axis=1)


def test_sizes_are_those_of_the_package() -> None:
    theirs = {int(t): size for t, size in gguf.GGML_QUANT_SIZES.items()}
    for number, block in OURS.items():
        if block.name == "I2_S":
            continue
        assert (block.n_values, block.n_bytes) == theirs[number], block
        assert gguf.GGMLQuantizationType(number).name == block.name


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["Q4_0", "Q5_0", "Q8_0"]), st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**32))
def test_types_without_minima_are_exact(kind: str, m: int, n_blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    stored, expected = quantised(kind, rng.standard_normal((m, 32 * n_blocks)) * 10.0 ** rng.integers(-3, 3))
    decode, zero = blocks.GROUPED[kind]
    grouped = decode(stored)
    assert grouped.minima is None
    assert (grouped.scales.astype(np.float16) == grouped.scales).all()
    found = (grouped.codes.astype(np.float32) - zero) * spread(grouped.scales)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["Q4_1", "Q5_1", "Q4_K", "Q5_K"]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_types_with_minima(kind: str, m: int, n_blocks: int, seed: int) -> None:
    """Codes are exact; the stated error is what rounding scales and zero points changes."""
    rng = np.random.default_rng(seed)
    if kind.endswith("_K"):
        stored = random_blocks(kind, (m, 256 * n_blocks), rng, 0.01)
        expected = gguf.quants.dequantize(stored, TYPES[kind])
    else:
        offset = rng.uniform(-3, 3)
        stored, expected = quantised(kind, rng.standard_normal((m, 256 * n_blocks)) + offset)
    grouped = blocks.GROUPED[kind][0](stored)
    assert grouped.minima is not None
    values = spread(grouped.scales) * grouped.codes + spread(grouped.minima)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)
    codes, scales, zeros, error = blocks.to_zero_points(grouped)
    assert scales.dtype == zeros.dtype == np.float16
    found = (codes - spread(zeros)) * spread(scales)
    np.testing.assert_allclose(found - values, error, rtol=1e-3, atol=1e-6)
    # half a unit of float16 in a scale, and in a zero point below 64
    bound = spread(np.abs(scales)) * (2**-11 * np.abs(codes - spread(zeros)) + 2**-6) + 1e-6
    assert (np.abs(error) <= bound).all()


@pytest.mark.parametrize("minimum", [0.0, 1.5, -2.0])
def test_groups_of_one_value_have_no_scale(minimum: float) -> None:
    stored, expected = quantised("Q4_1", np.full((2, 32), minimum))
    codes, scales, zeros, error = blocks.to_zero_points(blocks.GROUPED["Q4_1"][0](stored))
    np.testing.assert_array_equal((codes - spread(zeros)) * spread(scales), expected)
    assert not error.any()


def test_a_scale_that_vanishes_beside_the_minimum() -> None:
    values = np.full((1, 32), 30000.0)
    values[0, 1] = 30001.0
    grouped = blocks.GROUPED["Q4_1"][0](quantised("Q4_1", values)[0])
    grouped.codes[:] = 7  # whatever the file has
    codes, scales, zeros, error = blocks.to_zero_points(grouped)
    found = (codes - spread(zeros)) * spread(scales)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, 30000, rtol=1e-3)
    exact = 7 * grouped.scales[0, 0] + grouped.minima[0, 0]
    np.testing.assert_allclose(error, found - exact, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["TQ1_0", "TQ2_0"]), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32))
def test_ternary_types(kind: str, m: int, n_blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-1, 2, (m, 256 * n_blocks)) * np.repeat(
        rng.uniform(0.1, 2, (m, n_blocks)), 256, axis=1
    )
    stored, expected = quantised(kind, values)
    codes = blocks.ternary_codes(kind, stored)
    scales = blocks.ternary_scales(kind, stored)
    assert codes.max() <= 2
    np.testing.assert_array_equal((codes - np.float32(1)) * spread(scales, 256), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32))
def test_round_trips_of_i2_s(m: int, k: int, seed: int) -> None:
    """Over shapes of which only the product is a multiple of 128."""
    k *= 128 // math.gcd(m, 128)
    ternary = np.random.default_rng(seed).integers(-1, 2, (m, k))
    packed = pack_i2_s(ternary, 0.5)
    assert packed.size == m * k // 4 + 32
    np.testing.assert_array_equal(blocks.i2_s_codes(packed[:-32]).reshape(m, k), ternary + 1)


def test_i2_s_vector() -> None:
    """Of 128 values the first 32 are in bits 7:6."""
    packed = np.zeros(32, np.uint8)
    packed[0] = 0b10_01_00_11
    codes = blocks.i2_s_codes(packed)
    assert [codes[i] for i in (0, 32, 64, 96)] == [2, 1, 0, 3]
    assert not codes[1:32].any()


def test_the_vector_of_q4_0() -> None:
    """A block written by hand: scale 0.5, value j in the low nibble of byte j, j + 16 in the high one."""
    block = np.concatenate([np.array([0.5], np.float16).view(np.uint8), np.arange(16, dtype=np.uint8) << 4])
    grouped: Any = blocks.GROUPED["Q4_0"][0](block[None])
    np.testing.assert_array_equal(grouped.codes[0], [0] * 16 + list(range(16)))
    assert grouped.scales.tolist() == [[0.5]]
