"""Codes and scales to packed tiles and back, checked at the border; knows no files."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm._native import lib
from tmac_llm.errors import KernelError
from tmac_llm.kernels.library import check, ensure_initialised, expect, pointer
from tmac_llm.kernels.shape import MatrixShape

Bytes = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float16] | npt.NDArray[np.float32]


def pack(shape: MatrixShape, codes: Bytes, scales: Scales, zeros: Scales | None = None) -> Bytes:
    """Pack a whole matrix.

    codes: uint8 (m, k), each below 2^bits. scales, and zeros where shape.has_zeros: float16 (m, n_groups), or
    float32 (m,) where group_size is 0. Returns uint8 (packed_size,). Raises KernelError for a wrong dtype,
    shape or code.
    """
    out = np.empty(shape.packed_size, np.uint8)
    pack_rows(shape, 0, codes, scales, zeros, out)
    return out


def pack_rows(
    shape: MatrixShape, row_begin: int, codes: Bytes, scales: Scales, zeros: Scales | None, out: Bytes
) -> None:
    """Pack the rows from row_begin (a multiple of 64) on: whole blocks of 64 rows, or up to the last row.

    Arrays as in `pack`, for these rows only. out: uint8, the bytes of these rows' blocks, or the whole matrix
    (packed_size,), of which only they are written.
    """
    n = len(codes)
    end, block = row_begin + n, lib.TMAC_ROWS_PER_BLOCK
    if n < 1 or row_begin < 0 or end > shape.m or row_begin % block or (end % block and end != shape.m):
        raise KernelError(
            f"pack: rows {row_begin} .. {end} of {shape.m}: expected whole blocks of {block}, or the last"
        )
    _check_parts("pack", shape, n, codes, scales, zeros)
    part = replace(shape, m=n).packed_size
    if len(out) == shape.packed_size:
        block_bytes = shape.packed_size // -(-shape.m // block)
        out = out[row_begin // block * block_bytes :][:part]
    expect("pack: out", out, (np.uint8,), (part,))
    if not out.flags.writeable:
        raise KernelError("pack: out: expected a writeable array")
    ensure_initialised()
    status = lib.tmac_pack(
        shape.c, row_begin, end, pointer(codes), pointer(scales), pointer(zeros), pointer(out)
    )
    if status == lib.TMAC_ERR_CODE:
        expected = "codes 0, 1, 2" if shape.encoding == "ternary" else f"codes below 2^{shape.bits}"
        raise KernelError(f"pack: found code {codes.max()}, expected {expected}")
    check(status, "pack")


def unpack(shape: MatrixShape, tiles: Bytes) -> tuple[Bytes, Scales, Scales | None]:
    """The inverse of `pack`: (codes, scales, zeros or None)."""
    expect("unpack: tiles", tiles, (np.uint8,), (shape.packed_size,))
    dtype = scale_dtype(shape)
    codes = np.empty((shape.m, shape.k), np.uint8)
    scales = np.empty(shape.scales_shape, dtype)
    zeros = np.empty(shape.scales_shape, dtype) if shape.has_zeros else None
    ensure_initialised()
    status = lib.tmac_unpack(shape.c, pointer(tiles), pointer(codes), pointer(scales), pointer(zeros))
    check(status, "unpack")
    return codes, scales, zeros


def dequantize_rows(
    shape: MatrixShape, tiles: Bytes, rows: npt.NDArray[np.int32], out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """float32 (n, k): the weights of the given rows, reading no others. rows: int32 (n,), 0 <= row < m."""
    expect("dequantize_rows: tiles", tiles, (np.uint8,), (shape.packed_size,))
    expect("dequantize_rows: rows", rows, (np.int32,), (rows.size,))
    if rows.size and (rows.min() < 0 or rows.max() >= shape.m):
        raise KernelError(f"dequantize_rows: rows {rows.min()} .. {rows.max()}, expected 0 .. {shape.m - 1}")
    if out is None:
        out = np.empty((rows.size, shape.k), np.float32)
    expect("dequantize_rows: out", out, (np.float32,), (rows.size, shape.k))
    ensure_initialised()
    status = lib.tmac_dequantize_rows(shape.c, pointer(tiles), pointer(rows), rows.size, pointer(out))
    check(status, "dequantize_rows")
    return out


def scale_dtype(shape: MatrixShape) -> type[Any]:
    """float16 for scales of groups, float32 for scales of rows."""
    return np.float16 if shape.group_size else np.float32


def _check_parts(
    what: str, shape: MatrixShape, n: int, codes: Bytes, scales: Scales, zeros: Scales | None
) -> None:
    """Dtypes and shapes of the parts of n rows."""
    dtypes, scales_shape = (scale_dtype(shape),), (n, *shape.scales_shape[1:])
    expect(f"{what}: codes", codes, (np.uint8,), (n, shape.k))
    expect(f"{what}: scales", scales, dtypes, scales_shape)
    if shape.has_zeros:
        expect(f"{what}: zeros", zeros, dtypes, scales_shape)
    elif zeros is not None:
        raise KernelError(f"{what}: zeros given for a shape without them")
