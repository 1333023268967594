"""Keys and values of the tokens so far, in the tiles that numpy's matrix product reads fastest; knows no attention.

K is kept transposed in tiles of 64 positions, (kv_heads, tiles, head_dim, 64), V in tiles of 128 positions by at most
64 columns, (kv_heads, tiles, column_blocks, 128, columns): BLAS multiplies such small contiguous matrices without
packing them, which reads memory several times faster than the obvious (kv_heads, positions, head_dim).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tmac_llm.errors import ContextLengthError
from tmac_llm.model.config import ModelConfig

Floats = npt.NDArray[np.float32]

K_TILE = 64
V_TILE = 128
GROWTH = 512  # positions; the capacity grows by half, in multiples of this


class KVCache:
    """The cache of one sequence. max_length: most positions it may hold. `length`: positions held."""

    def __init__(self, config: ModelConfig, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self._heads, self._dim = config.num_key_value_heads, config.head_dim
        self._columns = max(c for c in range(1, min(self._dim, 64) + 1) if self._dim % c == 0)
        self._keys = [self._empty_keys(0) for _ in range(config.num_hidden_layers)]
        self._values = [self._empty_values(0) for _ in range(config.num_hidden_layers)]

    @property
    def n_bytes(self) -> int:
        """Bytes reserved."""
        return sum(array.nbytes for array in (*self._keys, *self._values))

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        self.length = min(self.length, length)

    def reserve(self, n: int) -> None:
        """Make room for n more positions. Raises ContextLengthError where they exceed max_length."""
        needed = self.length + n
        if needed > self.max_length:
            raise ContextLengthError(
                f"the context holds {self.max_length} tokens, {needed} are needed; shorten the prompt or start afresh"
            )
        capacity = self._keys[0].shape[1] * K_TILE
        if needed <= capacity:
            return
        wanted = min(max(needed, capacity * 3 // 2), self.max_length)
        capacity = -(-wanted // GROWTH) * GROWTH if wanted > V_TILE else V_TILE
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            self._keys[layer] = self._empty_keys(capacity)
            self._keys[layer][:, : keys.shape[1]] = keys
            self._values[layer] = self._empty_values(capacity)
            self._values[layer][:, : values.shape[1]] = values

    def write(self, layer: int, k: Floats, v: Floats) -> None:
        """Store k, v: float32 (n_tokens, kv_heads, head_dim) at positions length .. length + n_tokens of a layer.

        Room was made by reserve(); the positions count once advance() says so.
        """
        keys, values = self._keys[layer], self._values[layer]
        n, begin = len(k), self.length
        if n == 1:
            keys[:, begin // K_TILE, :, begin % K_TILE] = k[0]
            values[:, begin // V_TILE, :, begin % V_TILE] = v[0].reshape(self._heads, -1, self._columns)
            return
        done = 0
        while done < n:  # up to the end of the K tile; V tiles are whole multiples of K tiles
            position = begin + done
            count = min(n - done, K_TILE - position % K_TILE)
            at = position % K_TILE
            keys[:, position // K_TILE, :, at : at + count] = k[done : done + count].transpose(1, 2, 0)
            part = v[done : done + count].reshape(count, self._heads, -1, self._columns)
            at = position % V_TILE
            values[:, position // V_TILE, :, at : at + count] = part.transpose(1, 2, 0, 3)
            done += count

    def advance(self, n: int) -> None:
        """Count n written positions as held."""
        self.length += n

    def keys(self, layer: int, first_tile: int, n_positions: int) -> Floats:
        """View (kv_heads, tiles, head_dim, 64) from V tile `first_tile` to the V tile of position n_positions - 1."""
        end = -(-n_positions // V_TILE) * (V_TILE // K_TILE)
        return self._keys[layer][:, first_tile * (V_TILE // K_TILE) : end]

    def values(self, layer: int, first_tile: int, n_positions: int) -> Floats:
        """View (kv_heads, tiles, column_blocks, 128, columns) over the same positions as keys()."""
        return self._values[layer][:, first_tile : -(-n_positions // V_TILE)]

    def _empty_keys(self, capacity: int) -> Floats:
        # Zeros, so that a position never written cannot turn a product into NaN.
        return np.zeros((self._heads, capacity // K_TILE, self._dim, K_TILE), np.float32)

    def _empty_values(self, capacity: int) -> Floats:
        blocks = self._dim // self._columns
        return np.zeros((self._heads, capacity // V_TILE, blocks, V_TILE, self._columns), np.float32)
