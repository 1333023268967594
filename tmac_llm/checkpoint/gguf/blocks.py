"""Blocks of GGUF tensors to codes, scales and zero points; knows neither files nor models.

Every function takes uint8 (n, bytes) rows of whole blocks. Sources: ggml's ggml-quants.c (dequantize_row_*), I2_S:
bitnet.cpp's ggml-bitnet-mad.cpp for x86. d, m, dmin are float16; q is a code:

    Q4_0   d | 16 bytes: value j in the low, j + 16 in the high nibble of byte j          w = d (q - 8)
    Q4_1   d m | as Q4_0                                                                  w = d q + m
    Q5_0   d | u32 bit j: bit 4 of value j | as Q4_0                                      w = d (q - 16)
    Q5_1   d m | as Q5_0                                                                  w = d q + m
    Q8_0   d | 32 int8                                                                    w = d q
    Q4_K   d dmin | 12 bytes: 8 scales and 8 minima of 6 bits | 128 bytes: of each 64
           values the first 32 in the low, the others in the high nibbles of 32 bytes     w = d s q - dmin t
    Q5_K   as Q4_K, before the nibbles 32 bytes: bit g of byte j is bit 4 of value j of group g
    TQ1_0  48 bytes of five trits, 4 bytes of four trits | d                              w = d (q - 1)
    TQ2_0  64 bytes: of each 128 values value 32 i + j in bits 2 i + 1 : 2 i of byte j | d
    I2_S   32 bytes: value 32 i + j in bits 7 - 2 i : 6 - 2 i of byte j; one float32 after the last block
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# The largest power of 3 comes first in a byte of TQ1_0: value n is in the top bits of byte * 3^n.
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


@dataclass(frozen=True, slots=True)
class Grouped:
    """Rows of a type whose groups have 32 values: codes uint8 (n, k), float32 (n, k / 32) scales and minima.

    W = scale * (code - zero) where `minima` is None, else scale * code + minimum.
    """

    codes: Bytes
    scales: Floats
    minima: Floats | None


def float16_at(blocks: Bytes, begin: int) -> NDArray[np.float16]:
    """The float16 at byte `begin` of each block (..., bytes)."""
    return np.ascontiguousarray(blocks[..., begin : begin + 2]).view(np.float16)[..., 0]


def _at(blocks: Bytes, begin: int) -> Floats:
    return float16_at(blocks, begin).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """(..., 2 b) from (..., b): all low nibbles, then all high ones."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


def _blocks(rows: Bytes, n_bytes: int) -> Bytes:
    return rows.reshape(len(rows), -1, n_bytes)


def _fifth_bits(four_bytes: Bytes) -> Bytes:
    """16 times bit j of each u32, (..., 32)."""
    return np.unpackbits(np.ascontiguousarray(four_bytes), axis=-1, bitorder="little") << np.uint8(4)


def _flat(codes: Bytes) -> Bytes:
    return codes.reshape(len(codes), -1)


def _q4_0(rows: Bytes) -> Grouped:
    blocks = _blocks(rows, 18)
    return Grouped(_flat(_nibbles(blocks[..., 2:])), _at(blocks, 0), None)


def _q4_1(rows: Bytes) -> Grouped:
    blocks = _blocks(rows, 20)
    return Grouped(_flat(_nibbles(blocks[..., 4:])), _at(blocks, 0), _at(blocks, 2))


def _q5_0(rows: Bytes) -> Grouped:
    blocks = _blocks(rows, 22)
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return Grouped(_flat(codes), _at(blocks, 0), None)


def _q5_1(rows: Bytes) -> Grouped:
    blocks = _blocks(rows, 24)
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return Grouped(_flat(codes), _at(blocks, 0), _at(blocks, 2))


def _q8_0(rows: Bytes) -> Grouped:
    blocks = _blocks(rows, 34)
    return Grouped(_flat(blocks[..., 2:] ^ np.uint8(128)), _at(blocks, 0), None)


