"""The keys and values of one sequence, layer by layer, for as many tokens as were seen; knows no weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tmac_llm.errors import ContextLengthError, UsageError
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.layer_cache import TILE, FloatLayerCache, Int8LayerCache, LayerCache

Floats = npt.NDArray[np.float32]
CacheType = Literal["f32", "int8"]

CACHE_TYPES: tuple[CacheType, ...] = get_args(CacheType)
_FIRST_TILES = 4


class KVCache:
    """A cache for `max_length` tokens of one sequence. Memory doubles when it is full, up to max_length.

    cache_type: "f32", or "int8" for a quarter of the memory (layer_cache.py); UsageError for anything else.
    A pass over n tokens: reserve(n), append(layer, ...) for every layer, advance(n).

    layers: what each layer keeps.
    """

    def __init__(self, config: ModelConfig, max_length: int, cache_type: CacheType = "f32") -> None:
        if cache_type not in CACHE_TYPES:
            raise UsageError(f"cache type: expected {' or '.join(CACHE_TYPES)}, found {cache_type!r}")
        self.length = 0
        self.max_length = max_length
        self._tiles = 0
        kind = FloatLayerCache if cache_type == "f32" else Int8LayerCache
        self.layers: list[LayerCache] = [
            kind(config.num_key_value_heads, config.head_dim) for _ in range(config.num_hidden_layers)
        ]

    @property
    def n_bytes(self) -> int:
        """Bytes allocated."""
        return sum(layer.n_bytes for layer in self.layers)

    def reserve(self, n: int) -> None:
        """Make room for n more tokens. Raises ContextLengthError beyond max_length."""
        end = self.length + n
        if end > self.max_length:
            raise ContextLengthError(
                f"the context holds {self.length} tokens of at most {self.max_length}, no room for {n} more;"
                " shorten the prompt, or clear the conversation"
            )
        needed = -(-end // TILE)
        if needed > self._tiles:
            most = -(-self.max_length // TILE)
            tiles = min(max(needed, 2 * self._tiles, _FIRST_TILES), most)
            for layer in self.layers:  # one by one: little is held twice
                layer.grow(tiles)
            self._tiles = tiles

    def append(self, layer: int, k: Floats, v: Floats) -> LayerCache:
        """Store rotated keys and values, float32 (n, kv_heads, head_dim), behind `length`, which stays."""
        self.bind_append(k, v)(self.layers[layer])
        return self.layers[layer]

    def bind_append(self, k: Floats, v: Floats) -> Callable[[LayerCache], None]:
        """`append` for all layers: a function of any of `layers`, for as long as `length` stays."""
        return self.layers[0].bind_write(self.length, k, v)

    def advance(self, n: int) -> None:
        """The n tokens after `length`, appended in every layer, belong to the sequence."""
        self.length += n

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens (n <= length)."""
        assert 0 <= n <= self.length
        self.length = n
