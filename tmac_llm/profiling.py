"""Where the time of a token goes: a decoder whose parts are timed, at some depth of context.

Knows a decoder and a clock; prints nothing. Timing costs about 0.3 us per call, which counts as "rest".
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from tmac_llm import kernels
from tmac_llm.bench import BenchTest
from tmac_llm.generation import PREFILL_CHUNK
from tmac_llm.kernels import Matrix
from tmac_llm.load import Source
from tmac_llm.model.decoder import Decoder, Layer
from tmac_llm.model.kv_cache import CacheType, KVCache
from tmac_llm.packed import names
from tmac_llm.sampling import Sampler
from tmac_llm.sampling_defaults import DEFAULT_SAMPLING

LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
# "rest": residual sums, what is bound anew for every pass, and the interpreter between the parts.
PARTS = (*LINEARS, "attention", "KV cache", "norms", "RoPE", "activation", "embedding", "sampling", "rest")

Clock = Callable[[], int]


@dataclass(frozen=True)
class Profile:
    """The parts of one test: nanoseconds per pass of n_tokens (decode: 1), mean of the middle half of passes.

    parts_ns: by name, in the order of PARTS; they sum up to the whole.
    tables_ns: building the tables of activations, which is part of the linears; an estimate, None where no
    matrix is packed.
    """

    test: BenchTest
    n_threads: int
    n_tokens: int
    n_layers: int
    parts_ns: dict[str, float]
    tables_ns: float | None

    @property
    def total_ns(self) -> float:
        """Nanoseconds of a whole pass."""
        return sum(self.parts_ns.values())

    @property
    def outside_share(self) -> float:
        """Share of the time that is spent outside the linears."""
        return 1 - sum(self.parts_ns[name] for name in LINEARS) / self.total_ns

    @property
    def outside_layer_us(self) -> float:
        """Microseconds per layer and pass outside the linears; embedding and sampling belong to no layer."""
        names = set(PARTS) - set(LINEARS) - {"embedding", "sampling"}
        return sum(self.parts_ns[name] for name in names) / self.n_layers / 1e3


class Timer:
    """Sums up nanoseconds by name."""

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        self.ns: defaultdict[str, int] = defaultdict(int)
        self._clock = clock

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to `name`."""
        ns, clock = self.ns, self._clock

        def call(*arguments: Any) -> Any:
            start = clock()
            result = function(*arguments)
            ns[name] += clock() - start
            return result

        return call


class _TimedPart:
    """A part of a decoder: what it does in a pass is timed, not what it binds before."""

    def __init__(self, name: str, part: Any, timer: Timer) -> None:
        self._name, self._part, self._timer = name, part, timer

    def bind(self, *arguments: Any) -> Callable[..., Any]:
        return self._timer.timed(self._name, self._part.bind(*arguments))

    def __call__(self, *arguments: Any) -> Any:
        return self._timer.timed(self._name, self._part)(*arguments)

    def fill(self, *arguments: Any) -> None:
        self._timer.timed(self._name, self._part.fill)(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def timed_decoder(decoder: Decoder, timer: Timer) -> Decoder:
    """A decoder of the same weights whose parts are timed; the production decoder knows nothing of it."""
    timed: Any = copy.copy(decoder)
    timed._passes = {}
    timed._layers = [_timed_layer(layer, timer) for layer in timed._layers]
    for attribute, name in (
        ("_embed_tokens", "embedding"),
        ("_norm", "norms"),
        ("_lm_head", "lm_head"),
        ("_attention", "attention"),
        ("_activation", "activation"),
        ("_rope", "RoPE"),
    ):
        setattr(timed, attribute, _TimedPart(name, getattr(timed, attribute), timer))
    return timed  # type: ignore[no-any-return]


def _timed_layer(layer: Layer, timer: Timer) -> Layer:
    timed: dict[str, Any] = {}
    for field in fields(layer):
        part = getattr(layer, field.name)
        name = field.name if field.name in LINEARS else "norms"
        timed[field.name] = part and _TimedPart(name, part, timer)
    return replace(layer, **timed)


def run(
    decoder: Decoder,
    source: Source,
    tests: Sequence[BenchTest],
    *,
    cache_type: CacheType = "f32",
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Profile]:
    """Profile each test once, after a warm-up; decode tests sample every token with the usual defaults.

    source: what the decoder was loaded from, for the estimate of table building.
    """
    timer, tables = Timer(), dict[int, float | None]()
    timed = timed_decoder(decoder, timer)
    sampler = Sampler(replace(DEFAULT_SAMPLING, seed=0), decoder.config.vocab_size)
    for i, test in enumerate(tests):
        if on_progress:
            on_progress(test.name, i, len(tests))
        cache = KVCache(decoder.config, test.n_depth + test.n_tokens, cache_type)
        tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, cache.max_length)
        _feed(decoder, cache, tokens[: test.n_depth])
        _feed(decoder, cache, tokens[test.n_depth :])  # warm-up
        passes: list[dict[str, int]] = []
        for _ in range(1 if test.n_gen else 3):
            cache.truncate(test.n_depth)
            passes += _passes(timed, timer, cache, test, tokens, sampler)
        n = 1 if test.n_gen else test.n_prompt
        if n not in tables:
            tables[n] = tables_ns(source, n)
        yield Profile(
            test, kernels.n_threads(), n, decoder.config.num_hidden_layers, _middle(passes), tables[n]
        )


