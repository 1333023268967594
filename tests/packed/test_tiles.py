"""The packed layout: its drawing, its geometry in C and Python, and packing against the numpy reference."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmac_llm import kernels
from tmac_llm.kernels import MatrixShape
from tmac_llm.packed import tiles

HEADER = Path(__file__).parents[2] / "csrc" / "include" / "tmac.h"


@st.composite
def ternary_matrices(draw):
    """The same of the ternary encoding."""
    shape = MatrixShape(draw(st.integers(1, 140)), draw(st.integers(1, 100)), 2, 0, False, 1.0, "ternary")
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 3, (shape.m, shape.k), dtype=np.uint8)
    return shape, codes, rng.standard_normal(shape.m).astype(np.float32), None


@st.composite
def matrices(draw):
    """(shape, codes, scales, zeros) with tails of every kind."""
    if draw(st.booleans()) and draw(st.booleans()):
        return draw(ternary_matrices())
    group_size = draw(st.sampled_from(tiles.GROUP_SIZES))
    m, k = draw(st.integers(1, 140)), draw(st.integers(1, 300))
    has_zeros = draw(st.booleans())
    shape = MatrixShape(m, k, draw(st.integers(1, 8)), group_size, has_zeros, 0.0 if has_zeros else 1.5)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 1 << shape.bits, (m, k), dtype=np.uint8)
    scales = rng.standard_normal(shape.scales_shape).astype(tiles.scale_dtype(shape))
    zeros = rng.standard_normal(shape.scales_shape).astype(scales.dtype) if has_zeros else None
    return shape, codes, scales, zeros


def test_geometry_is_that_of_the_header():
    stated = dict(re.findall(r"TMAC_([A-Z_]+) = (-?\d+)", HEADER.read_text()))
    for name in ("LAYOUT_VERSION", "ROWS_PER_BLOCK", "ROWS_PER_TILE", "COLUMNS_PER_STEP"):
        assert getattr(tiles, name) == int(stated[name])
    for name in ("COLUMN_ALIGNMENT", "MAX_BITS", "MAX_COLUMNS"):
        assert getattr(tiles, name) == int(stated[name])


def test_bytes_of_a_matrix_of_4_by_8():
    """The example of the module's docstring, byte by byte: everything else is padding and scales."""
    shape = MatrixShape(4, 8, 2, 0, False, 1.0)
    codes = np.zeros((4, 8), np.uint8)
    codes[1] = [3, 2, 1, 0, 3, 2, 1, 0]
    scales = np.array([1, 2, 3, 4], np.float32)
    expected = np.zeros(2304, np.uint8)
    expected[4:6] = 0x35  # row 1, k-groups 0 and 1: low nibble 0101 is plane 0, high nibble 0011 is plane 1
    expected[2048:2064] = np.frombuffer(b"\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40", np.uint8)
    assert np.array_equal(kernels.pack(shape, codes, scales), expected)
    assert np.array_equal(tiles.pack(shape, codes, scales, None), expected)


