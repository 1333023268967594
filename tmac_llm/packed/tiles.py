"""Geometry and byte order of one packed matrix, with a numpy reference of packing; knows no files, no models.

The layout is drawn in csrc/layout.h; tests compare the two statements. `kernels.pack` does the work; `pack`
and `unpack` here say the same in array operations, so that a reader and a test can check it.

A matrix of 4 rows and 8 columns, 2 bits, one scale per row, row 1 = codes 3 2 1 0 3 2 1 0, the others 0:

    bit 0 of its columns 0..3 is 1 0 1 0 -> nibble 0b0101 (first column in the least significant bit)
    bit 1 of its columns 0..3 is 1 1 0 0 -> nibble 0b0011, put in the high half: byte 0x35
    columns 4..7 give the same byte: tile 0, row 1, k-groups 0 and 1 = bytes 4 and 5 of vector 0 are 0x35

Encoding "ternary" stores five codes of a row in one byte, sign and magnitude of v = sum of 3^j * (code - 1):

    codes 2 0 1 1 1 -> v = 1 - 3 = -2 -> 0x82
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm.kernels import MatrixShape

LAYOUT_VERSION = 2
# A matrix of version 1 has the same bytes; version 2 adds the ternary encoding.
READABLE_VERSIONS = (1, 2)
ROWS_PER_BLOCK = 64
ROWS_PER_TILE = 16
COLUMNS_PER_STEP = 32
COLUMN_ALIGNMENT = 128
MAX_BITS = 8
MAX_COLUMNS = 65536
GROUP_SIZES = (0, 32, 64, 128)

QUAD_COLUMNS = 16
TILES_PER_BLOCK = ROWS_PER_BLOCK // ROWS_PER_TILE
VECTOR_BYTES = TILES_PER_BLOCK * ROWS_PER_TILE * QUAD_COLUMNS // 4

# The ternary encoding: what its shapes have, five codes in a byte, whole steps of 30 columns.
TERNARY = {"bits": 2, "group_size": 0, "has_zeros": False, "zero": 1.0}
CODES_PER_BYTE = 5
MAX_MAGNITUDE = 121
BYTES_PER_TERNARY_STEP = 6
# The bytes of all values of five codes, from -121 to 121.
TERNARY_BYTES = np.array([v if v >= 0 else 128 - v for v in range(-121, 122)], np.uint8)

# What config.json says about the bytes; a reader refuses any other.
TILE = {
    "rows_per_block": ROWS_PER_BLOCK,
    "rows_per_tile": ROWS_PER_TILE,
    "columns_per_step": COLUMNS_PER_STEP,
    "column_alignment": COLUMN_ALIGNMENT,
}

Bytes = npt.NDArray[np.uint8]


def padded_k(shape: MatrixShape) -> int:
    """Columns in the file: k rounded up to a multiple of 128."""
    return -(-shape.k // COLUMN_ALIGNMENT) * COLUMN_ALIGNMENT


def n_blocks(shape: MatrixShape) -> int:
    """Blocks of 64 rows, the last one padded."""
    return -(-shape.m // ROWS_PER_BLOCK)


def segment_columns(shape: MatrixShape) -> int:
    """Columns between two tails of scales."""
    return shape.group_size or COLUMN_ALIGNMENT


def n_groups(shape: MatrixShape) -> int:
    """Scales per row, padding not counted; 1 where a scale belongs to the row."""
    return -(-shape.k // shape.group_size) if shape.group_size else 1


def scale_dtype(shape: MatrixShape) -> np.dtype[Any]:
    """float16 for scales of groups, float32 for scales of rows."""
    return np.dtype(np.float16 if shape.group_size else np.float32)


def block_bytes(shape: MatrixShape) -> int:
    """Bytes of one block of 64 rows: a multiple of 128."""
    tails = padded_k(shape) // shape.group_size if shape.group_size else 1
    tail = ROWS_PER_BLOCK * scale_dtype(shape).itemsize * (2 if shape.has_zeros else 1)
    if shape.encoding == "ternary":
        return ternary_row_bytes(shape) * ROWS_PER_BLOCK + tail
    return padded_k(shape) // COLUMNS_PER_STEP * shape.bits * VECTOR_BYTES + tails * tail


def ternary_row_bytes(shape: MatrixShape) -> int:
    """Bytes of the codes of one row, where five share a byte: whole steps of 30 columns."""
    columns = CODES_PER_BYTE * BYTES_PER_TERNARY_STEP
    return -(-shape.k // columns) * BYTES_PER_TERNARY_STEP


def packed_size(shape: MatrixShape) -> int:
    """Bytes of the whole matrix."""
    return n_blocks(shape) * block_bytes(shape)


def pack(shape: MatrixShape, codes: Bytes, scales: npt.NDArray[Any], zeros: npt.NDArray[Any] | None) -> Bytes:
    """The bytes of a matrix.

    codes: uint8 (m, k), each below 2^bits. scales, zeros: float16 (m, n_groups), or float32 (m,) per row.
    Returns uint8 (packed_size,).
    """
    if shape.encoding == "ternary":
        return _pack_ternary(shape, codes, scales)
    blocks, segments, vectors, tail = _split(shape, np.zeros(packed_size(shape), np.uint8))
    rows, columns = blocks.shape[0] * ROWS_PER_BLOCK, padded_k(shape)
    padded = np.zeros((rows, columns), np.uint8)
    padded[: shape.m, : shape.k] = codes
    # nibbles[plane]: (block, tile, row, segment, step, quad, k-group)
    order = (-1, TILES_PER_BLOCK, ROWS_PER_TILE, segments.shape[1], vectors.shape[2], 2, 4)
    weights = np.array([1, 2, 4, 8], np.uint8)
    nibbles = [
        ((padded >> p & 1).reshape(rows, columns // 4, 4) @ weights).reshape(order) for p in range(shape.bits)
    ]
    for v, ((low, low_quad), (high, high_quad)) in enumerate(_halves(shape.bits)):
        both = nibbles[low][..., low_quad, :] | nibbles[high][..., high_quad, :] << 4
        vectors[:, :, :, v] = both.transpose(0, 3, 4, 1, 2, 5)
    for i, values in enumerate((scales, zeros)[: 2 if shape.has_zeros else 1]):
        part = np.zeros((rows, tail.shape[1]), scale_dtype(shape))
        part[: shape.m, : n_groups(shape)] = np.asarray(values).reshape(shape.m, -1)
        tail[:, :, i] = part.reshape(-1, ROWS_PER_BLOCK, tail.shape[1]).transpose(0, 2, 1)
    return blocks.reshape(-1)


def unpack(shape: MatrixShape, tiles: Bytes) -> tuple[Bytes, npt.NDArray[Any], npt.NDArray[Any] | None]:
    """The inverse of `pack`: (codes, scales, zeros or None)."""
    if shape.encoding == "ternary":
        return _unpack_ternary(shape, tiles)
    blocks, _, vectors, tail = _split(shape, tiles)
    planes = np.zeros((shape.bits, 2, *vectors.shape[:3], *vectors.shape[4:]), np.uint8)
    for v, halves in enumerate(_halves(shape.bits)):
        for half, (plane, quad) in enumerate(halves):
            planes[plane, quad] = vectors[:, :, :, v] >> 4 * half & 15
    # (plane, quad, block, segment, step, tile, row, k-group) -> (plane, row of the matrix, nibble of the row)
    nibbles = planes.transpose(0, 2, 5, 6, 3, 4, 1, 7).reshape(shape.bits, -1, padded_k(shape) // 4)
    codes = np.zeros((nibbles.shape[1], padded_k(shape)), np.uint8)
    for p, plane_nibbles in enumerate(nibbles):
        codes |= (plane_nibbles[..., None] >> np.arange(4, dtype=np.uint8) & 1).reshape(codes.shape) << p
    rows = blocks.shape[0] * ROWS_PER_BLOCK
    values = [
        tail[:, :, i].transpose(0, 2, 1).reshape(rows, -1)[: shape.m, : n_groups(shape)].copy()
        for i in range(tail.shape[2])
    ]
    if not shape.group_size:
        values = [v[:, 0] for v in values]
    return codes[: shape.m, : shape.k].copy(), values[0], values[1] if shape.has_zeros else None


def tails(shape: MatrixShape, tiles: Bytes) -> npt.NDArray[Any]:
    """A view of all scales and zeros with their padding: (n_blocks, groups or 1, 1 or 2, 64), scale_dtype."""
    if shape.encoding == "ternary":
        return _split_ternary(shape, tiles)[1]
    return _split(shape, tiles)[3]


def _split_ternary(shape: MatrixShape, tiles: Bytes) -> tuple[Bytes, npt.NDArray[Any]]:
    """Views: codes (n_blocks, bytes of a row, 64) and scales (n_blocks, 1, 1, 64), float32."""
    blocks = tiles.reshape(n_blocks(shape), block_bytes(shape))
    end = ternary_row_bytes(shape) * ROWS_PER_BLOCK
    codes = blocks[:, :end].reshape(len(blocks), -1, ROWS_PER_BLOCK)
    return codes, blocks[:, None, None, end:].view(scale_dtype(shape))


def _pack_ternary(shape: MatrixShape, codes: Bytes, scales: npt.NDArray[Any]) -> Bytes:
    tiles = np.zeros(packed_size(shape), np.uint8)
    out, tail = _split_ternary(shape, tiles)
    trits = np.zeros((n_blocks(shape) * ROWS_PER_BLOCK, out.shape[1] * CODES_PER_BYTE), np.int16)
    trits[: shape.m, : shape.k] = codes.astype(np.int16) - 1
    values = trits.reshape(-1, ROWS_PER_BLOCK, out.shape[1], CODES_PER_BYTE) @ 3 ** np.arange(
        5, dtype=np.int16
    )
    out[:] = np.where(values < 0, 128 - values, values).astype(np.uint8).transpose(0, 2, 1)
    rows = np.zeros(len(trits), np.float32)
    rows[: shape.m] = scales
    tail[:, 0, 0] = rows.reshape(-1, ROWS_PER_BLOCK)
    return tiles


def _unpack_ternary(shape: MatrixShape, tiles: Bytes) -> tuple[Bytes, npt.NDArray[Any], None]:
    """A byte whose magnitude is above 121 stands for five zeros."""
    stored, tail = _split_ternary(shape, tiles)
    values = (stored & 0x7F).astype(np.int16)
    values[values > MAX_MAGNITUDE] = 0
    values = np.where(stored & 0x80, -values, values).transpose(0, 2, 1) + MAX_MAGNITUDE
    digits = values[..., None] // 3 ** np.arange(CODES_PER_BYTE) % 3
    codes = digits.astype(np.uint8).reshape(tail.shape[0] * ROWS_PER_BLOCK, -1)
    return codes[: shape.m, : shape.k].copy(), tail.reshape(-1)[: shape.m].copy(), None


def _halves(bits: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Per vector of a step: (plane, quad) in the low nibble, (plane, quad) in the high nibble."""
    halves = [((2 * p, quad), (2 * p + 1, quad)) for p in range(bits // 2) for quad in (0, 1)]
    return [*halves, ((bits - 1, 0), (bits - 1, 1))] if bits % 2 else halves


def _split(shape: MatrixShape, tiles: Bytes) -> tuple[Bytes, Bytes, Bytes, npt.NDArray[Any]]:
    """Views of the bytes of a matrix.

    blocks (n_blocks, block_bytes), segments (n_blocks, S, segment bytes),
    vectors (n_blocks, S, steps, bits, tile, row, k-group), tail (n_blocks, S or 1, 1 or 2, 64), scale_dtype.
    """
    blocks = tiles.reshape(n_blocks(shape), block_bytes(shape))
    n_segments = padded_k(shape) // segment_columns(shape)
    steps = segment_columns(shape) // COLUMNS_PER_STEP
    stream = steps * shape.bits * VECTOR_BYTES
    kinds = 2 if shape.has_zeros else 1
    end = blocks.shape[1] if shape.group_size else n_segments * stream
    segments = blocks[:, :end].reshape(blocks.shape[0], n_segments, end // n_segments)
    vectors = segments[:, :, :stream]
    tail = segments[:, :, stream:] if shape.group_size else blocks[:, None, end:]
    order = (blocks.shape[0], n_segments, steps, shape.bits, TILES_PER_BLOCK, ROWS_PER_TILE, 4)
    tail = tail.view(scale_dtype(shape)).reshape(*tail.shape[:2], kinds, ROWS_PER_BLOCK)
    return blocks, segments, vectors.reshape(order), tail
