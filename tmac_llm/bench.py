"""Measure prefill and decode speed of a model as llama-bench does: random tokens, no sampling, no text.

Knows a decoder and a clock; prints nothing and reads no files. Tokenising and sampling are excluded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tmac_llm import ceiling, kernels
from tmac_llm.energy import EnergyMeter
from tmac_llm.errors import UsageError
from tmac_llm.generation import PREFILL_CHUNK
from tmac_llm.load import Source
from tmac_llm.model.decoder import Decoder
from tmac_llm.model.kv_cache import CacheType, KVCache
from tmac_llm.packed import names


@dataclass(frozen=True)
class BenchTest:
    """One kind of work after n_depth tokens of context: n_prompt tokens at once, or n_gen one at a time."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name: pp512, tg128, tg128 @ d512."""
        work = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{work} @ d{self.n_depth}" if self.n_depth else work

    @property
    def n_tokens(self) -> int:
        """Tokens that one repetition processes."""
        return self.n_prompt or self.n_gen


@dataclass
class BenchResult:
    """The samples of one test at one thread count: nanoseconds per repetition.

    warmup_ns: the run before them, which does not count. samples_j: joules of the CPU packages during each
    repetition, whatever else ran on them; empty where they cannot be read.
    """

    test: BenchTest
    n_threads: int
    samples_ns: list[int] = field(default_factory=list)
    # Bytes per second of plain reads of the weights, one after each sample; none for prompts and float models.
    reads: list[float] = field(default_factory=list)
    warmup_ns: int = 0
    samples_j: list[float] = field(default_factory=list)

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.test.n_tokens * 1e9 / ns for ns in self.samples_ns]

    @property
    def avg_ts(self) -> float:
        """Mean tokens per second."""
        return statistics.fmean(self.samples_ts)

    @property
    def median_ts(self) -> float:
        """Median tokens per second."""
        return statistics.median(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """Sample standard deviation of tokens per second; 0 for one repetition."""
        return statistics.stdev(self.samples_ts) if len(self.samples_ns) > 1 else 0.0

    def bandwidth(self, bytes_per_token: int) -> tuple[float, float, float] | None:
        """Bytes of weights per second while decoding, the same of plain reads, and the share of the second that the
        first is: the median over the pairs. None where nothing was read."""
        if not self.reads:
            return None
        rates = [bytes_per_token * tokens for tokens in self.samples_ts]
        shares = [rate / read for rate, read in zip(rates, self.reads, strict=True)]
        return statistics.median(rates), statistics.median(self.reads), statistics.median(shares)

    @property
    def first_token_ns(self) -> float | None:
        """Median nanoseconds from a prompt to the logits of the first token after it; None for decode tests."""
        return statistics.median(self.samples_ns) if self.test.n_prompt else None

    @property
    def joules_per_token(self) -> float | None:
        """Median over the repetitions; None where energy cannot be read."""
        return statistics.median(self.samples_j) / self.test.n_tokens if self.samples_j else None


@dataclass(frozen=True)
class WeightFacts:
    """n_params: weights of all matrices, a tied embedding once. n_bytes: read to decode one token."""

    n_params: int
    n_bytes: int


def weight_facts(source: Source) -> WeightFacts:
    """Count the weights of a packed or synthetic model."""
    config = source.config
    linears = [linear for group in names.linear_groups(config) for linear in _stored(source, group)]
    tables = names.tables(config)
    read = [linear.name for linear in (*linears, tables[-1])]
    n_bytes = 0
    for name in read:
        shape = source.shape(name)
        n_bytes += kernels.memory_size(shape) if shape else source.tensor(f"{name}.weight").size * 4
    return WeightFacts(sum(linear.m * linear.k for linear in (*linears, *tables)), n_bytes)


def _stored(source: Source, group: names.LinearGroup) -> tuple[names.Linear, ...]:
    fused = group.fused
    is_fused = source.shape(fused.name) is not None or source.has(f"{fused.name}.weight")
    return (fused,) if is_fused else group.parts


def plan(n_prompt: Sequence[int], n_gen: Sequence[int], n_depth: Sequence[int]) -> list[BenchTest]:
    """The tests of the option lists: each prompt and answer length at each depth; zeros are left out."""
    tests = [BenchTest(p, 0, d) for d in n_depth for p in n_prompt if p > 0]
    tests += [BenchTest(0, g, d) for d in n_depth for g in n_gen if g > 0]
    if not tests:
        raise UsageError("nothing to measure: give -p or -n a number above 0")
    return tests


def run(
    decoder: Decoder,
    tests: Sequence[BenchTest],
    *,
    threads: Sequence[int],
    repetitions: int,
    cache_type: CacheType = "f32",
    meter: EnergyMeter | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[BenchResult]:
    """Measure each test at each thread count, interleaved against drift, after a full warm-up of each.

    Args:
        decoder: the model.
        tests: what to measure; UsageError where one exceeds the model's context.
        threads: kernel thread counts.
        repetitions: samples per test and thread count.
        cache_type: of keys and values.
        meter: of energy; None does not measure it.
        on_progress: called with (test name, runs done, runs in all).
    """
    limit = decoder.config.max_position_embeddings
    for test in tests:
        if test.n_depth + test.n_tokens > limit:
            raise UsageError(
                f"{test.name} needs {test.n_depth + test.n_tokens} tokens, the context has {limit}"
            )
    rng = np.random.default_rng(0)
    total = len(tests) * len(threads) * (repetitions + 1)
    done = 0
    before = kernels.n_threads()
    try:
        for test in tests:
            tokens = rng.integers(0, decoder.config.vocab_size, test.n_depth + test.n_tokens)
            cache = KVCache(decoder.config, test.n_depth + test.n_tokens, cache_type)
            _feed(decoder, cache, tokens[: test.n_depth])
            results = [BenchResult(test, n) for n in threads]
            for repetition in range(-1, repetitions):
                for result in results:
                    kernels.set_threads(result.n_threads)
                    used = meter.read() if meter else []
                    elapsed = _measure(decoder, cache, test, tokens)
                    joules = meter.joules_since(used) if meter else None
                    if repetition >= 0:
                        result.samples_ns.append(elapsed)
                        if test.n_gen and decoder.matrices:
                            result.reads.append(_read(decoder))
                        result.samples_j += [] if joules is None else [joules]
                    else:
                        result.warmup_ns = elapsed
                    done += 1
                    if on_progress:
                        on_progress(test.name, done, total)
            yield from results
    finally:
        kernels.set_threads(before)


def _read(decoder: Decoder) -> float:
    """Bytes per second of a plain read of all packed weights, with the best number of streams."""
    n_bytes = sum(matrix.n_bytes for matrix in decoder.matrices)
    return n_bytes / min(ceiling.read_seconds(decoder.matrices, n) for n in ceiling.STREAMS)


def _measure(decoder: Decoder, cache: KVCache, test: BenchTest, tokens: np.ndarray) -> int:
    cache.truncate(test.n_depth)
    work = tokens[test.n_depth :]
    start = time.perf_counter_ns()
    if test.n_prompt:
        _feed(decoder, cache, work)
    else:
        for i in range(test.n_gen):
            decoder.forward(work[i : i + 1], cache, logits="last")
    return time.perf_counter_ns() - start


def _feed(decoder: Decoder, cache: KVCache, tokens: np.ndarray) -> None:
    """Prefill in the chunks that generation uses; only the last token's logits are computed."""
    for begin in range(0, len(tokens), PREFILL_CHUNK):
        end = min(begin + PREFILL_CHUNK, len(tokens))
        decoder.forward(tokens[begin:end], cache, logits="last" if end == len(tokens) else "none")
