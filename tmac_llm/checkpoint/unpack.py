"""Packed integers of all checkpoint formats to one code per byte; knows neither tensors nor formats.

Words are little-endian, codes start at the lowest bit. Three ways to fill words of 32 bits with codes of b:

    stream   code i at bits [i*b, (i+1)*b) of the row seen as one long integer; codes may cross words
    fields   32 // b codes in each word, its upper 32 % b bits unused
    planar   b words hold 32 codes: the low 4 or 2 bits of all of them, then the next 2 or 1 bits, ...
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Codes = NDArray[np.uint8]

# Planes of gptq_p, lowest first (GPTQModel 7); other widths are stored as a stream.
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
# AWQ's order inside a word: column j of each eight is nibble _AWQ_NIBBLE[j].
_AWQ_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)
_BLOCK = 1 << 15  # groups of eight codes spread at once, so that they stay in the cache


def n_words(n_codes: int, bits: int, order: str) -> int:
    """Words that a row of codes takes."""
    if order == "fields":
        return -(-n_codes // (32 // bits))
    if order == "planar" and bits in PLANES:
        return -(-n_codes // 32) * bits
    return -(-n_codes * bits // 32)


def unpack(words: Words, bits: int, n_codes: int, order: str = "stream") -> Codes:
    """uint8 (rows, n_codes) from uint32 (rows, n_words(n_codes, bits, order)). order: see above."""
    if order == "fields" and 32 % bits:
        return _fields(words, bits, n_codes)
    if order == "planar" and bits in PLANES:
        return _planar(words, bits, n_codes)
    return _stream(words, bits, n_codes)


def unpack_awq(words: Words) -> Codes:
    """AWQ gemm: uint8 (8 n, k) from uint32 (n, k); nibble i of word (c, k) is row 8 c + (0,2,4,6,1,3,5,7)[i]."""
    out = np.empty((len(words), 8, words.shape[1]), np.uint8)
    for row, nibble in enumerate(_AWQ_NIBBLE):
        np.bitwise_and(words >> np.uint32(4 * nibble), np.uint32(15), out=out[:, row], casting="unsafe")
    return out.reshape(-1, words.shape[1])


def transposed(words: Words) -> Words:
    """A contiguous (columns, rows) copy, made in stripes that stay in the cache."""
    out = np.empty(words.shape[::-1], words.dtype)
    for begin in range(0, len(words), 16):
        out[:, begin : begin + 16] = words[begin : begin + 16].T
    return out


def _stream(words: Words, bits: int, n_codes: int) -> Codes:
    """Eight codes are `bits` whole bytes: those are widened to 64 bits and spread to one code per byte."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw[:, :n_codes]
    n_eights = -(-n_codes // 8)
    if raw.shape[1] < n_eights * bits:
        raw = np.pad(raw, ((0, 0), (0, n_eights * bits - raw.shape[1])))
    eights = raw[:, : n_eights * bits].reshape(len(raw), n_eights, bits)
    out = np.empty((len(raw), n_eights), np.uint64)
    step = max(_BLOCK // max(n_eights, 1), 1)
    for begin in range(0, len(raw), step):
        block, part = eights[begin : begin + step], out[begin : begin + step]
        if bits in (1, 2, 4):
            part[...] = np.ascontiguousarray(block).view(f"<u{bits}")[..., 0]
        else:
            part[...] = block[..., 0]
            for i in range(1, bits):
                part |= block[..., i].astype(np.uint64) << np.uint64(8 * i)
        _spread(part, bits)
    return out.view(np.uint8)[:, :n_codes]


def _spread(x: NDArray[np.uint64], bits: int) -> None:
    """In place: eight codes side by side become eight bytes, by halves. Drawn for 4 bits, lowest at the right:

    ........hgfedcba    the upper four codes move up to bit 32
    ....hgfe....dcba    the upper two of each four to the 16th bit above
    ..hg..fe..dc..ba    the upper one of each two to the 8th
    .h.g.f.e.d.c.b.a
    """
    upper = np.empty_like(x)
    for lane, width in ((32, 4 * bits), (16, 2 * bits), (8, bits)):
        low = sum(((1 << width) - 1) << i for i in range(0, 64, 2 * lane))
        np.left_shift(x, np.uint64(lane - width), out=upper)
        np.bitwise_and(upper, np.uint64(low << lane), out=upper)
        np.bitwise_and(x, np.uint64(low), out=x)
        np.bitwise_or(x, upper, out=x)


def _fields(words: Words, bits: int, n_codes: int) -> Codes:
    per_word = 32 // bits
    out = np.empty((*words.shape, per_word), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for i in range(per_word):
        np.bitwise_and(words >> np.uint32(i * bits), mask, out=out[..., i], casting="unsafe")
    return out.reshape(len(words), words.shape[1] * per_word)[:, :n_codes]


def _planar(words: Words, bits: int, n_codes: int) -> Codes:
    groups = words.reshape(len(words), words.shape[1] // bits, bits)
    out = np.zeros((len(words), groups.shape[1] * 32), np.uint8)
    first = shift = 0
    for width in PLANES[bits]:
        plane = groups[:, :, first : first + width].reshape(len(words), groups.shape[1] * width)
        out |= _stream(plane, width, out.shape[1]) << np.uint8(shift)
        first, shift = first + width, shift + width
    return out[:, :n_codes]
