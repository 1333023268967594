"""Keys and values of one layer in the order that BLAS reads without packing, and the two products with them.

A key tile holds 64 positions: numpy multiplies every tile as a small matrix of its own. Values lie in parts of
up to 64 columns, each one forward stream over the positions. Both are several times faster than products over
(kv_heads, positions, head_dim).

    keys    (kv_heads, tiles, head_dim, 64)
    values  (kv_heads, parts, tiles * 64, head_dim / parts)      columns of a part: value_part(head_dim)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

TILE = 64
_LINE = 16  # elements that a product may as well read together
# int8: code 128 is 0, codes are 1 .. 255. numpy raises uint8 to float32 at twice the speed of int8.
_ZERO = np.array(128, np.float32)
_HALF_UP = np.array(128.5, np.float32)
_STEP = np.array(1 / 127, np.float32)
# Codes raised at once: about what the level 2 cache holds as float32.
_BLOCK = 1 << 18
_TINY = np.array(1e-30, np.float32)


def value_part(head_dim: int) -> int:
    """Columns of one part: the largest divisor of head_dim up to 64, unless that is a sliver."""
    largest = max(part for part in range(1, 65) if head_dim % part == 0)
    return largest if largest >= 16 else head_dim


class LayerCache(Protocol):
    """The cache of one layer. Positions beyond those written hold zeros or stale values, always finite.

    What is written and the products are bound to arrays and positions first: `bind_...` returns a function of the
    cache, which may be that of any layer of the same size, and reads and writes the arrays as they are then.
    """

    portion: int
    """Elements that one thread reads for one token: less is not worth another thread."""

    @property
    def n_bytes(self) -> int:
        """Bytes allocated."""
        ...

    def grow(self, tiles: int) -> None:
        """Make room for `tiles` tiles of positions, keeping what is there."""
        ...

    def bind_write(self, position: int, k: Floats, v: Floats) -> Callable[[Self], None]:
        """Keys and values, float32 (n, kv_heads, head_dim), of the positions from `position` on."""
        ...

    def bind_scores(self, q: Floats, heads: slice, begin: int, out: Floats) -> Callable[[Self], None]:
        """out = q k^T over the n positions from `begin`, a multiple of TILE, on; n: one too, or less than TILE.

        q: float32 (heads, rows, head_dim). out: (heads, rows, n), contiguous.
        """
        ...

    def bind_latest_scores(self, q: Floats, begin: int, end: int) -> tuple[Callable[[Self], None], Floats]:
        """The scores of the token written last alone, at position end - 1, and the array that they come to.

        q: float32 (heads, rows, head_dim). The array: (heads, rows, end - begin), of the positions from `begin`, a
        multiple of TILE, on.
        """
        ...

    def bind_weighted_sum(self, p: Floats, heads: slice, begin: int, out: Floats) -> Callable[[Self], None]:
        """out = p v over the n positions from `begin` on; p may be overwritten.

        p: float32 (heads, rows, n). out: (heads, parts, rows, head_dim / parts), contiguous in the last axis.
        """
        ...


class FloatLayerCache:
    """float32.

    One token's key would be one float in each row of a tile, a cache line each that has to come from memory. So keys
    written one by one lie in `latest`, (kv_heads, 64, head_dim), until their tile is full: its first `filled`
    positions are in `latest`, and in `keys` only when written together or when the tile is full.
    """

    portion = 5 << 18

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        part = value_part(head_dim)
        self._split = (kv_heads, head_dim // part, part)
        self.keys = np.zeros((kv_heads, 0, head_dim, TILE), np.float32)
        self.values = np.zeros((kv_heads, head_dim // part, 0, part), np.float32)
        self.latest = np.zeros((kv_heads, TILE, head_dim), np.float32)
        self._tile, self._filled = 0, 0  # of `latest`

    @property
    def n_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + self.latest.nbytes

    def grow(self, tiles: int) -> None:
        self.keys = _grown(self.keys, 1, tiles)
        self.values = _grown(self.values, 2, tiles * TILE)

    def bind_write(self, position: int, k: Floats, v: Floats) -> Callable[[FloatLayerCache], None]:
        tile, at = divmod(position, TILE)
        v = v.reshape(-1, *self._split)
        if len(k) == 1:
            return self._bind_write_one(tile, at, k[0], v[0])

        def write(cache: FloatLayerCache) -> None:
            if cache._tile == tile and cache._filled >= at:
                cache.keys[:, tile, :, :at] = cache.latest[:, :at].transpose(0, 2, 1)
            _write_keys(cache.keys, tile, at, k)
            _write_values(cache.values, position, v)
            cache._filled = 0

        return write

    @staticmethod
    def _bind_write_one(tile: int, at: int, k: Floats, v: Floats) -> Callable[[FloatLayerCache], None]:
        key, value = (slice(None), at), (slice(None), slice(None), tile * TILE + at)

        def write(cache: FloatLayerCache) -> None:
            if at and (cache._tile != tile or cache._filled < at):  # written together, or truncated since
                cache.latest[:, :at] = cache.keys[:, tile, :, :at].transpose(0, 2, 1)
            cache.latest[key] = k
            cache.values[value] = v
            cache._tile, cache._filled = tile, at + 1
            if at == TILE - 1:
                cache.keys[:, tile] = cache.latest.transpose(0, 2, 1)

        return write

    def bind_scores(
        self, q: Floats, heads: slice, begin: int, out: Floats
    ) -> Callable[[FloatLayerCache], None]:
        tiles, by_tile = _tiles(heads, begin, out)
        per_tile, matmul = q[:, None], np.matmul

        def scores(cache: FloatLayerCache) -> None:
            matmul(per_tile, cache.keys[tiles], by_tile)

        return scores

    def bind_latest_scores(
        self, q: Floats, begin: int, end: int
    ) -> tuple[Callable[[FloatLayerCache], None], Floats]:
        filled = (end - 1) % TILE + 1
        full = end - begin - filled
        scores = np.empty((*q.shape[:2], end - begin), np.float32)
        latest, last, matmul = (slice(None), slice(filled)), scores[:, :, full:], np.matmul
        before = self.bind_scores(q, slice(None), begin, scores[:, :, :full]) if full else None

        def multiply(cache: FloatLayerCache) -> None:
            if before:
                before(cache)
            matmul(q, cache.latest[latest].transpose(0, 2, 1), last)

        return multiply, scores

    def bind_weighted_sum(
        self, p: Floats, heads: slice, begin: int, out: Floats
    ) -> Callable[[FloatLayerCache], None]:
        values = (heads, slice(None), slice(begin, begin + p.shape[2]))
        per_part, matmul = p[:, None], np.matmul

        def weighted_sum(cache: FloatLayerCache) -> None:
            matmul(per_part, cache.values[values], out)

        return weighted_sum


class Int8LayerCache:
    """int8 with one float32 scale per position and head: x = (code - 128) * scale, scale = max |x| / 127.

    keys and values as above. Codes are raised to float32, some heads at a time.
    Zero point and scales are applied to scores and probabilities: q k^T = (q code^T - 128 sum q) * scale.
    """

    portion = 5 << 20  # more and shorter calls than float32 takes: two threads wait for each other

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        part = value_part(head_dim)
        self._split = (kv_heads, head_dim // part, part)
        self.keys = np.zeros((kv_heads, 0, head_dim, TILE), np.uint8)
        self.values = np.zeros((kv_heads, head_dim // part, 0, part), np.uint8)
        self.key_scales = np.zeros((kv_heads, 0), np.float32)
        self.value_scales = np.zeros((kv_heads, 0), np.float32)

    @property
    def n_bytes(self) -> int:
        return sum(a.nbytes for a in (self.keys, self.values, self.key_scales, self.value_scales))

    def grow(self, tiles: int) -> None:
        self.keys = _grown(self.keys, 1, tiles)
        self.values = _grown(self.values, 2, tiles * TILE)
        self.key_scales = _grown(self.key_scales, 1, tiles * TILE)
        self.value_scales = _grown(self.value_scales, 1, tiles * TILE)

    def bind_write(self, position: int, k: Floats, v: Floats) -> Callable[[Int8LayerCache], None]:
        span, heads, split = slice(position, position + len(k)), k.shape[1], self._split
        tile, at = divmod(position, TILE)

        def write(cache: Int8LayerCache) -> None:
            codes, scales = quantize(np.concatenate((k, v), axis=1))
            _write_keys(cache.keys, tile, at, codes[:, :heads])
            cache.key_scales[:, span] = scales[:, :heads].T
            _write_values(cache.values, position, codes[:, heads:].reshape(-1, *split))
            cache.value_scales[:, span] = scales[:, heads:].T

        return write

    def bind_scores(
        self, q: Floats, heads: slice, begin: int, out: Floats
    ) -> Callable[[Int8LayerCache], None]:
        tiles, by_tile = _tiles(heads, begin, out)
        scales = (heads, None, slice(begin, begin + out.shape[2]))
        blocks = _blocks(len(out), q.shape[2] * out.shape[2])
        products = [(some, q[some, None], by_tile[some]) for some in blocks]

        def scores(cache: Int8LayerCache) -> None:
            codes = cache.keys[tiles]
            for some, q_some, out_some in products:
                np.matmul(q_some, _raised(codes[some]), out_some)
            np.subtract(out, _ZERO * np.add.reduce(q, 2, keepdims=True), out)
            np.multiply(out, cache.key_scales[scales], out)

        return scores

    def bind_latest_scores(
        self, q: Floats, begin: int, end: int
    ) -> tuple[Callable[[Int8LayerCache], None], Floats]:
        n = end - begin
        # Of a single tile only what is filled, in whole cache lines: the rest would come from memory.
        width = -(-n // TILE) * TILE if n > TILE else -(-n // _LINE) * _LINE
        scores = np.empty((*q.shape[:2], width), np.float32)
        return self.bind_scores(q, slice(None), begin, scores), scores[:, :, :n]

    def bind_weighted_sum(
        self, p: Floats, heads: slice, begin: int, out: Floats
    ) -> Callable[[Int8LayerCache], None]:
        span = slice(begin, begin + p.shape[2])
        values, scales = (heads, slice(None), span), (heads, None, span)
        blocks = _blocks(len(out), out.shape[1] * out.shape[3] * p.shape[2])
        products = [(some, p[some, None], out[some]) for some in blocks]

        def weighted_sum(cache: Int8LayerCache) -> None:
            np.multiply(p, cache.value_scales[scales], p)
            codes = cache.values[values]
            for some, p_some, out_some in products:
                np.matmul(p_some, _raised(codes[some]), out_some)
            np.subtract(out, _ZERO * np.add.reduce(p, 2)[:, None, :, None], out)

        return weighted_sum


def quantize(x: Floats) -> tuple[Bytes, Floats]:
    """Codes, uint8 of x's shape (n, heads, head_dim), and scales, float32 (n, heads)."""
    scales = np.maximum.reduce(np.abs(x), 2)
    scales *= _STEP
    codes = x / np.maximum(scales, _TINY)[..., None]
    codes += _HALF_UP
    return codes.astype(np.uint8), scales