def _feed(decoder: Decoder, cache: KVCache, tokens: Any) -> None:
    for begin in range(0, len(tokens), PREFILL_CHUNK):
        decoder.forward(tokens[begin : begin + PREFILL_CHUNK], cache, logits="none")


def _passes(
    decoder: Decoder, timer: Timer, cache: KVCache, test: BenchTest, tokens: Any, sampler: Sampler
) -> list[dict[str, int]]:
    """Nanoseconds by part, and in "rest", of each pass: a decoded token, or the whole prompt."""
    bind_append = cache.bind_append
    cache.bind_append = lambda k, v: timer.timed("KV cache", bind_append(k, v))  # type: ignore[method-assign]
    sample = timer.timed("sampling", sampler.sample)
    step = 1 if test.n_gen else PREFILL_CHUNK
    result = []
    try:
        timer.ns.clear()
        start = time.perf_counter_ns()
        for begin in range(test.n_depth, len(tokens), step):
            end = min(begin + step, len(tokens))
            last = test.n_gen > 0 or end == len(tokens)
            logits = decoder.forward(tokens[begin:end], cache, logits="last" if last else "none")
            if test.n_gen and logits is not None:
                sample(logits[-1], tokens[:end])
            if last:
                now = time.perf_counter_ns()
                rest = now - start - sum(timer.ns.values())
                result.append({**timer.ns, "rest": rest})
                timer.ns.clear()
                start = time.perf_counter_ns()
    finally:
        del cache.bind_append
    return result


def _middle(passes: list[dict[str, int]]) -> dict[str, float]:
    """Mean of the middle half: parts still sum up, and what the system did meanwhile is left out."""
    ordered = sorted(passes, key=lambda parts: sum(parts.values()))
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return {name: statistics.fmean(each.get(name, 0) for each in middle) for name in PARTS}


def tables_ns(source: Source, n_tokens: int) -> float | None:
    """Nanoseconds that building tables takes in a pass of n_tokens through all linears.

    From the products of a matrix with 64 and with 128 rows, for each packed matrix of a layer and the head: what
    does not grow with the rows.
    """
    layers = source.config.num_hidden_layers
    counts = dict.fromkeys(_first_layer(source), layers) | {names.tables(source.config)[-1].name: 1}
    total, found = 0.0, False
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        shape = source.shape(name)
        if shape is None or shape.m < 128:
            continue
        tiles, in_layer = source.tiles(name), count == layers
        n = n_tokens if in_layer else 1  # the head sees the last token only
        x = rng.standard_normal((min(n, PREFILL_CHUNK), shape.k), np.float32)
        exact = source.config.int8_activations and in_layer
        few, more = (_product_ns(replace(shape, m=m), tiles, x, exact) for m in (64, 128))
        total += max(2 * few - more, 0.0) * count * n / len(x)
        found = True
    return total if found else None


def _first_layer(source: Source) -> list[str]:
    groups = list(names.linear_groups(source.config))[:4]
    fused = [(group.fused.name, [part.name for part in group.parts]) for group in groups]
    return [name for whole, parts in fused for name in ([whole] if source.shape(whole) else parts)]


def _product_ns(shape: kernels.MatrixShape, tiles: Any, x: Any, exact: bool) -> float:
    matrix = Matrix(shape, tiles[: shape.packed_size])
    multiply = matrix.bind(x, np.empty((len(x), shape.m), np.float32), "exact" if exact else "int8")
    samples = []
    for _ in range(15):
        start = time.perf_counter_ns()
        multiply()
        samples.append(time.perf_counter_ns() - start)
    return statistics.median(samples)
