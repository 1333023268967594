"""Keys and values of one layer in the order that BLAS reads without packing, and the two products with them.

A key tile holds 64 positions: numpy multiplies every tile as a small matrix of its own. Values lie in parts of
up to 64 columns, each one forward stream over the positions. Both are several times faster than products over
(kv_heads, positions, head_dim).

    keys    (kv_heads, tiles, head_dim, 64)
    values  (kv_heads, parts, tiles * 64, head_dim / parts)      columns of a part: value_part(head_dim)
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

TILE = 64
# int8: code 128 is 0, codes are 1 .. 255. numpy raises uint8 to float32 at twice the speed of int8.
_ZERO = np.float32(128)
_LARGEST = 127
# Codes raised at once: about what the level 2 cache holds as float32.
_BLOCK = 1 << 18
_TINY = np.float32(1e-30)


def value_part(head_dim: int) -> int:
    """Columns of one part: the largest divisor of head_dim up to 64, unless that is a sliver."""
    largest = max(part for part in range(1, 65) if head_dim % part == 0)
    return largest if largest >= 16 else head_dim


class LayerCache(Protocol):
    """The cache of one layer. Positions beyond those written hold zeros or stale values, always finite."""

    portion: int
    """Elements that one thread reads for one token: less is not worth another thread."""

    @property
    def n_bytes(self) -> int:
        """Bytes allocated."""
        ...

    def grow(self, tiles: int) -> None:
        """Make room for `tiles` tiles of positions, keeping what is there."""
        ...

    def write(self, position: int, k: Floats, v: Floats) -> None:
        """Keys and values, float32 (n, kv_heads, head_dim), of the positions from `position` on."""
        ...

    def scores(self, q: Floats, heads: slice, begin: int, out: Floats) -> None:
        """out = q k^T over the n positions from `begin`, a multiple of TILE, on; n: one too, or less than TILE.

        q: float32 (heads, rows, head_dim). out: (heads, rows, n), contiguous.
        """
        ...

    def weighted_sum(self, p: Floats, heads: slice, begin: int, out: Floats) -> None:
        """out = p v over the positions from `begin` on; p may be overwritten.

        p: float32 (heads, rows, n). out: (heads, parts, rows, head_dim / parts).
        """
        ...


class FloatLayerCache:
    """float32."""

    portion = 5 << 18

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        part = value_part(head_dim)
        self._split = (kv_heads, head_dim // part, part)
        self.keys = np.zeros((kv_heads, 0, head_dim, TILE), np.float32)
        self.values = np.zeros((kv_heads, head_dim // part, 0, part), np.float32)

    @property
    def n_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def grow(self, tiles: int) -> None:
        self.keys = _grown(self.keys, 1, tiles)
        self.values = _grown(self.values, 2, tiles * TILE)

    def write(self, position: int, k: Floats, v: Floats) -> None:
        tile, at = divmod(position, TILE)
        if len(k) == 1:
            self.keys[:, tile, :, at] = k[0]
        else:
            self._write_keys(tile, at, k)
        _write_values(self.values, position, v.reshape(-1, *self._split))

    def _write_keys(self, tile: int, at: int, k: Floats) -> None:
        done = 0
        while done < len(k):
            count = min(TILE - at, len(k) - done)
            self.keys[:, tile, :, at : at + count] = k[done : done + count].transpose(1, 2, 0)
            done, tile, at = done + count, tile + 1, 0

    def scores(self, q: Floats, heads: slice, begin: int, out: Floats) -> None:
        n_heads, rows, n = out.shape
        width = min(n, TILE)
        first, tiles = begin // TILE, n // width
        # BLAS writes one tile of all rows with a stride, no copy is made.
        by_tile = out.reshape(n_heads, rows, tiles, width).transpose(0, 2, 1, 3)
        np.matmul(q[:, None], self.keys[heads, first : first + tiles, :, :width], out=by_tile)

    def weighted_sum(self, p: Floats, heads: slice, begin: int, out: Floats) -> None:
        np.matmul(p[:, None], self.values[heads, :, begin : begin + p.shape[2]], out=out)


class Int8LayerCache:
    """int8 with one float32 scale per position and head: x = (code - 128) * scale, scale = max |x| / 127.

    keys (kv_heads, head_dim, tiles * 64), values as above. Codes are raised to float32, some heads at a time.
    Zero point and scales are applied to scores and probabilities: q k^T = (q code^T - 128 sum q) * scale.
    """

    portion = 5 << 20  # more and shorter calls than float32 takes: two threads wait for each other

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        part = value_part(head_dim)
        self._split = (kv_heads, head_dim // part, part)
        self.keys = np.zeros((kv_heads, head_dim, 0), np.uint8)
        self.values = np.zeros((kv_heads, head_dim // part, 0, part), np.uint8)
        self.key_scales = np.zeros((kv_heads, 0), np.float32)
        self.value_scales = np.zeros((kv_heads, 0), np.float32)

    @property
    def n_bytes(self) -> int:
        return sum(a.nbytes for a in (self.keys, self.values, self.key_scales, self.value_scales))

    def grow(self, tiles: int) -> None:
        self.keys = _grown(self.keys, 2, tiles * TILE)
        self.values = _grown(self.values, 2, tiles * TILE)
        self.key_scales = _grown(self.key_scales, 1, tiles * TILE)
        self.value_scales = _grown(self.value_scales, 1, tiles * TILE)

    def write(self, position: int, k: Floats, v: Floats) -> None:
        end = position + len(k)
        codes, scales = quantize(k)
        self.keys[:, :, position:end] = codes.transpose(1, 2, 0)
        self.key_scales[:, position:end] = scales.T
        codes, scales = quantize(v)
        _write_values(self.values, position, codes.reshape(-1, *self._split))
        self.value_scales[:, position:end] = scales.T

    def scores(self, q: Floats, heads: slice, begin: int, out: Floats) -> None:
        end = begin + out.shape[2]
        keys = self.keys[heads, :, begin:end]
        for some in _blocks(keys):
            np.matmul(q[some], _raised(keys[some]), out=out[some])
        np.subtract(out, _ZERO * q.sum(axis=2, keepdims=True), out=out)
        np.multiply(out, self.key_scales[heads, None, begin:end], out=out)

    def weighted_sum(self, p: Floats, heads: slice, begin: int, out: Floats) -> None:
        end = begin + p.shape[2]
        np.multiply(p, self.value_scales[heads, None, begin:end], out=p)
        values = self.values[heads, :, begin:end]
        for some in _blocks(values):
            np.matmul(p[some, None], _raised(values[some]), out=out[some])
        np.subtract(out, _ZERO * p.sum(axis=2)[:, None, :, None], out=out)


def quantize(x: Floats) -> tuple[Bytes, Floats]:
    """Codes, uint8 of x's shape (n, heads, head_dim), and scales, float32 (n, heads)."""
    scales = np.abs(x).max(axis=2) * np.float32(1 / _LARGEST)
    codes = x / np.maximum(scales, _TINY)[..., None]
    codes += _ZERO + np.float32(0.5)
    return codes.astype(np.uint8), scales


def _write_values(values: npt.NDArray[Any], position: int, v: npt.NDArray[Any]) -> None:
    values[:, :, position : position + len(v)] = v.transpose(1, 2, 0, 3)


def _blocks(codes: Bytes) -> list[slice]:
    """The heads to raise together."""
    step = max(_BLOCK * len(codes) // codes.size, 1)
    return [slice(begin, begin + step) for begin in range(0, len(codes), step)]


_local = threading.local()


def _raised(codes: Bytes) -> Floats:
    """Codes as float32, in a buffer of this thread that the next call overwrites."""
    buffer: Floats | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < codes.size:
        buffer = _local.buffer = np.empty(codes.size, np.float32)
    raised = buffer[: codes.size].reshape(codes.shape)
    np.copyto(raised, codes)
    return raised


def _grown(array: npt.NDArray[Any], axis: int, size: int) -> npt.NDArray[Any]:
    shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
    larger = np.zeros(shape, array.dtype)  # the system commits pages as they are touched
    larger[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return larger
