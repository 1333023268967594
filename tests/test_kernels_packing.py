"""Packing and quantising through the kernel wall, against numpy."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_parts import GROUP_SIZES, Array, dequantized, parts

from tmac_llm import kernels
from tmac_llm.errors import KernelError
from tmac_llm.kernels import Matrix, MatrixShape
from tmac_llm.packed import tiles as reference

shapes = st.builds(
    MatrixShape,
    m=st.integers(1, 140),
    k=st.integers(1, 300),
    bits=st.integers(1, 8),
    group_size=st.sampled_from(GROUP_SIZES),
    has_zeros=st.booleans(),
    zero=st.floats(0, 255, width=32),
)


# ---- packing ---------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**32))
def test_pack_equals_the_reference_and_unpack_inverts_it(shape: MatrixShape, seed: int) -> None:
    codes, scales, zeros = parts(shape, np.random.default_rng(seed))
    tiles = kernels.pack(shape, codes, scales, zeros)
    np.testing.assert_array_equal(tiles, reference.pack(shape, codes, scales, zeros))
    unpacked = kernels.unpack(shape, tiles)
    np.testing.assert_array_equal(unpacked[0], codes)
    np.testing.assert_array_equal(unpacked[1], scales)
    assert (unpacked[2] is None) == (zeros is None)
    if zeros is not None:
        np.testing.assert_array_equal(unpacked[2], zeros)


def test_literal_bytes() -> None:
    """3 bits, 2 rows, 20 columns: row 0 = 0..7 0..7 0 1 2 3, row 1 all 7."""
    shape = MatrixShape(2, 20, 3, 32, False, 4.0)
    codes = np.array([[c % 8 for c in range(20)], [7] * 20], np.uint8)
    tiles = kernels.pack(shape, codes, np.array([[1.0], [-2.0]], np.float16))
    assert len(tiles) == 4 * (3 * 256 + 128)
    # vector 0, quad 0: low nibble bit 0 of columns 0..3 = 0 1 0 1 -> 0xa, high nibble bit 1 = 0 0 1 1 -> 0xc
    assert tiles[:8].tobytes().hex() == "cacacaca" + "ffffffff"
    # vector 1, quad 1: columns 16..19 only
    assert tiles[256:264].tobytes().hex() == "ca000000" + "ff000000"
    # vector 2, bit 2: low nibble quad 0 (columns 4..7 have it), high nibble quad 1 (row 1: column group 0)
    assert tiles[512:520].tobytes().hex() == "000f000f" + "ff0f0f0f"
    # group tail: float16 1.0, -2.0, then padding
    assert tiles[768:774].tobytes().hex() == "003c" + "00c0" + "0000"
    assert not tiles[774:896].any()


@settings(max_examples=60, deadline=None)
@given(shape=shapes, data=st.data())
def test_dequantize_rows(shape: MatrixShape, data: st.DataObject) -> None:
    made = parts(shape, np.random.default_rng(3))
    rows = np.array(data.draw(st.lists(st.integers(0, shape.m - 1), max_size=5)), np.int32)
    out = kernels.dequantize_rows(shape, kernels.pack(shape, *made), rows)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, dequantized(shape, *made)[rows], rtol=1e-6, atol=1e-5)


def test_pack_rows_writes_its_blocks_only(rng: np.random.Generator) -> None:
    shape = MatrixShape(150, 70, 4, 32, True, 0)
    codes, scales, zeros = parts(shape, rng)
    assert zeros is not None
    whole, out = kernels.pack(shape, codes, scales, zeros), np.full(shape.packed_size, 0xAA, np.uint8)
    block = shape.packed_size // 3
    kernels.pack_rows(shape, 64, codes[64:128], scales[64:128], zeros[64:128], out)
    np.testing.assert_array_equal(out[block : 2 * block], whole[block : 2 * block])
    assert (out[:block] == 0xAA).all()
    assert (out[2 * block :] == 0xAA).all()
    last = np.empty(block, np.uint8)
    kernels.pack_rows(shape, 128, codes[128:], scales[128:], zeros[128:], last)
    np.testing.assert_array_equal(last, whole[2 * block :])


@pytest.mark.parametrize(
    "change",
    [
        {"m": 0},
        {"k": 0},
        {"k": 65537},
        {"bits": 0},
        {"bits": 9},
        {"group_size": 16},
        {"m": 2**31},
        {"zero": np.nan},
    ],
)
def test_impossible_shapes(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"m": 4, "k": 4, "bits": 2, "group_size": 32, "has_zeros": False, "zero": 0.0}
    with pytest.raises(KernelError, match=r"expected m >= 1, k 1\.\.65536"):
        MatrixShape(**{**fields, **change})


@pytest.mark.parametrize(
    "change", [{"bits": 3}, {"group_size": 32}, {"has_zeros": True}, {"zero": 0.0}, {"encoding": "trits"}]
)
def test_impossible_ternary_shapes(change: dict[str, Any]) -> None:
    shape = MatrixShape(4, 4, 2, 0, False, 1.0, "ternary")
    with pytest.raises(KernelError, match="ternary"):
        replace(shape, **change)


def test_ternary_codes_are_below_3() -> None:
    shape = MatrixShape(2, 7, 2, 0, False, 1.0, "ternary")
    codes = np.full((2, 7), 2, np.uint8)
    codes[1, 6] = 3
    with pytest.raises(KernelError, match="found code 3, expected codes 0, 1, 2"):
        kernels.pack(shape, codes, np.ones(2, np.float32))


def test_pack_refuses(rng: np.random.Generator) -> None:
    shape = MatrixShape(70, 40, 2, 32, True, 0)
    codes, scales, zeros = parts(shape, rng)
    assert zeros is not None
    for wrong, message in (
        ((codes[:, :39], scales, zeros), r"codes: expected uint8 \(70, 40\), found uint8 \(70, 39\)"),
        ((codes.astype(np.int32), scales, zeros), r"codes: expected uint8 \(70, 40\), found int32"),
        ((np.asfortranarray(codes), scales, zeros), "C order"),
        ((codes, scales.astype(np.float32), zeros), "scales: expected float16"),
        ((codes, scales, None), "zeros: expected a numpy array"),
        ((codes + np.uint8(4), scales, zeros), r"found code 7, expected codes below 2\^2"),
    ):
        with pytest.raises(KernelError, match=message):
            kernels.pack(shape, *wrong)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=r"rows 1 \.\. 71 of 70"):
        kernels.pack_rows(shape, 1, codes, scales, zeros, np.empty(shape.packed_size, np.uint8))
    tiles = kernels.pack(shape, codes, scales, zeros)
    with pytest.raises(KernelError, match="tiles: expected uint8"):
        kernels.unpack(shape, tiles[:-1])
    with pytest.raises(KernelError, match="tiles: expected uint8"):
        Matrix(shape, tiles[1:])
    with pytest.raises(KernelError, match=r"rows 0 .. 70, expected 0 .. 69"):
        kernels.dequantize_rows(shape, tiles, np.array([0, 70], np.int32))


# ---- quantising ------------------------------------------------------------------------------------------


def affine_brute_force(w: Array, top: int) -> float:
    """Least squared error of groups (n, columns) over a grid of widths and centres, each best fitted."""
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    best = np.full(len(w), np.inf)
    centred = w - w.mean(1, keepdims=True)
    for width in np.linspace(0.25, 1.05, 81):
        for shift in np.linspace(-0.25, 0.25, 11):
            scale = (high - low) * width / top
            q = np.clip(np.rint((w - (low + high) / 2 - shift * (high - low)) / scale + top / 2), 0, top)
            q -= q.mean(1, keepdims=True)
            square = (q * q).sum(1)
            explained = np.divide((q * centred).sum(1) ** 2, square, out=np.zeros(len(w)), where=square > 0)
            best = np.minimum(best, (centred**2).sum(1) - explained)
    return float(best.sum())


@pytest.mark.parametrize("columns", [128, 37])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("draw", ["normal", "laplace", "gumbel"])
def test_search_is_near_brute_force(bits: int, draw: str, columns: int, rng: np.random.Generator) -> None:
    """At most 4 % above the grid's error (measured: 1 %), and well below min-max; also for a short last group."""
    w = getattr(rng, draw)(size=(40, columns)).astype(np.float32)
    found = kernels.quantize(w, bits, 128, zeros=True)
    assert found.zeros is not None
    shape = MatrixShape(40, columns, bits, 128, True, 0)
    error = ((w - dequantized(shape, found.codes, found.scales, found.zeros)) ** 2).sum()
    assert error == pytest.approx(found.error_search, rel=1e-4)
    assert found.power == pytest.approx(float((w.astype(np.float64) ** 2).sum()), rel=1e-5)
    assert error <= 1.04 * affine_brute_force(w.astype(np.float64), 2**bits - 1)
    assert found.error_search <= {1: 0.4, 2: 0.65, 3: 0.8, 4: 0.9}[bits] * found.error_minmax


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_search_with_many_codes(bits: int, rng: np.random.Generator) -> None:
    """About a tenth less error than min-max rounding."""
    w = rng.normal(size=(64, 512)).astype(np.float32)
    found = kernels.quantize(w, bits, 128, zeros=True)
    assert found.zeros is not None
    shape = MatrixShape(64, 512, bits, 128, True, 0)
    error = ((w - dequantized(shape, found.codes, found.scales, found.zeros)) ** 2).sum()
    assert error == pytest.approx(found.error_search, rel=1e-3)
    assert found.error_search <= 0.92 * found.error_minmax


