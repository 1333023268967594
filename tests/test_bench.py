"""What benchmarks count and check; not how long anything takes."""

from __future__ import annotations

import numpy as np
import pytest
from small_configs import LLAMA

from tmac_llm import bench, bench_kernels, bench_threads, kernels
from tmac_llm.bench import BenchResult, BenchTest
from tmac_llm.errors import KernelError, UsageError
from tmac_llm.load import load_decoder
from tmac_llm.model.config import ModelConfig
from tmac_llm.synthetic import SyntheticModel

CONFIG = {**LLAMA, "max_position_embeddings": 64}


def synthetic(**fields: object) -> SyntheticModel:
    return SyntheticModel(ModelConfig.from_dict({**CONFIG, **fields}), bits=2, group_size=32)


def test_plan() -> None:
    tests = bench.plan([512, 0], [0, 128], [0, 16])
    assert [test.name for test in tests] == ["pp512", "pp512 @ d16", "tg128", "tg128 @ d16"]
    assert [test.n_tokens for test in tests] == [512, 512, 128, 128]
    with pytest.raises(UsageError, match="nothing to measure"):
        bench.plan([0], [0], [0])


def test_statistics() -> None:
    result = BenchResult(BenchTest(0, 10), 2, [10**9, 2 * 10**9, 5 * 10**9])
    assert result.samples_ts == [10, 5, 2]
    assert result.avg_ts == pytest.approx(17 / 3)
    assert result.median_ts == 5
    assert result.stddev_ts == pytest.approx(4.0414518843)
    assert BenchResult(BenchTest(5, 0), 1, [10**9]).stddev_ts == 0


@pytest.mark.parametrize("tie", [True, False])
def test_weights_are_counted(tie: bool) -> None:
    model = synthetic(tie_word_embeddings=tie)
    per_layer = 128 * (128 + 2 * 64) + 128 * 128 + 3 * 128 * 192
    facts = bench.weight_facts(model)
    assert facts.n_params == 2 * per_layer + 300 * 128 * (1 if tie else 2)
    decoded = [f"model.layers.{i}.{part}" for i in range(2) for part in LINEARS]
    decoded.append("model.embed_tokens" if tie else "lm_head")
    assert facts.n_bytes == sum(len(model.tiles(name)) for name in decoded)


LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def test_every_token_is_fed_and_threads_are_restored() -> None:
    decoder = load_decoder(synthetic())
    fed = []
    forward = decoder.forward

    def counted(ids, cache, logits="last"):
        fed.append((len(ids), cache.length, kernels.n_threads()))
        return forward(ids, cache, logits=logits)

    decoder.forward = counted
    before = kernels.n_threads()
    seen = []
    tests = bench.plan([8], [3], [5])
    results = list(
        bench.run(decoder, tests, threads=[1, 2], repetitions=2, on_progress=lambda *a: seen.append(a))
    )
    assert [len(result.samples_ns) for result in results] == [2, 2, 2, 2]
    prefill = [(5, 0, before)] + 3 * [(8, 5, 1), (8, 5, 2)]
    steps = 3 * [(1, 5 + i, n) for n in (1, 2) for i in range(3)]
    assert fed == [*prefill, (5, 0, before), *steps] or fed == [*prefill, (5, 0, 2), *steps]
    assert seen[-1][1:] == (12, 12)
    assert kernels.n_threads() == before


def test_bandwidth_is_of_pairs() -> None:
    result = BenchResult(BenchTest(0, 10), 2, [10**9, 2 * 10**9, 5 * 10**9], [100.0, 40.0, 25.0])
    assert result.bandwidth(8) == (40, 40, 0.8)
    assert BenchResult(BenchTest(5, 0), 2, [10**9]).bandwidth(8) is None


def test_decoding_is_measured_against_reads_of_the_same_weights() -> None:
    model = synthetic()
    decoder = load_decoder(model)
    assert sum(matrix.n_bytes for matrix in decoder.matrices) == bench.weight_facts(model).n_bytes
    prefill, decode = bench.run(decoder, bench.plan([4], [2], [0]), threads=[1], repetitions=3)
    assert prefill.reads == []
    assert len(decode.reads) == 3
    assert min(decode.reads) > 0


