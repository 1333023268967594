"""Keys and values of the tokens seen so far, in tiles that BLAS reads without packing; knows no weights.

A tile holds 64 positions. numpy multiplies every tile as a small matrix of its own, which OpenBLAS reads in
place: several times faster than one product over a (kv_heads, positions, head_dim) cache.

    keys    (kv_heads, tiles, head_dim, 64)
    values  (kv_heads, tiles, parts, 64, head_dim / parts)      columns of a part: value_part(head_dim)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tmac_llm.errors import ContextLengthError
from tmac_llm.model.config import ModelConfig

Floats = npt.NDArray[np.float32]

TILE = 64
_FIRST_TILES = 4


class LayerCache(NamedTuple):
    """What one layer keeps, float32, in the shapes above. Beyond the length: zeros or stale values."""

    keys: Floats
    values: Floats


def value_part(head_dim: int) -> int:
    """Columns of one value tile: the largest divisor of head_dim up to 64, unless that is a sliver."""
    largest = max(part for part in range(1, 65) if head_dim % part == 0)
    return largest if largest >= 16 else head_dim


class KVCache:
    """A cache for `max_length` tokens of one sequence. Memory doubles when it is full, up to max_length.

    A pass over n tokens: reserve(n), append(layer, ...) for every layer, advance(n).
    """

    def __init__(self, config: ModelConfig, max_length: int) -> None:
        self.length = 0
        self.max_length = max_length
        self._part = value_part(config.head_dim)
        kv_heads, head_dim = config.num_key_value_heads, config.head_dim
        keys = np.zeros((kv_heads, 0, head_dim, TILE), np.float32)
        values = np.zeros((kv_heads, 0, head_dim // self._part, TILE, self._part), np.float32)
        self._layers = [LayerCache(keys, values) for _ in range(config.num_hidden_layers)]

    @property
    def n_bytes(self) -> int:
        """Bytes allocated."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers)

    def reserve(self, n: int) -> None:
        """Make room for n more tokens. Raises ContextLengthError beyond max_length."""
        end = self.length + n
        if end > self.max_length:
            raise ContextLengthError(
                f"the context holds {self.length} tokens of at most {self.max_length}, no room for {n} more;"
                " shorten the prompt, or clear the conversation"
            )
        tiles = self._layers[0].keys.shape[1]
        needed = -(-end // TILE)
        if needed > tiles:
            tiles = min(max(needed, 2 * tiles, _FIRST_TILES), -(-self.max_length // TILE))
            for i, layer in enumerate(self._layers):  # one by one: little is held twice
                self._layers[i] = LayerCache(*(_grown(array, tiles) for array in layer))

    def layer(self, layer: int) -> LayerCache:
        """The arrays of a layer, valid until the next `reserve`."""
        return self._layers[layer]

    def append(self, layer: int, k: Floats, v: Floats) -> LayerCache:
        """Store rotated keys and values, float32 (n, kv_heads, head_dim), behind `length`, which stays."""
        arrays = self._layers[layer]
        n, heads, _ = k.shape
        v = v.reshape(n, heads, -1, self._part)
        if n == 1:
            tile, at = divmod(self.length, TILE)
            arrays.keys[:, tile, :, at] = k[0]
            arrays.values[:, tile, :, at] = v[0]
            return arrays
        done = 0
        while done < n:
            tile, at = divmod(self.length + done, TILE)
            count = min(TILE - at, n - done)
            arrays.keys[:, tile, :, at : at + count] = k[done : done + count].transpose(1, 2, 0)
            arrays.values[:, tile, :, at : at + count] = v[done : done + count].transpose(1, 2, 0, 3)
            done += count
        return arrays

    def advance(self, n: int) -> None:
        """The n tokens after `length`, appended in every layer, belong to the sequence."""
        self.length += n

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens (n <= length)."""
        assert 0 <= n <= self.length
        self.length = n


def _grown(array: Floats, tiles: int) -> Floats:
    kv_heads, old, *tile = array.shape
    larger = np.zeros((kv_heads, tiles, *tile), np.float32)  # the system commits pages as they are touched
    larger[:, :old] = array
    return larger