def test_ternary_bytes():
    """Five codes of a row in one byte, sign and magnitude; 1.6 bits per weight, whole steps of 30 columns."""
    shape = MatrixShape(2, 33, 2, 0, False, 1.0, "ternary")
    codes = np.ones((2, 33), np.uint8)
    codes[0, :5], codes[1, :5] = 2, 0
    codes[0, 5:7] = 2, 0  # the example of the module's docstring
    codes[1, 32] = 2  # third code of the first byte of step 1
    expected = np.zeros(2 * 384 + 256, np.uint8)
    expected[[0, 1, 64, 384 + 1]] = 121, 0x80 | 121, 0x82, 9
    expected[768:776] = np.frombuffer(b"\0\0\x80\x3f\0\0\0\xc0", np.uint8)
    scales = np.array([1, -2], np.float32)
    assert np.array_equal(kernels.pack(shape, codes, scales), expected)
    assert np.array_equal(tiles.pack(shape, codes, scales, None), expected)
    assert MatrixShape(6400, 3000, 2, 0, False, 1.0, "ternary").packed_size == 6400 * (3000 // 5 + 4)
    outside = expected.copy()
    outside[[0, 1, 64]] = 122, 0xFF, 0x80  # no value of five codes, and minus zero: all are zeros
    for unpack in (kernels.unpack, tiles.unpack):
        found = unpack(shape, outside)[0]
        assert (found[:, :10] == 1).all()
        assert found[1, 32] == 2
    assert np.array_equal(
        tiles.unpack(MatrixShape(1, 1215, 2, 0, False, 1.0, "ternary"), all_values())[0], digits()
    )


def all_values():
    """One row: every value of five codes in one byte each."""
    rows = np.zeros((246 // 6 * 6, 64), np.uint8)
    rows[:243, 0] = tiles.TERNARY_BYTES
    return np.concatenate([rows.reshape(-1), np.zeros(256, np.uint8)])


def digits():
    return np.array([[v // 3**j % 3 for v in range(243) for j in range(5)]], np.uint8)


def test_bytes_of_the_last_plane_of_odd_bits():
    """3 bits, 32 columns: plane 2 has a vector of its own, quad 0 low and quad 1 high."""
    shape = MatrixShape(1, 32, 3, 32, True, 0.0)
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 0] = 0b100  # quad 0, k-group 0, first column
    codes[0, 31] = 0b110  # quad 1, k-group 3, last column
    packed = kernels.pack(shape, codes, np.array([[1.0]], np.float16), np.array([[2.0]], np.float16))
    step = packed[: 3 * 256]
    found = {int(i): int(step[i]) for i in np.nonzero(step)[0]}
    assert found == {
        256 + 3: 0b1000 << 4,  # vector 1 is quad 1: plane 1 high, column 3 of k-group 3
        512 + 0: 0b0001,  # vector 2, low: plane 2 of quad 0
        512 + 3: 0b1000 << 4,  # vector 2, high: plane 2 of quad 1
    }
    tail = packed[3 * 256 :][: 2 * 128].view(np.float16)
    assert (tail[0], tail[64]) == (1, 2)


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_unpack_is_the_inverse_of_pack_and_both_are_the_reference(matrix):
    shape, codes, scales, zeros = matrix
    packed = kernels.pack(shape, codes, scales, zeros)
    assert packed.size == shape.packed_size == tiles.packed_size(shape)
    assert np.array_equal(packed, tiles.pack(shape, codes, scales, zeros))
    for found in (kernels.unpack(shape, packed), tiles.unpack(shape, packed)):
        assert np.array_equal(found[0], codes)
        assert np.array_equal(found[1], scales)
        assert found[2] is None if zeros is None else np.array_equal(found[2], zeros)


@settings(max_examples=20, deadline=None)
@given(matrices())
def test_packing_in_chunks_of_rows_gives_the_same_bytes(matrix):
    shape, codes, scales, zeros = matrix
    whole, parts = kernels.pack(shape, codes, scales, zeros), []
    for begin in range(0, shape.m, 64):
        rows = slice(begin, min(begin + 64, shape.m))
        part = replace(shape, m=rows.stop - begin)
        parts.append(kernels.pack(part, codes[rows], scales[rows], None if zeros is None else zeros[rows]))
    assert np.array_equal(np.concatenate(parts), whole)


@settings(max_examples=30, deadline=None)
@given(matrices())
def test_tails_are_the_scales_and_zeros(matrix):
    shape, codes, scales, zeros = matrix
    packed = tiles.pack(shape, codes, scales, zeros)
    tails = tiles.tails(shape, packed)
    assert np.isfinite(tails).all()
    tails[..., :] = np.nan
    _, *found = tiles.unpack(shape, packed)
    assert all(np.isnan(values).all() for values in found if values is not None)
    assert np.array_equal(tiles.unpack(shape, packed)[0], codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group_size", tiles.GROUP_SIZES)
def test_blocks_keep_the_alignment_of_scales(bits, group_size):
    for has_zeros in (False, True):
        assert tiles.block_bytes(MatrixShape(70, 200, bits, group_size, has_zeros, 0.0)) % 128 == 0
