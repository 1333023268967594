"""Find the fastest way to multiply with each shape of matrix on this machine.

Knows kernels and a clock; prints nothing and stores nothing. Candidates are few and compiled in. They are timed in
turns, and the default is left only for one that is clearly faster. Every candidate's product is compared with the
default's: the same bits.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tmac_llm import kernels
from tmac_llm.bench_kernels import random_tiles
from tmac_llm.ceiling import seconds
from tmac_llm.errors import KernelError
from tmac_llm.kernels import Matrix, MatrixShape, Tables, Tuning
from tmac_llm.load import Source, layer_tables, mapped_names
from tmac_llm.packed import names

# A choice must be so much faster than the default, or the default stays.
MARGIN = 1.03
MEMORY_BYTES = 128 << 20  # copies of a matrix that add up to more than a level 3 cache holds
PREFETCH = (-1, 2 << 10, 16 << 10)
PANEL = (128 << 10, 256 << 10, 1 << 20, 2 << 20)
_N_TOKENS = 64


@dataclass(frozen=True)
class Found:
    """One shape. decode, prefill: seconds of a product of 1 and of 64 tokens, with the default and with the choice;
    the ratio of medians of pairs taken in turns decides."""

    shape: MatrixShape
    tables: Tables
    tuning: Tuning
    decode: tuple[float, float]
    prefill: tuple[float, float]


def shapes_of(source: Source, tables: Tables | None = None) -> list[tuple[MatrixShape, Tables]]:
    """The shapes of a model's packed matrices and the tables that they are multiplied with, each once."""
    in_layer = layer_tables(source, tables)
    found: dict[tuple[MatrixShape, Tables], None] = {}
    for name in mapped_names(source):
        shape = source.shape(name)
        if shape:
            found[shape, "int8" if name in (names.EMBEDDING, names.LM_HEAD) else in_layer] = None
    return list(found)


def run(shapes: Sequence[tuple[MatrixShape, Tables]], rounds: int = 7) -> Iterator[Found]:
    """Tune each shape with the threads that run now. Raises KernelError where a candidate changes a result."""
    rng = np.random.default_rng(0)
    for shape, tables in shapes:
        data = random_tiles(shape, rng)
        matrices = [Matrix(shape, data) for _ in range(max(1, -(-MEMORY_BYTES // shape.packed_size)))]
        one, many = (rng.standard_normal((n, shape.k)).astype(np.float32) for n in (1, _N_TOKENS))
        try:
            first = [Tuning(prefetch=value) for value in PREFETCH]
            prefetch, decode = _best(matrices, one, tables, first, rounds)
            second = [Tuning(panel_bytes=value) for value in PANEL]
            panel, prefill = _best(matrices[:1], many, tables, second, rounds)
        finally:
            for matrix in matrices:
                matrix.close()
        tuning = Tuning(prefetch.prefetch, panel.panel_bytes)
        yield Found(shape, tables, tuning, decode, prefill)


def thread_speeds(shape: MatrixShape, tables: Tables, rounds: int = 5) -> dict[int, float]:
    """Bytes of weights per second with one token, for 1, 2, 4 .. and all threads that run now."""
    most, rng = kernels.n_threads(), np.random.default_rng(0)
    counts = sorted({min(1 << i, most) for i in range(most.bit_length())} | {most})
    data = random_tiles(shape, rng)
    matrices = [Matrix(shape, data) for _ in range(max(1, -(-MEMORY_BYTES // shape.packed_size)))]
    x, out = rng.standard_normal((1, shape.k)).astype(np.float32), np.empty((1, shape.m), np.float32)
    calls = [matrix.bind(x, out, tables) for matrix in matrices]
    times: dict[int, list[float]] = {count: [] for count in counts}
    try:
        for _ in range(rounds):
            for count, samples in times.items():
                kernels.set_threads(count)
                samples.append(_all(calls))
    finally:
        kernels.set_threads(most)
    n_bytes = sum(matrix.n_bytes for matrix in matrices)
    return {count: n_bytes / statistics.median(samples) for count, samples in times.items()}


def _best(
    matrices: Sequence[Matrix], x: np.ndarray, tables: Tables, candidates: Sequence[Tuning], rounds: int
) -> tuple[Tuning, tuple[float, float]]:
    """The choice, and seconds of one product with the default and with it."""
    out = np.empty((len(x), matrices[0].shape.m), np.float32)
    calls = [matrix.bind(x, out, tables) for matrix in matrices]
    times: dict[Tuning, list[float]] = {tuning: [] for tuning in (Tuning(), *candidates)}
    expected = None
    order = list(times)
    for _ in range(rounds):
        order = order[1:] + order[:1]  # nobody is always the first after a pause
        for tuning in order:
            for matrix in matrices:
                matrix.tune(tuning)
            times[tuning].append(_all(calls) / len(calls))
            if expected is None:
                expected = out.copy()
            if not np.array_equal(out.view(np.uint32), expected.view(np.uint32)):
                raise KernelError(f"{matrices[0].shape}: {tuning} changes the result; please report this")
    default = times[Tuning()]

    def ratios(tuning: Tuning) -> list[float]:
        return [d / t for d, t in zip(default, times[tuning], strict=True)]

    def gain(tuning: Tuning) -> float:
        return statistics.median(ratios(tuning))

    best = max(candidates, key=gain)
    clear = sum(ratio > 1 for ratio in ratios(best)) >= 0.8 * rounds
    chosen = best if clear and gain(best) >= MARGIN else Tuning()
    return chosen, (statistics.median(default), statistics.median(default) / gain(chosen))


def _all(calls: Sequence[Callable[[], None]]) -> float:
    return sum(seconds(call) for call in calls)
