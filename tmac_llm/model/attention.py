"""Causal attention of grouped query heads over a tiled cache; knows neither projections nor rotation."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from tmac_llm.model import parallel
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.kv_cache import TILE, LayerCache, value_part

Floats = npt.NDArray[np.float32]

# Scores (float32) of one portion of queries: what the level 2 cache holds.
_SCORES = 1 << 18
_LINE = 16  # floats of a cache line
# Floats read from a layer's cache from which one token's heads are worth splitting over threads.
_SPLIT_FROM = 5 << 19


class Attention:
    """softmax(q k^T / sqrt(head_dim)) v, softmax in float32; query head h reads key head h // group.

    With a sliding window of w a token sees itself and the w - 1 before it. All results are independent of the
    number of threads: portions of work depend on shapes only.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._kv_heads = config.num_key_value_heads
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._head_dim = config.head_dim
        self._window = config.sliding_window
        self._scale = config.head_dim**-0.5
        self._local = threading.local()

    def __call__(self, q: Floats, cache: LayerCache, position: int, out: Floats) -> None:
        """q, out: float32 (n, heads, head_dim) of the tokens from `position` on, which are in the cache."""
        n = len(q)
        grouped = (n, self._kv_heads, self._group, self._head_dim)
        q, out = q.reshape(grouped), out.reshape(grouped)
        if n == 1:
            self._one_token(q, cache, position, out)
            return
        heads = range(self._kv_heads)
        step = min(max(_SCORES // (self._group * (position + n)), 8), n)
        blocks = [(begin, min(begin + step, n)) for begin in range(0, n, step)]
        masks = {begin: self._mask(position, begin, end) for begin, end in blocks}

        def portion(item: tuple[tuple[int, int], int]) -> None:
            (begin, end), head = item
            part = slice(head, head + 1)
            first, last, mask = masks[begin]
            work = self._work(1, end - begin, last - first)
            work.score(q[begin:end, part], self._scale, cache.keys[part, first:last])
            work.by_query[..., work.by_query.shape[-1] - mask.shape[-1] :] += mask[:, None]
            work.sum_values(cache.values[part, first:last], out[begin:end, part])

        parallel.for_each(portion, [(block, head) for block in blocks for head in heads])

    def _one_token(self, q: Floats, cache: LayerCache, position: int, out: Floats) -> None:
        length = position + 1
        hidden = 0 if self._window is None else max(length - self._window, 0)
        first, last = hidden // TILE, -(-length // TILE)
        # Of a single tile only what is filled, in whole cache lines: the rest would come from memory.
        width = TILE if last - first > 1 else -(-(length - first * TILE) // _LINE) * _LINE

        def portion(heads: slice) -> None:
            work = self._work(heads.stop - heads.start, 1, last - first, width)
            work.score(q[:, heads], self._scale, cache.keys[heads, first:last, :, :width])
            work.scores[..., length - first * TILE :] = -np.inf
            if hidden:
                work.scores[..., : hidden - first * TILE] = -np.inf
            work.sum_values(cache.values[heads, first:last, :, :width], out[:, heads])

        kv_heads = self._kv_heads
        if kv_heads > 1 and 2 * kv_heads * self._head_dim * (length - hidden) >= _SPLIT_FROM:
            half = kv_heads // 2
            parallel.for_each(portion, [slice(0, half), slice(half, kv_heads)])
        else:
            portion(slice(0, kv_heads))

    def _mask(self, position: int, begin: int, end: int) -> tuple[int, int, Floats]:
        """(first tile, end tile, mask) of the queries begin .. end - 1 of a chunk that starts at `position`.

        The mask, float32 (queries, columns) of 0 and -inf, covers the last columns of these tiles: those that
        not every query sees.
        """
        queries = np.arange(position + begin, position + end)
        oldest = 0 if self._window is None else max(int(queries[0]) - self._window + 1, 0)
        first, last = oldest // TILE, -(-(position + end) // TILE)
        all_see_from = oldest if self._window is None else max(int(queries[-1]) - self._window + 1, 0)
        partly = int(queries[0]) + 1 if all_see_from <= first * TILE else first * TILE
        keys = np.arange(partly, last * TILE)
        hidden = keys > queries[:, None]
        if self._window is not None:
            hidden |= keys <= queries[:, None] - self._window
        return first, last, np.where(hidden, np.float32(-np.inf), np.float32(0))

    def _work(self, kv_heads: int, queries: int, tiles: int, width: int = TILE) -> _Work:
        """Scratch arrays of this thread, made anew when the shape changes: every 64 tokens of decoding."""
        work: _Work | None = getattr(self._local, "work", None)
        if work is None or work.shape != (kv_heads, queries, tiles, width):
            work = _Work(kv_heads, queries, self._group, tiles, width, self._head_dim)
            self._local.work = work
        return work


class _Work:
    """Scratch of a product of queries with the tiles of some key heads; a row is a (query, head of group)."""

    def __init__(
        self, kv_heads: int, queries: int, group: int, tiles: int, width: int, head_dim: int
    ) -> None:
        self.shape = kv_heads, queries, tiles, width
        rows, part = queries * group, value_part(head_dim)
        self._q = np.empty((kv_heads, queries, group, head_dim), np.float32)
        self._q_rows = self._q.reshape(kv_heads, 1, rows, head_dim)
        self.scores = np.empty((kv_heads, rows, tiles * width), np.float32)
        self.by_query = self.scores.reshape(kv_heads, queries, group, tiles * width)
        # BLAS reads and writes one tile of all rows with a stride, no copy is made.
        self._by_tile = self.scores.reshape(kv_heads, rows, tiles, width).transpose(0, 2, 1, 3)
        self._by_tile_and_part = self._by_tile[:, :, None]
        self._row = np.empty((kv_heads, rows, 1), np.float32)
        self._row_by_query = self._row.reshape(kv_heads, queries, group, 1, 1)
        self._products = np.empty((kv_heads, tiles, head_dim // part, rows, part), np.float32)
        self._sum = np.empty((kv_heads, head_dim // part, rows, part), np.float32)
        by_query = self._sum.reshape(kv_heads, head_dim // part, queries, group, part)
        self._sum_by_query = by_query.transpose(2, 0, 3, 1, 4)
        self._row_by_query = self._row_by_query.transpose(1, 0, 2, 3, 4)

    def score(self, q: Floats, scale: float, keys: Floats) -> None:
        """scores = q k^T * scale; q: (queries, kv_heads, group, head_dim)."""
        np.multiply(q.transpose(1, 0, 2, 3), scale, out=self._q)
        np.matmul(self._q_rows, keys, out=self._by_tile)

    def sum_values(self, values: Floats, out: Floats) -> None:
        """out = softmax(scores) v; out: (queries, kv_heads, group, head_dim)."""
        scores, row = self.scores, self._row
        np.maximum.reduce(scores, axis=2, keepdims=True, out=row)
        np.subtract(scores, row, out=scores)
        np.exp(scores, out=scores)
        np.add.reduce(scores, axis=2, keepdims=True, out=row)
        np.matmul(self._by_tile_and_part, values, out=self._products)
        np.add.reduce(self._products, axis=1, out=self._sum)
        parts = out.reshape(self._sum_by_query.shape)
        np.divide(self._sum_by_query, self._row_by_query, out=parts)
