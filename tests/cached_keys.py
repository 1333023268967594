"""The keys of a layer's cache as tiles, wherever they lie."""

from __future__ import annotations

import numpy as np

from tmac_llm.model.layer_cache import FloatLayerCache, LayerCache


def key_tiles(cache: LayerCache) -> np.ndarray:
    """(kv_heads, tiles, head_dim, TILE): those that were written one by one in their tile too."""
    keys: np.ndarray = cache.keys.copy()
    if isinstance(cache, FloatLayerCache) and cache._filled:
        keys[:, cache._tile, :, : cache._filled] = cache.latest[:, : cache._filled].transpose(0, 2, 1)
    return keys
