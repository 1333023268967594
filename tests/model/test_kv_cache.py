"""The tiled cache holds what was appended, wherever chunks end, and grows without losing or copying much."""

from dataclasses import replace

import numpy as np
import pytest
from cached_keys import key_tiles
from hypothesis import given
from hypothesis import strategies as st
from reference_forward import CONFIG

from tmac_llm.errors import ContextLengthError, UsageError
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.model.layer_cache import TILE, value_part


def contents(cache: KVCache, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """keys and values (length, kv_heads, head_dim) of a float32 cache."""
    held = cache.layers[layer]
    found = key_tiles(held)
    heads, tiles, dim, _ = found.shape
    k = found.transpose(1, 3, 0, 2).reshape(tiles * TILE, heads, dim)
    v = held.values.transpose(2, 0, 1, 3).reshape(tiles * TILE, heads, dim)
    return k[: cache.length], v[: cache.length]


def feed(cache: KVCache, k: np.ndarray, v: np.ndarray) -> None:
    cache.reserve(k.shape[1])
    for layer in range(2):
        cache.append(layer, k[layer], v[layer])
    cache.advance(k.shape[1])


@pytest.mark.parametrize("head_dim", [2, 16, 24, 64, 80, 96, 100, 122, 128, 134, 256])
@pytest.mark.parametrize("chunks", [[1] * 70, [64, 64, 1], [63, 2, 200, 1, 1], [130], [300, 5]])
def test_what_was_appended_is_there(chunks, head_dim):
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 2, sum(chunks), 2, head_dim), np.float32)
    cache = KVCache(replace(CONFIG, head_dim=head_dim), 310)
    ends = np.cumsum(chunks)
    for begin, end in zip(ends - chunks, ends, strict=True):
        feed(cache, k[:, begin:end], v[:, begin:end])
    for layer in range(2):
        keys, values = contents(cache, layer)
        np.testing.assert_array_equal(keys, k[layer])
        np.testing.assert_array_equal(values, v[layer])


def test_value_parts_divide_the_head():
    parts = {d: value_part(d) for d in (16, 24, 80, 96, 100, 128, 134, 256)}
    assert parts == {16: 16, 24: 24, 80: 40, 96: 48, 100: 50, 128: 64, 134: 134, 256: 64}


def test_truncate_then_append_overwrites():
    rng = np.random.default_rng(1)
    k, v = rng.standard_normal((2, 2, 100, 2, 24), np.float32)
    cache = KVCache(CONFIG, 128)
    feed(cache, k, v)
    cache.truncate(40)
    feed(cache, -k[:, 40:90], -v[:, 40:90])
    keys, values = contents(cache, 1)
    np.testing.assert_array_equal(keys, np.concatenate([k[1, :40], -k[1, 40:90]]))
    np.testing.assert_array_equal(values, np.concatenate([v[1, :40], -v[1, 40:90]]))


@given(steps=st.lists(st.integers(-130, 130), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_any_order_of_tokens_chunks_and_truncations(steps: list[int], seed: int) -> None:
    """Positive: a chunk of so many tokens, or as many single ones where odd; negative: so many are forgotten."""
    rng = np.random.default_rng(seed)
    cache, wanted = KVCache(CONFIG, 2000), np.empty((0, 2, 24), np.float32)
    q = rng.standard_normal((2, 3, 24), np.float32)
    for step in steps:
        if step <= 0:
            cache.truncate(max(cache.length + step, 0))
            wanted = wanted[: cache.length]
            continue
        k = rng.standard_normal((step, 2, 24), np.float32)
        for chunk in np.split(k, step) if step % 2 else [k]:
            feed(cache, np.stack([chunk, chunk]), np.stack([chunk, chunk]))
        wanted = np.concatenate([wanted, k])
        keys, values = contents(cache, 1)
        np.testing.assert_array_equal(keys, wanted)
        np.testing.assert_array_equal(values, wanted)
        if step % 2:
            begin = rng.integers(0, -(-cache.length // TILE)) * TILE
            multiply, scores = cache.layers[1].bind_latest_scores(q, begin, cache.length)
            multiply(cache.layers[1])
            np.testing.assert_allclose(scores, np.einsum("hrd,nhd->hrn", q, wanted[begin:]), atol=1e-5)


def test_growth_is_geometric_and_bounded():
    cache = KVCache(CONFIG, 10_000)
    zeros = np.zeros((1, 2, 24), np.float32)
    copied, before = 0, cache.layers[0].keys
    for _ in range(4000):
        cache.reserve(1)
        if cache.layers[0].keys is not before:
            copied += before.shape[1]
            before = cache.layers[0].keys
        for layer in range(2):
            cache.append(layer, zeros, zeros)
        cache.advance(1)
    assert copied <= 2 * 4000 / TILE
    small = KVCache(CONFIG, 70)
    small.reserve(70)
    assert small.layers[0].keys.shape[1] == 2
    assert small.n_bytes == 2 * (2 * (2 * 2 * TILE * 24) + 2 * TILE * 24) * 4


def test_cache_types():
    small, large = (KVCache(CONFIG, 64, kind) for kind in ("int8", "f32"))
    for cache in (small, large):
        cache.reserve(64)
    # One tile of each layer is held twice where tokens come one by one.
    assert large.n_bytes / 6 < small.n_bytes < large.n_bytes / 4
    with pytest.raises(UsageError, match="cache type: expected f32 or int8, found 'q4'"):
        KVCache(CONFIG, 64, "q4")


def test_a_full_context_is_refused_and_nothing_changes():
    cache = KVCache(CONFIG, 70)
    feed(cache, *np.zeros((2, 2, 60, 2, 24), np.float32))
    with pytest.raises(ContextLengthError, match=r"holds 60 tokens of at most 70, no room for 11 more"):
        cache.reserve(11)
    assert cache.length == 60
    cache.reserve(10)
