"""Tiled attention against a plain double-precision loop, over odd sizes, windows, chunks and threads."""

from dataclasses import replace

import numpy as np
import pytest
import reference_forward
from reference_forward import CONFIG

from tmac_llm import kernels
from tmac_llm.model import attention as module
from tmac_llm.model.attention import Attention
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.model.layer_cache import FloatLayerCache, Int8LayerCache, quantize

SHAPES = [(4, 4, 16), (4, 2, 24), (6, 1, 96), (3, 3, 100), (2, 1, 80), (2, 2, 256), (5, 5, 2), (20, 5, 128)]


def run(heads, kv_heads, dim, chunks, window=None, seed=0, cache_type="f32"):
    """Attention over a sequence fed in chunks, (ours, expected): (n, heads, dim)."""
    config = replace(
        CONFIG,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=dim,
        sliding_window=window,
        num_hidden_layers=1,
    )
    total = sum(chunks)
    rng = np.random.default_rng(seed)
    q = (rng.standard_normal((total, heads, dim)) * 2).astype(np.float32)
    k, v = rng.standard_normal((2, total, kv_heads, dim), np.float32)
    cache, attention, outs, begin = KVCache(config, total, cache_type), Attention(config), [], 0
    scaled_q, scaled_k = q * np.float32(dim**-0.25), k * np.float32(dim**-0.25)
    for n in chunks:
        part = slice(begin, begin + n)
        cache.reserve(n)
        out = np.full((n, heads, dim), np.nan, np.float32)
        layer = cache.append(0, scaled_k[part], v[part])
        attention.bind(scaled_q[part], layer, begin, out)(layer)
        cache.advance(n)
        outs.append(out)
        begin += n
    return np.concatenate(outs), reference_forward.attention(q, k, v, window)


def assert_close(found, expected):
    # Scores up to about 30 in float32 are off by 30 * 2^-24 * a few, which exp turns into relative error.
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
@pytest.mark.parametrize("chunks", [[1, 1, 1], [1, 64, 1, 63, 1], [130, 1, 7]])
def test_equals_plain_attention(heads, kv_heads, dim, chunks):
    assert_close(*run(heads, kv_heads, dim, chunks))


@pytest.mark.parametrize("window", [1, 8, 63, 64, 65, 100, 1000])
@pytest.mark.parametrize("chunks", [[1] * 140, [140], [50, 70, 1, 19], [64, 64, 12]])
def test_sliding_window(window, chunks):
    assert_close(*run(4, 2, 24, chunks, window))


@pytest.mark.parametrize("window", [None, 70])
def test_small_portions_give_the_same(monkeypatch, window):
    whole, expected = run(4, 2, 24, [150, 50], window)
    monkeypatch.setattr(module, "_SCORES", 1)
    small, _ = run(4, 2, 24, [150, 50], window)
    assert_close(small, expected)
    assert_close(small, whole)


@pytest.mark.parametrize("kv_heads", [2, 3, 5])
def test_one_token_split_over_threads_gives_the_same(monkeypatch, kv_heads):
    whole, _ = run(2 * kv_heads, kv_heads, 24, [100, 1, 1])
    monkeypatch.setattr(FloatLayerCache, "portion", 1)
    split, expected = run(2 * kv_heads, kv_heads, 24, [100, 1, 1])
    assert_close(split, whole)
    assert_close(split, expected)


@pytest.mark.parametrize("cache_type", ["f32", "int8"])
@pytest.mark.parametrize("window", [None, 70, 128])
@pytest.mark.parametrize("portion", [1, 2 * 2 * 24 * 70, 2 * 2 * 24 * 150])
def test_positions_in_portions(monkeypatch, cache_type, window, portion):
    """Split over positions, in 2 to 5 portions that end where tiles do, a token sees the same."""
    whole, _ = run(4, 2, 24, [290, 1, 1], window, cache_type=cache_type)
    for kind in (FloatLayerCache, Int8LayerCache):
        monkeypatch.setattr(kind, "portion", portion)
    split, _ = run(4, 2, 24, [290, 1, 1], window, cache_type=cache_type)
    assert_close(split, whole)


def test_portions_are_powers_of_two():
    attend = Attention(replace(CONFIG, num_key_value_heads=2, head_dim=24))
    sizes = (1, 64, 65, 128, 129, 256, 257, 10**9)
    assert [attend._portions(n, 96 * 64) for n in sizes] == [1, 1, 2, 2, 4, 4, 8, module._MOST_PORTIONS]


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
@pytest.mark.parametrize("chunks", [[1, 64, 1, 63, 1], [130, 1, 7]])
def test_int8_equals_plain_attention_over_rounded_keys_and_values(heads, kv_heads, dim, chunks, window):
    found, _ = run(heads, kv_heads, dim, chunks, window, cache_type="int8")
    total, rng = sum(chunks), np.random.default_rng(0)
    q = (rng.standard_normal((total, heads, dim)) * 2).astype(np.float32)
    k, v = rng.standard_normal((2, total, kv_heads, dim), np.float32)
    root = np.float32(dim**-0.25)
    expected = reference_forward.attention(q, rounded(k * root) / root, rounded(v), window)
    # Scores are differences of sums of codes around 128: 128 times the rounding errors of a plain product.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def rounded(x):
    """What the codes of x stand for."""
    codes, scales = quantize(x)
    return (codes.astype(np.float64) - 128) * scales[..., None]


def test_threads_do_not_change_a_bit():
    results = []
    before = kernels.n_threads()
    try:
        for n_threads in (1, 2, 3):
            kernels.set_threads(n_threads)
            results.append(run(8, 4, 24, [200, 100, 1])[0])
    finally:
        kernels.set_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_large_scores_do_not_overflow():
    found, expected = run(4, 2, 24, [70, 1])
    config = replace(CONFIG, num_hidden_layers=1)
    cache, out = KVCache(config, 4), np.empty((3, 4, 24), np.float32)
    q = np.full((3, 4, 24), 1e3, np.float32)
    k = np.full((3, 2, 24), 1e3, np.float32)
    v = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 2, 24), np.float32)
    cache.reserve(3)
    layer = cache.append(0, k, v)
    Attention(config).bind(q, layer, 0, out)(layer)
    np.testing.assert_allclose(out[:, 0, 0], [0, 0.5, 1.0], rtol=1e-6)
    assert_close(found, expected)
