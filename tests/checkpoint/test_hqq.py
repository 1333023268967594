"""HQQ tensors: vectors, round trips on both axes, and what is refused."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised import NAME, check_equal, hqq, pack_hqq, random_coded, read, write

from tmac_llm.checkpoint import DenseWeight
from tmac_llm.checkpoint.hqq import Hqq
from tmac_llm.errors import CheckpointError, UnsupportedError


def reader(path: Path, tensors: dict[str, np.ndarray], **gaps: Any) -> Hqq:
    return Hqq(write(path, tensors), [], gaps)


@pytest.mark.parametrize(("bits", "packed"), [(2, [0x2D, 0x78]), (4, [0x03, 0x12, 0x21, 0x30])])
def test_vectors(tmp_path: Path, bits: int, packed: list[int]) -> None:
    """Eight grouped rows with the codes 0, 1, 2, 3, 3, 2, 1, 0, in 8 rows of one group."""
    codes = np.repeat(np.array([[0], [1], [2], [3], [3], [2], [1], [0]], np.uint8), 32, axis=1)
    np.testing.assert_array_equal(pack_hqq(codes, bits)[:, 0], packed)
    tensors = {
        "W_q": np.repeat(np.array(packed, np.uint8)[:, None], 32, axis=1),
        "scale": np.ones((8, 1), np.float16),
        "zero": np.zeros((8, 1), np.float16),
    }
    weight = read(reader(tmp_path, tensors, nbits=bits, group_size=32), (8, 32))
    np.testing.assert_array_equal(weight.rows(0, 8).codes, codes)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trips(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([1, 2, 3, 4, 8]))
    group_size = data.draw(st.sampled_from([32, 64, 96, 128, 256]))
    n, k = data.draw(st.integers(1, 30)), group_size * data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    coded = random_coded(rng, bits, n, k, group_size)
    zeros = rng.uniform(-1, 1 << bits, coded.zeros.shape).astype(np.float16)
    tensors = hqq(coded, zeros, group_size)
    if data.draw(st.booleans()) and bits == 3:
        tensors |= {"W_q": tensors["W_q"].view(np.float32), "view_as_float": np.array(1, np.uint8)}
    with tempfile.TemporaryDirectory() as directory:
        check_equal(read(reader(Path(directory), tensors), coded.shape), coded, zeros)


@pytest.mark.parametrize(("nbits", "stored"), [(1.58, 2), (5, 8), (6, 8)])
def test_widths_that_are_stored_wider(tmp_path: Path, rng: Any, nbits: float, stored: int) -> None:
    coded = random_coded(rng, stored, 8, 64, 32)
    zeros = coded.zeros.astype(np.float16)
    weight = read(reader(tmp_path, hqq(coded, zeros, 32, nbits)), coded.shape)
    assert weight.bits == stored
    check_equal(weight, coded, zeros)


@pytest.mark.parametrize(("axis", "k"), [(0, 64), (1, 48)])
def test_groups_that_are_no_part_of_a_row_are_read_as_floats(
    tmp_path: Path, rng: Any, axis: int, k: int
) -> None:
    n, group_size = 12, 32
    shape = (n * k // group_size, group_size) if axis == 1 else (group_size, n * k // group_size)
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    per_group = (shape[0], 1) if axis == 1 else (1, shape[1])
    scales, zeros = (rng.uniform(0.1, 4, per_group).astype(np.float16) for _ in range(2))
    tensors = {"W_q": pack_hqq(codes, 4), "scale": scales, "zero": zeros}
    encoding = reader(tmp_path, tensors, nbits=4, group_size=group_size, axis=axis)
    encoding.check(NAME, (n, k))
    weight = encoding.linear(NAME, (n, k), None)
    assert isinstance(weight, DenseWeight)
    expected = ((codes - zeros.astype(np.float32)) * scales.astype(np.float32)).reshape(n, k)
    for begin, end in ((0, n), (0, 5), (5, n), (3, 4)):
        np.testing.assert_array_equal(weight.rows(begin, end), expected[begin:end])
    assert any("read as float, not kept as codes" in note for note in encoding._notes)


def test_bfloat16_zero_points_that_float16_cannot_hold_are_told(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 8, 64, 32)
    zeros = coded.zeros.astype(np.float32)
    zeros[0, 0] = 1 + 2**-12
    encoding = reader(tmp_path, hqq(coded, zeros, 32))
    read(encoding, coded.shape).rows(0, 8)
    assert encoding._notes == ["not exact: rounded to float16: zero points by up to 2.4e-04 of a step"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"W_q": np.zeros((3, 32), np.uint8)}, r"W_q is U8 \[3, 32\], expected U8 of 256 bytes"),
        ({"W_q": np.zeros((8, 32), np.int32)}, "W_q is I32"),
        ({"scale": np.ones((15, 1), np.float16)}, r"scale has shape \[15, 1\], expected \[16, 1\]"),
        ({"zero": np.ones((16,), np.float16)}, "zero has shape"),
        ({"shape": np.array([8, 65])}, r"shape is \[8, 65\], expected \[8, 64\]"),
        ({"nbits": np.array(7, np.int32)}, "nbits 7"),
        ({"nbits": np.array([4, 4], np.int32)}, r"nbits has shape \[2\]"),
        ({"nbits": np.array(np.nan, np.float32)}, "nbits is nan"),
        ({"axis": np.array(2, np.int32)}, "axis 2"),
        ({"group_size": np.array(96, np.int32)}, "do not divide into groups of 96"),
        ({"group_size": np.array(16, np.int32)}, "W_q"),
        ({"quant_scale": np.array(1, np.uint8)}, "quantised scales is not supported"),
        ({"quant_zero": np.array(1, np.uint8)}, "quantised zeros is not supported"),
    ],
)
def test_refusals(tmp_path: Path, rng: Any, change: Any, match: str) -> None:
    coded = random_coded(rng, 4, 8, 64, 32)
    tensors = {**hqq(coded, coded.zeros.astype(np.float16), 32), **change}
    with pytest.raises(CheckpointError, match=match):
        read(reader(tmp_path, tensors), coded.shape)


def test_groups_too_small_for_the_kernels(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 8, 64, 16)
    encoding = reader(tmp_path, hqq(coded, coded.zeros.astype(np.float16), 16))
    with pytest.raises(UnsupportedError, match="groups of 16 columns are not supported"):
        read(encoding, coded.shape)