def _scales_k(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Scales and minima of 8 groups, (..., 8) each, from 12 bytes:

    byte 0 .. 3    s4 .. s7 bits 5:4 | s0 .. s3
    byte 4 .. 7    t4 .. t7 bits 5:4 | t0 .. t3
    byte 8 .. 11   t4 .. t7 bits 3:0 | s4 .. s7 bits 3:0
    """
    s, t, low = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = [s & np.uint8(63), (low & np.uint8(15)) | (s >> np.uint8(6) << np.uint8(4))]
    minima = [t & np.uint8(63), (low >> np.uint8(4)) | (t >> np.uint8(6) << np.uint8(4))]
    return np.concatenate(scales, axis=-1), np.concatenate(minima, axis=-1)


def _q4_k(rows: Bytes) -> Grouped:
    return _k(_blocks(rows, 144), 16)


def _q5_k(rows: Bytes) -> Grouped:
    blocks = _blocks(rows, 176)
    high = (blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    grouped = _k(blocks, 48)
    grouped.codes[:] |= _flat(high << np.uint8(4))
    return grouped


def _k(blocks: Bytes, first: int) -> Grouped:
    """Q4_K, and Q5_K without its fifth bits; first: the byte where the nibbles begin."""
    scales, minima = _scales_k(blocks[..., 4:16])
    nibbles = blocks[..., first:].reshape(*blocks.shape[:2], 4, 32)
    return Grouped(
        _flat(_nibbles(nibbles)),
        (_at(blocks, 0)[..., None] * scales).reshape(len(blocks), -1),
        (_at(blocks, 2)[..., None] * minima * np.float32(-1)).reshape(len(blocks), -1),
    )


# name -> (decoder, zero point of types without minima)
GROUPED: dict[str, tuple[Callable[[Bytes], Grouped], float | None]] = {
    "Q4_0": (_q4_0, 8.0),
    "Q4_1": (_q4_1, None),
    "Q5_0": (_q5_0, 16.0),
    "Q5_1": (_q5_1, None),
    "Q8_0": (_q8_0, 128.0),
    "Q4_K": (_q4_k, None),
    "Q5_K": (_q5_k, None),
}


def _tq1_0(blocks: Bytes) -> Bytes:
    def trits(packed: Bytes, n: int) -> Bytes:
        """(..., n b): value i b + j is trit i of byte j."""
        top = packed[..., None, :] * _POWERS[:n, None]
        return (
            (top.astype(np.uint16) * np.uint16(3) >> np.uint16(8))
            .astype(np.uint8)
            .reshape(*packed.shape[:-1], -1)
        )

    parts = [trits(blocks[..., :32], 5), trits(blocks[..., 32:48], 5), trits(blocks[..., 48:52], 4)]
    return np.concatenate(parts, axis=-1)


def _tq2_0(blocks: Bytes) -> Bytes:
    halves = blocks[..., :64].reshape(*blocks.shape[:-1], 2, 1, 32)
    shifts = np.array([[0], [2], [4], [6]], np.uint8)
    return ((halves >> shifts) & np.uint8(3)).reshape(*blocks.shape[:-1], 256)


# name -> (decoder of the codes 0, 1, 2, byte of the scale)
TERNARY: dict[str, tuple[Callable[[Bytes], Bytes], int]] = {"TQ1_0": (_tq1_0, 52), "TQ2_0": (_tq2_0, 64)}


def ternary_codes(name: str, rows: Bytes) -> Bytes:
    """Codes (n, k) of TQ1_0 or TQ2_0; 3 is none of them, but a damaged file has it."""
    decode, at = TERNARY[name]
    return _flat(decode(_blocks(rows, at + 2)))


def ternary_scales(name: str, rows: Bytes) -> NDArray[np.float16]:
    """float16 (n, k / 256): the scales of TQ1_0 or TQ2_0."""
    at = TERNARY[name][1]
    return float16_at(_blocks(rows, at + 2), at)


def i2_s_codes(packed: Bytes) -> Bytes:
    """Codes of whole blocks of I2_S, uint8 (4 n,) from (n,)."""
    shifts = np.array([[6], [4], [2], [0]], np.uint8)
    return ((packed.reshape(-1, 1, 32) >> shifts) & np.uint8(3)).reshape(-1)


def to_zero_points(grouped: Grouped) -> tuple[Bytes, NDArray[np.float16], NDArray[np.float16], Any]:
    """(codes, scales, zeros, error) of W = scale * code + minimum as (code - zero) * scale in float16.

    The zero point -minimum / scale is rounded; where the scale is 0, or vanishes beside the minimum, the group is the
    constant minimum: code 0, zero -1. error: float32 (n, k), what that adds to each weight.
    """
    assert grouped.minima is not None
    d, m = grouped.scales, grouped.minima
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scales, zeros = d.astype(np.float16), (-m / d).astype(np.float16)
    constant = (scales == 0) | ~np.isfinite(zeros)
    scales, zeros = np.where(constant, m.astype(np.float16), scales), np.where(constant, -1, zeros)
    codes = grouped.codes.reshape(*d.shape, 32)
    stored = np.where(constant[..., None], np.uint8(0), codes) if constant.any() else codes
    s, z = scales.astype(np.float32), zeros.astype(np.float32)
    # (stored - z) s - (d code + m), where stored is code or 0
    slope = np.where(constant, -d, s - d)
    error = codes * slope[..., None] - (z * s + m)[..., None]
    return _flat(stored), scales, zeros.astype(np.float16), _flat(error)