def _tiles(heads: slice, begin: int, out: Floats) -> tuple[tuple[Any, ...], Floats]:
    """Index of the key tiles from position `begin` on, and the scores out, (heads, rows, n), tile by tile: BLAS
    writes one tile of all rows with a stride, no copy is made."""
    n = out.shape[2]
    width, first = min(n, TILE), begin // TILE
    index = (heads, slice(first, first + n // width), slice(None), slice(width))
    return index, out.reshape(*out.shape[:2], n // width, width).transpose(0, 2, 1, 3)


def _write_keys(keys: npt.NDArray[Any], tile: int, at: int, k: npt.NDArray[Any]) -> None:
    done = 0
    while done < len(k):
        count = min(TILE - at, len(k) - done)
        keys[:, tile, :, at : at + count] = k[done : done + count].transpose(1, 2, 0)
        done, tile, at = done + count, tile + 1, 0


def _write_values(values: npt.NDArray[Any], position: int, v: npt.NDArray[Any]) -> None:
    values[:, :, position : position + len(v)] = v.transpose(1, 2, 0, 3)


def _blocks(heads: int, size: int) -> list[slice]:
    """The heads, of so many codes each, to raise together."""
    step = max(_BLOCK // size, 1)
    return [slice(begin, begin + step) for begin in range(0, heads, step)]


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
