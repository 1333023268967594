"""The two kinds of cache of a layer: what is written is what the products see."""

import numpy as np
import pytest
from cached_keys import key_tiles

from tmac_llm.model import layer_cache
from tmac_llm.model.layer_cache import TILE, FloatLayerCache, Int8LayerCache, quantize

HEADS, DIM, ROWS = 3, 80, 4


def filled(kind, n: int, seed: int = 0):
    """(cache of n positions, keys, values (n, heads, dim))."""
    rng = np.random.default_rng(seed)
    k, v = rng.standard_normal((2, n, HEADS, DIM), np.float32)
    cache = kind(HEADS, DIM)
    cache.grow(-(-n // TILE))
    cache.bind_write(0, k, v)(cache)
    return cache, k.astype(np.float64), v.astype(np.float64)


# Codes are off by half of max |x| / 127; sums of DIM such errors with Gaussian factors.
KINDS = [(FloatLayerCache, 1e-5), (Int8LayerCache, 0.4)]


@pytest.mark.parametrize(("kind", "tolerance"), KINDS)
@pytest.mark.parametrize(("begin", "n"), [(0, 16), (0, 64), (64, 64), (0, 128), (64, 128)])
@pytest.mark.parametrize("heads", [slice(None), slice(1, 2)])
def test_scores(kind, tolerance, begin, n, heads):
    cache, k, _ = filled(kind, 192)
    q = np.random.default_rng(1).standard_normal((HEADS, ROWS, DIM), np.float32)[heads]
    out = np.full((len(q), ROWS, n), np.nan, np.float32)
    cache.bind_scores(q, heads, begin, out)(cache)
    expected = np.einsum("hrd,nhd->hrn", q, k[begin : begin + n, heads])
    np.testing.assert_allclose(out, expected, atol=tolerance)


@pytest.mark.parametrize(("kind", "tolerance"), KINDS)
@pytest.mark.parametrize("before", [0, 1, 15, 16, 62, 63, 64, 100, 127, 150])
@pytest.mark.parametrize("begin", [0, 64, 128])
def test_scores_of_the_latest_token(kind, tolerance, begin, before):
    """Behind `before` tokens that were written together."""
    if begin > before:
        pytest.skip("nothing is there")
    cache, k, _ = filled(kind, before or 1)
    cache.grow(3)
    one = np.random.default_rng(4).standard_normal((1, HEADS, DIM), np.float32)
    cache.bind_write(before, one, one)(cache)
    q = np.random.default_rng(1).standard_normal((HEADS, ROWS, DIM), np.float32)
    multiply, scores = cache.bind_latest_scores(q, begin, before + 1)
    multiply(cache)
    expected = np.einsum("hrd,nhd->hrn", q, np.concatenate([k[begin:before], one]))
    np.testing.assert_allclose(scores, expected, atol=tolerance)


@pytest.mark.parametrize(("kind", "tolerance"), KINDS)
@pytest.mark.parametrize(("begin", "n"), [(0, 1), (3, 5), (60, 100), (0, 190)])
def test_weighted_sum(kind, tolerance, begin, n):
    cache, _, v = filled(kind, 190)
    p = np.random.default_rng(2).random((HEADS, ROWS, n), np.float32)
    p /= p.sum(axis=2, keepdims=True)
    expected = np.einsum("hrn,nhd->hrd", p, v[begin : begin + n])
    out = np.full((HEADS, 2, ROWS, DIM // 2), np.nan, np.float32)
    cache.bind_weighted_sum(p, slice(None), begin, out)(cache)
    found = out.transpose(0, 2, 1, 3).reshape(HEADS, ROWS, DIM)
    np.testing.assert_allclose(found, expected, atol=min(tolerance, 0.02))


@pytest.mark.parametrize("kind", [FloatLayerCache, Int8LayerCache])
def test_one_by_one_or_together(kind):
    rng = np.random.default_rng(3)
    k, v = rng.standard_normal((2, 150, HEADS, DIM), np.float32)
    together, single = kind(HEADS, DIM), kind(HEADS, DIM)
    together.grow(3)
    together.bind_write(0, k[:90], v[:90])(together)
    together.bind_write(90, k[90:], v[90:])(together)
    for t in range(150):
        if t % TILE == 0:
            single.grow(t // TILE + 1)  # what is there stays
        single.bind_write(t, k[t : t + 1], v[t : t + 1])(single)
    np.testing.assert_array_equal(key_tiles(together), key_tiles(single))
    for name, array in vars(together).items():
        if isinstance(array, np.ndarray) and name not in ("keys", "latest"):
            np.testing.assert_array_equal(array, getattr(single, name), err_msg=name)
    assert together.n_bytes == single.n_bytes > 0


def test_codes_are_the_nearest_of_255():
    rng = np.random.default_rng(4)
    sizes = 10.0 ** rng.integers(-6, 6, (40, HEADS, 1))
    x = (rng.standard_normal((40, HEADS, DIM)) * sizes).astype(np.float32)
    codes, scales = quantize(x)
    assert codes.dtype == np.uint8
    assert (codes.min(), codes.max()) == (1, 255)
    back = (codes.astype(np.float64) - 128) * scales[..., None]
    assert (np.abs(back - x) <= scales[..., None] * 0.5001).all()
    np.testing.assert_allclose(scales, np.abs(x).max(axis=2) / 127, rtol=1e-6)


def test_zeros_stay_zeros():
    codes, scales = quantize(np.zeros((1, HEADS, DIM), np.float32))
    assert (codes == 128).all()
    assert not scales.any()


def test_int8_takes_little_more_than_a_quarter():
    floats, codes = filled(FloatLayerCache, 128)[0], filled(Int8LayerCache, 128)[0]
    assert codes.n_bytes == pytest.approx((floats.n_bytes - floats.latest.nbytes) * (1 / 4 + 1 / DIM))


def test_raising_in_blocks_gives_the_same(monkeypatch):
    cache, _, _ = filled(Int8LayerCache, 128)
    rng = np.random.default_rng(5)
    q, p = rng.standard_normal((HEADS, ROWS, DIM), np.float32), rng.random((HEADS, ROWS, 128), np.float32)
    scores, sums = (
        np.empty((2, HEADS, ROWS, 128), np.float32),
        np.empty((2, HEADS, 2, ROWS, DIM // 2), np.float32),
    )
    for i, block in enumerate((layer_cache._BLOCK, 2 * 128 * DIM)):
        monkeypatch.setattr(layer_cache, "_BLOCK", block)
        cache.bind_scores(q, slice(None), 0, scores[i])(cache)
        cache.bind_weighted_sum(p.copy(), slice(None), 0, sums[i])(cache)
    np.testing.assert_array_equal(*scores)
    np.testing.assert_array_equal(*sums)
