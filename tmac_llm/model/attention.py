"""Causal attention of grouped query heads over a tiled KV cache, in numpy; knows no weights.

One matrix product covers all tiles of a cache at once; scores land in (kv_heads, queries, positions), where softmax is
contiguous. A query group is g = heads / kv_heads; g * n rows of one kv head share its keys and values.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import sqrt

import numpy as np
import numpy.typing as npt

from tmac_llm.model.config import ModelConfig
from tmac_llm.model.kv_cache import K_TILE, V_TILE, KVCache

Floats = npt.NDArray[np.float32]

# Scores from which on kv heads are worth spreading over threads: below, starting them costs more than it saves.
_PARALLEL_SCORES = 1 << 20


class Attention:
    """softmax(q k^T / sqrt(head_dim)) v, a query seeing itself, what came before, and with a sliding window of w only
    the w - 1 tokens before it. n_threads: threads for large chunks."""

    def __init__(self, config: ModelConfig, n_threads: int = 1) -> None:
        self._kv_heads, self._dim = config.num_key_value_heads, config.head_dim
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._window = config.sliding_window
        self._scale = np.float32(1 / sqrt(config.head_dim))
        self._scores = np.empty(0, np.float32)
        self._threads = ThreadPoolExecutor(n_threads, "attention") if n_threads > 1 else None
        self._n_threads = n_threads

    def __call__(self, q: Floats, cache: KVCache, layer: int, out: Floats) -> Floats:
        """q: float32 (n_tokens, heads, head_dim) at positions from cache.length on, whose keys and values are written
        but not yet counted. out: float32 (n_tokens, heads * head_dim)."""
        n, begin = len(q), cache.length
        end = begin + n
        first = max(0, begin - self._window + 1) // V_TILE if self._window else 0
        keys, values = cache.keys(layer, first, end), cache.values(layer, first, end)
        rows, width = self._group * n, keys.shape[1] * K_TILE
        grouped = q.reshape(n, self._kv_heads, self._group, self._dim).transpose(1, 2, 0, 3)
        queries = (grouped * self._scale).reshape(self._kv_heads, 1, rows, self._dim)
        size = self._kv_heads * rows * width
        if size > self._scores.size:
            self._scores = np.empty(max(size, self._scores.size * 3 // 2), np.float32)
        scores = self._scores[:size].reshape(self._kv_heads, rows, width)
        mask = self._mask(begin, n, first * V_TILE, width)
        blocks, columns = values.shape[2], values.shape[4]
        result = out.reshape(n, self._kv_heads, self._group, blocks, columns)

        def heads(part: slice) -> None:
            mixed = _attend(queries[part], keys[part], values[part], scores[part], mask, n)
            result[:, part] = mixed.reshape(len(mixed), blocks, self._group, n, columns).transpose(
                3, 0, 2, 1, 4
            )

        if self._threads and size >= _PARALLEL_SCORES:
            step = -(-self._kv_heads // self._n_threads)
            list(self._threads.map(heads, [slice(i, i + step) for i in range(0, self._kv_heads, step)]))
        else:
            heads(slice(None))
        return out

    def _mask(self, begin: int, n: int, base: int, width: int) -> tuple[int, Floats]:
        """First masked column, and what is added from there on: float32 (n, columns), 0 or -inf; one row for n = 1."""
        positions = np.arange(begin, begin + n)[:, None] - base
        start = 0 if self._window else begin - base
        columns = np.arange(start, width)
        hidden = columns > positions
        if self._window:
            hidden |= columns <= positions - self._window
        return start, np.where(hidden, np.float32(-np.inf), np.float32(0))


def _attend(
    queries: Floats, keys: Floats, values: Floats, scores: Floats, mask: tuple[int, Floats], n: int
) -> Floats:
    """float32 (kv_heads, column_blocks, rows, columns) from queries (kv_heads, 1, rows, head_dim)."""
    heads, rows, width = scores.shape
    np.matmul(queries, keys, out=scores.reshape(heads, rows, -1, K_TILE).transpose(0, 2, 1, 3))
    start, hidden = mask
    tail = scores.reshape(heads, -1, n, width)[..., start:]
    tail += hidden
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1)
    tiles = scores.reshape(heads, rows, -1, 1, V_TILE).transpose(0, 2, 3, 1, 4)
    if n == 1:
        mixed = np.matmul(tiles, values).sum(axis=1)
    else:  # add tile by tile: all at once would hold as many results as there are tiles
        mixed = np.matmul(tiles[:, 0], values[:, 0])
        for tile in range(1, tiles.shape[1]):
            mixed += np.matmul(tiles[:, tile], values[:, tile])
    mixed /= total[:, None, :, None]
    return mixed