def test_the_share_is_of_the_slower_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of 2 s: against a read of 1 s in memory or the cache's 0.5 s, then against the cache's 1.5 s."""
    case = bench_kernels.Case("", "small", 64, 128, 2, 64, 1, "int8")
    monkeypatch.setattr(bench_kernels, "_time", lambda *_: ([2.0, 4.0, 2.0], [1.0, 1.0, 1.0]))
    for seconds, ceiling, share in ((0.5, "read", 0.5), (1.5, "cache", 0.75)):
        monkeypatch.setattr(bench_kernels, "_cache_rate", lambda *_, s=seconds: 64 * 128 / s)
        (result,) = bench_kernels.run(case, threads=[1], from_memory=False)
        assert (result.ceiling, result.share, result.cache_seconds) == (ceiling, share, seconds)


def test_threads_are_measured_and_restored(threads: None) -> None:
    kernels.set_threads(3)
    result = bench_threads.run(2, rounds=1, rest=0.01)
    assert kernels.n_threads() == 3
    assert result.n_threads == 2
    assert result.speedup > 0
    assert result.idle_seconds >= 0


def test_a_test_longer_than_the_context_is_refused() -> None:
    decoder = load_decoder(synthetic())
    with pytest.raises(UsageError, match="needs 65 tokens, the context has 64"):
        list(bench.run(decoder, bench.plan([60], [0], [5]), threads=[1], repetitions=1))


def test_kernel_cases() -> None:
    cases = bench_kernels.cases(["bitnet-2b-4t"], [2, None], [1, 8])
    assert len(cases) == 4 * 2 * 2
    assert {(case.m, case.k) for case in cases} == {(3840, 2560), (2560, 2560), (13824, 2560), (2560, 6912)}
    assert {case.tables for case in cases if case.bits is None} == {"exact"}
    with pytest.raises(UsageError, match="llama-2-7b"):
        bench_kernels.cases(["nothing"], [2], [1])


@pytest.mark.parametrize("bits", [1, 4, None])
@pytest.mark.parametrize("n", [1, 3])
def test_kernel_results(bits: int | None, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "MEMORY_BYTES", 100_000)
    monkeypatch.setattr(bench_kernels, "CACHE_ROUNDS", 1)
    case = bench_kernels.Case("", "small", 200, 384, bits, 64, n, "exact" if bits is None else "int8")
    (result,) = bench_kernels.run(case, threads=[1], rounds=1)
    assert result.n_bytes == kernels.memory_size(case.shape)
    assert result.from_memory == (n == 1)
    assert result.gmacs == pytest.approx(200 * 384 * n / result.seconds / 1e9)
    assert min(result.read_seconds, result.cache_seconds, result.share) > 0
    assert result.ceiling == ("read" if result.read_seconds > result.cache_seconds else "cache")
    assert 0 < result.error < 1.5e-2


def test_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench_kernels.Case("", "small", 64, 128, 2, 64, 1, "int8")
    right = kernels.Matrix.matmul

    def wrong(self, x, out=None, tables="int8", x_scales=None):
        right(self, x, out, tables, x_scales)
        out[..., 5] += 3
        return out

    monkeypatch.setattr(kernels.Matrix, "matmul", wrong)
    with pytest.raises(KernelError, match="kernel is wrong"):
        list(bench_kernels.run(case, threads=[1], rounds=1))


def test_reading_touches_every_byte() -> None:
    """The ceiling counts only if it is a whole read: flipping any block's bytes changes the checksum."""
    shape = kernels.MatrixShape(200, 256, 3, 32, True, 0.0)
    data = bench_kernels.random_tiles(shape, np.random.default_rng(0))
    checksum = kernels.Matrix(shape, data).read()
    if kernels.isa_selected() in ("avx512", "scalar"):  # these keep the order of the file
        assert checksum == int(np.bitwise_xor.reduce(data.view(np.uint64)))
    for at in range(0, len(data), 4321):
        changed = data.copy()
        changed[at] ^= 0x01
        assert kernels.Matrix(shape, changed).read() != checksum
