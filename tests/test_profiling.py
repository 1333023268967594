"""A profile counts every part once, and timing changes no result."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from small_configs import BITNET as SMALL_BITNET
from small_configs import LLAMA
from small_configs import QWEN3 as SMALL_QWEN3

from tmac_llm import profiling
from tmac_llm.bench import BenchTest
from tmac_llm.load import load_decoder
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.profiling import LINEARS, PARTS, Timer, timed_decoder
from tmac_llm.synthetic import SyntheticModel

LAYERS = 3
CONFIG, BITNET, QWEN3 = (
    {**config, "num_hidden_layers": LAYERS} for config in (LLAMA, SMALL_BITNET, SMALL_QWEN3)
)


def synthetic(config: dict[str, object] = CONFIG) -> SyntheticModel:
    return SyntheticModel(ModelConfig.from_dict(config), bits=2, group_size=32)


class CountingTimer(Timer):
    """A clock that ticks once per look, and how often each part ran."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.now = 0
        super().__init__(self._tick)

    def _tick(self) -> int:
        self.now += 1
        return self.now

    def timed(self, name, function):
        def call(*arguments):
            self.calls[name] += 1
            return function(*arguments)

        return super().timed(name, call)


@pytest.mark.parametrize(("config", "norms"), [(CONFIG, 2), (BITNET, 4), (QWEN3, 3)])
@pytest.mark.parametrize("n", [1, 5])
def test_every_part_is_timed_and_nothing_else_changes(config, norms, n):
    decoder = load_decoder(synthetic(config))
    timer = CountingTimer()
    timed = timed_decoder(decoder, timer)
    ids, results = np.arange(n), []
    for each in (decoder, timed):
        logits = each.forward(ids, KVCache(decoder.config, 8))
        results.append(np.array(logits))
    np.testing.assert_array_equal(*results)
    once = {"embedding": 1, "lm_head": 1, "RoPE": LAYERS + 1, "norms": norms * LAYERS + 1}
    assert timer.calls == {
        **once,
        **dict.fromkeys(["attention", "activation", *LINEARS[:-1]], LAYERS),
    }
    assert timer.ns == timer.calls  # one tick between the looks at the clock
    timer.calls.clear()
    decoder.forward(ids, KVCache(decoder.config, 8))
    assert not timer.calls


@pytest.mark.parametrize("cache_type", ["f32", "int8"])
def test_parts_sum_up(cache_type):
    source = synthetic()
    tests = [BenchTest(0, 4, 0), BenchTest(0, 4, 130), BenchTest(200, 0, 7)]
    seen = []
    profiles = list(
        profiling.run(
            load_decoder(source), source, tests, cache_type=cache_type, on_progress=lambda *a: seen.append(a)
        )
    )
    assert [profile.test for profile in profiles] == tests
    assert [profile.n_tokens for profile in profiles] == [1, 1, 200]
    assert [name for name, _, _ in seen] == [test.name for test in tests]
    for profile in profiles:
        assert tuple(profile.parts_ns) == PARTS
        assert (profile.parts_ns["sampling"] > 0) == (profile.test.n_gen > 0)
        assert all(profile.parts_ns[name] > 0 for name in PARTS if name != "sampling")
        outside = profile.total_ns - sum(profile.parts_ns[name] for name in LINEARS)
        assert profile.outside_share == pytest.approx(outside / profile.total_ns)
        no_layer = profile.parts_ns["embedding"] + profile.parts_ns["sampling"]
        assert profile.outside_layer_us == pytest.approx((outside - no_layer) / LAYERS / 1e3)
        assert profile.tables_ns is not None


def test_the_middle_half_counts():
    passes = [{"norms": ns, "rest": ns} for ns in (1000, 1, 5, 7, 0, 9, 6, 2000)]
    assert profiling._middle(passes)["norms"] == pytest.approx((5 + 6 + 7 + 9) / 4)
    assert profiling._middle([{"rest": 3}]) == {**dict.fromkeys(PARTS, 0), "rest": 3}


def test_a_float_model_has_no_tables():
    config = ModelConfig.from_dict(CONFIG)
    assert profiling.tables_ns(SyntheticModel(config, bits=16, head_bits=16), 4) is None
