"""Passes bound to arrays once: caches take turns, and nothing keeps memory that nobody uses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from small_configs import BITNET, LLAMA, QWEN3

from tmac_llm.errors import KernelError
from tmac_llm.load import load_decoder
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.decoder import Decoder
from tmac_llm.model.kv_cache import CacheType, KVCache
from tmac_llm.synthetic import SyntheticModel

CONFIGS = [
    LLAMA,
    BITNET,
    QWEN3,
    {**LLAMA, "model_type": "mistral", "sliding_window": 70},
]


def load(config: dict[str, object] = LLAMA) -> Decoder:
    return load_decoder(SyntheticModel(ModelConfig.from_dict(config), bits=2, group_size=32))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what reference counts free is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["model_type"])
def test_caches_take_turns(config):
    """Caches of both types that grow and are cut back, single tokens and prompts: each as if it were alone."""
    ids = np.random.default_rng(0).integers(0, 300, 400)
    steps = [
        (0, 3),
        (0, 1),
        (0, 1),
        (0, 260),
        (0, 1),
        (200, 1),
        (0, 3),
        (0, 70),
        (0, 1),
        (0, 1),
    ]  # truncate to, feed

    def run(decoder: Decoder, kind: CacheType) -> Iterator[np.ndarray]:
        cache = KVCache(decoder.config, 400, kind)
        for length, n in steps:
            if length:
                cache.truncate(length)
            logits = decoder.forward(ids[cache.length : cache.length + n], cache)
            yield np.array(logits)

    kinds: tuple[CacheType, ...] = ("f32", "int8", "f32")
    alone = [list(run(load(config), kind)) for kind in kinds]
    shared = load(config)
    together = zip(*(run(shared, kind) for kind in kinds), strict=True)
    for step, found in enumerate(together):
        for expected, logits in zip(alone, found, strict=True):
            np.testing.assert_array_equal(logits, expected[step])
    assert np.abs(alone[0][-1] - alone[1][-1]).max() > 0


def test_logits_of_all_tokens_stay_when_others_follow():
    decoder, cache = load(), KVCache(ModelConfig.from_dict(LLAMA), 16)
    every = [decoder.forward(np.array([token]), cache, "all") for token in (1, 2)]
    assert not np.array_equal(*every)


def test_one_token_and_the_latest_other_number_stay_bound():
    decoder, cache = load(), KVCache(ModelConfig.from_dict(LLAMA), 64)
    for n in (5, 1, 7, 1, 9):
        decoder.forward(np.arange(n), cache)
    assert set(decoder._passes) == {1, 9}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["model_type"])
def test_weights_go_with_the_decoder(config):
    decoder = load(config)
    for n in (1, 5):
        decoder.forward(np.arange(n), KVCache(decoder.config, 8))
    weights = [weakref.ref(matrix._handle) for matrix in decoder.matrices]
    assert all(ref() is not None for ref in weights)
    del decoder
    assert all(ref() is None for ref in weights)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("n", [1, 5])
def test_a_cache_goes_with_its_last_user(n):
    decoder = load()

    def poison(x: np.ndarray) -> None:
        x[:] = np.nan

    for observe in (None, poison):
        cache = KVCache(decoder.config, 8)
        keys = weakref.ref(cache.layers[0].keys)
        layer = weakref.ref(cache.layers[0])
        try:
            decoder.forward(np.arange(n), cache, observe=observe)
        except KernelError:
            assert observe
        del cache
        assert keys() is None
        assert layer() is None