def test_error_minmax_is_that_of_min_max_rounding(rng: np.random.Generator) -> None:
    w = rng.normal(size=(8, 96)).astype(np.float32)
    groups = w.reshape(-1, 32).astype(np.float64)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    scale = ((high - low) / 7).astype(np.float16).astype(np.float64)
    zero = (-7 * low / (high - low)).astype(np.float16).astype(np.float64)
    plain = (np.clip(np.rint(groups / scale + zero), 0, 7) - zero) * scale
    found = kernels.quantize(w, 3, 32, zeros=True)
    assert found.error_minmax == pytest.approx(float(((groups - plain) ** 2).sum()), rel=1e-3)


def test_quantize_takes_every_float_type(rng: np.random.Generator) -> None:
    brain = rng.normal(size=(5, 70)).astype(np.float16).astype(ml_dtypes.bfloat16)
    found = [
        kernels.quantize(w, 2, 32, zeros=False, zero=1.5)
        for w in (brain, brain.view(np.uint16), brain.astype(np.float32), brain.astype(np.float16))
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.codes, found[0].codes)
        np.testing.assert_array_equal(other.scales, found[0].scales)


@pytest.mark.usefixtures("threads")
def test_quantize_does_not_depend_on_threads(rng: np.random.Generator) -> None:
    w = rng.normal(size=(33, 200)).astype(np.float32)
    found = []
    for n in (1, 2, 5):
        kernels.set_threads(n)
        found.append(kernels.quantize(w, 2, 64, zeros=True))
    for other in found[1:]:
        np.testing.assert_array_equal(other.codes, found[0].codes)
        assert other[3:] == found[0][3:]


def test_quantize_refuses(rng: np.random.Generator) -> None:
    w = rng.normal(size=(4, 64)).astype(np.float32)
    with pytest.raises(KernelError, match="found float64"):
        kernels.quantize(w.astype(np.float64), 2, 32, zeros=True)
    with pytest.raises(KernelError, match="group_size 0"):
        kernels.quantize(w, 2, 0, zeros=True)
    w[2, 3] = np.inf
    with pytest.raises(KernelError, match="quantize: NaN or infinity"):
        kernels.quantize(w, 2, 32, zeros=True)
    w[2, 3] = 1e30
    with pytest.raises(KernelError, match="too large for a float16 scale"):
        kernels.quantize(w, 2, 32, zeros=True)
