"""Causal attention of grouped query heads over a cache; knows neither projections nor rotation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tmac_llm.model import parallel
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.layer_cache import TILE, LayerCache, value_part

Floats = npt.NDArray[np.float32]

# Scores (float32) of one portion of queries: what the level 2 cache holds.
_SCORES = 1 << 18
# Queries of one portion at most: portions keep threads equally busy, and the earlier ones skip later positions.
_QUERIES = 64
_MOST_PORTIONS = 32


class Attention:
    """softmax(q k^T) v, softmax in float32; query head h reads key head h // group.

    q and k come scaled: their product has the factor 1 / sqrt(head_dim) already (rope.py).
    With a sliding window of w a token sees itself and the w - 1 before it. All results are independent of the
    number of threads: portions of work depend on shapes only.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._kv_heads = config.num_key_value_heads
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._head_dim = config.head_dim
        self._window = config.sliding_window
        part = value_part(self._head_dim)
        self._parts = (self._head_dim // part, part)
        self._local = threading.local()

    def bind(self, q: Floats, cache: LayerCache, position: int, out: Floats) -> Callable[[LayerCache], None]:
        """Returns a function that reads q and writes out, float32 (n, heads, head_dim), of the tokens from
        `position` on.

        It takes the cache of any layer, of the same size as `cache`, which has these tokens by then.
        """
        return (self._bind_token if len(q) == 1 else self._bind_chunk)(q, cache, position, out)

    def _bind_token(
        self, q: Floats, cache: LayerCache, position: int, out: Floats
    ) -> Callable[[LayerCache], None]:
        end = position + 1
        begin = 0 if self._window is None else max(end - self._window, 0)
        first, last = begin // TILE, -(-end // TILE)
        n = min(self._portions(end - begin, cache.portion), last - first)
        edges = [(first + (last - first) * i // n) * TILE for i in range(n + 1)]
        spans = [(max(a, begin), min(b, end)) for a, b in pairwise(edges)]
        q = q.reshape(self._kv_heads, self._group, self._head_dim)
        heads = out.reshape(q.shape)
        by_part = heads.reshape(*heads.shape[:2], *self._parts).transpose(0, 2, 1, 3)
        if n == 1:
            highest, total = np.empty((2, *heads.shape[:2], 1), np.float32)
            look = self._bind_look(q, cache, spans[0], highest, total, by_part)

            def attend(cache: LayerCache) -> None:
                look(cache)
                np.divide(heads, total, heads)

            return attend
        portions = _Portions(n, by_part)
        looks = [self._bind_look(q, cache, spans[i], *portions.part(i), i == n - 1) for i in range(n)]

        def attend_in_portions(cache: LayerCache) -> None:
            parallel.for_each(lambda look: look(cache), looks)
            np.divide(heads, portions.merged(by_part), heads)

        return attend_in_portions

    def _portions(self, n_positions: int, portion: int) -> int:
        """Into how many portions of at most so many elements one token's positions are split: a power of two."""
        n = -(-2 * self._kv_heads * self._head_dim * n_positions // portion)
        return int(min(1 << (n - 1).bit_length(), _MOST_PORTIONS))

    def _bind_look(
        self,
        q: Floats,
        cache: LayerCache,
        span: tuple[int, int],
        highest: Floats,
        total: Floats,
        sums: Floats,
        is_last: bool = True,
    ) -> Callable[[LayerCache], None]:
        """One portion of one token's attention: sums = sum of exp(score - highest) v, over span's positions."""
        begin, end = span
        first = begin // TILE * TILE
        if is_last:
            multiply, scores = cache.bind_latest_scores(q, first, end)
        else:
            scores = np.empty((*q.shape[:2], end - first), np.float32)
            multiply = cache.bind_scores(q, slice(None), first, scores)
        seen = scores[:, :, begin - first :]
        weighted_sum = cache.bind_weighted_sum(seen, slice(None), begin, sums)

        def look(cache: LayerCache) -> None:
            multiply(cache)
            _exponentials(seen, highest, total)
            weighted_sum(cache)

        return look

    def _bind_chunk(
        self, q: Floats, cache: LayerCache, position: int, out: Floats
    ) -> Callable[[LayerCache], None]:
        n = len(q)
        grouped = (n, self._kv_heads, self._group, self._head_dim)
        q, out = q.reshape(grouped), out.reshape(grouped)
        step = min(max(_SCORES // (self._group * (position + n)), 8), _QUERIES)
        blocks = [(begin, min(begin + step, n)) for begin in range(0, n, step)]
        masks = {begin: self._mask(position, begin, end) for begin, end in blocks}
        some = min(max(_SCORES // (self._group * step * (position + n)), 1), self._kv_heads)

        def portion(cache: LayerCache, item: tuple[tuple[int, int], int]) -> None:
            (begin, end), head = item
            heads, queries = slice(head, min(head + some, self._kv_heads)), end - begin
            first, length, mask = masks[begin]
            work = self._work(heads.stop - head, queries * self._group, length - first * TILE)
            by_query = (heads.stop - head, queries, self._group, -1)
            work.q.reshape(by_query)[...] = q[begin:end, heads].transpose(1, 0, 2, 3)
            cache.bind_scores(work.q, heads, first * TILE, work.scores)(cache)
            seen = work.scores
            seen.reshape(by_query)[..., -mask.shape[1] :] += mask[:, None]
            _exponentials(seen, work.highest, work.total)
            cache.bind_weighted_sum(seen, heads, first * TILE, work.sum)(cache)
            by_part = (heads.stop - head, self._parts[0], queries, self._group, -1)
            np.divide(
                work.sum.reshape(by_part).transpose(2, 0, 3, 1, 4),
                work.total.reshape(by_query).transpose(1, 0, 2, 3)[..., None],
                out=out[begin:end, heads].reshape(queries, -1, self._group, *self._parts),
            )

        # The longest first, so that no thread is left with one at the end.
        items = [(block, head) for block in reversed(blocks) for head in range(0, self._kv_heads, some)]
        return lambda cache: parallel.for_each(partial(portion, cache), items)

    def _mask(self, position: int, begin: int, end: int) -> tuple[int, int, Floats]:
        """(first tile, length, mask) of the queries begin .. end - 1 of a chunk that starts at `position`.

        They see nothing from position `length`, the end of a tile, on. The mask, float32 (queries, columns) of 0
        and -inf, covers the last columns of the rest: those that not every query sees.
        """
        queries = np.arange(position + begin, position + end)
        oldest = 0 if self._window is None else max(int(queries[0]) - self._window + 1, 0)
        # Whole tiles, so that the order of sums does not depend on how a prompt was cut into chunks.
        first, length = oldest // TILE, -(-(position + end) // TILE) * TILE
        all_see_from = oldest if self._window is None else max(int(queries[-1]) - self._window + 1, 0)
        partly = int(queries[0]) + 1 if all_see_from <= first * TILE else first * TILE
        keys = np.arange(min(partly, length - 1), length)
        hidden = keys > queries[:, None]
        if self._window is not None:
            hidden |= keys <= queries[:, None] - self._window
        return first, length, np.where(hidden, np.float32(-np.inf), np.float32(0))

    def _work(self, heads: int, rows: int, positions: int) -> _Work:
        """Scratch arrays of this thread, made anew when the shape changes: every few tokens of decoding."""
        work: _Work | None = getattr(self._local, "work", None)
        if work is None or work.shape != (heads, rows, positions):
            work = _Work(work, (heads, rows, positions), self._parts)
            self._local.work = work
        return work


def _exponentials(scores: Floats, highest: Floats, total: Floats) -> None:
    """scores = exp(scores - highest of the row), in place; scores: (heads, rows, n), others (heads, rows, 1)."""
    np.maximum.reduce(scores, 2, None, highest, keepdims=True)
    np.subtract(scores, highest, scores)
    np.exp(scores, scores)
    np.add.reduce(scores, 2, None, total, keepdims=True)


class _Portions:
    """Parts of one token's attention, one per portion of positions: sum is of exp(score - highest) v."""

    def __init__(self, n: int, sums: Floats) -> None:
        """sums: as each portion has them, (kv_heads, parts, group, columns of a part)."""
        kv_heads, _, group, _ = sums.shape
        self._highest, self._total = np.empty((2, n, kv_heads, group, 1), np.float32)
        self._sum = np.empty((n, *sums.shape), np.float32)

    def part(self, i: int) -> tuple[Floats, Floats, Floats]:
        """highest, total and sum of portion i."""
        return self._highest[i], self._total[i], self._sum[i]

    def merged(self, out: Floats) -> Floats:
        """out = the whole sum; returns its total. Each is weighted by exp(its highest - highest of all)."""
        weights = np.exp(self._highest - self._highest.max(axis=0))
        np.multiply(self._total, weights, out=self._total)
        np.multiply(self._sum, weights[:, :, None], out=self._sum)
        self._sum.sum(axis=0, out=out)
        total: Floats = self._total.sum(axis=0)
        return total


class _Work:
    """Views of one buffer for a product: rows are the queries of a group of heads that share a key head."""

    def __init__(self, old: _Work | None, shape: tuple[int, int, int], parts: tuple[int, int]) -> None:
        self.shape = heads, rows, positions = shape
        head_dim = parts[0] * parts[1]
        sizes = np.cumsum([0, positions, head_dim, head_dim, 1, 1]) * heads * rows
        self.buffer: Floats = (
            old.buffer if old and old.buffer.size >= sizes[-1] else np.empty(sizes[-1], np.float32)
        )
        scores, q, sums, highest, total = (self.buffer[a:b] for a, b in pairwise(sizes))
        self.scores = scores.reshape(shape)
        self.q = q.reshape(heads, rows, head_dim)
        self.sum = sums.reshape(heads, parts[0], rows, parts[1])
        self.highest, self.total = highest.reshape(heads, rows, 1), total.reshape(heads, rows, 1)
