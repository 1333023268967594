"""Measure the products of single matrices, at the shapes of known models, against the machine's own ceiling.

Knows the kernel wall and a clock; prints nothing. Every product is checked against float64 before it is timed.
A product can be no faster than a plain read of the same memory by the same threads, taken in turns with it, nor than
the same kernel on weights and tables that lie in the caches of one core, times the threads. The slower of the two is
its ceiling: with one token mostly the first, with several the second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tmac_llm import ceiling, kernels
from tmac_llm.errors import KernelError, UsageError
from tmac_llm.kernels import Matrix, MatrixShape, Tables
from tmac_llm.model.config import ModelConfig
from tmac_llm.packed import names, tiles
from tmac_llm.resources import known_models

# A level 3 cache holds less than this: copies of a matrix that add up to it are streamed from memory.
MEMORY_BYTES = 256 << 20
# Bytes each of the weights and for the tables of a pass over a matrix in the cache.
CACHE_BYTES = 192 << 10
PASS_TOKENS = 64
CACHE_ROUNDS = 60
_CHECKED_ROWS = 96
# Relative RMS error that a correct product may have: int8 tables (NMSE 1e-4 with a margin), and float32 rounding.
_BOUND: dict[Tables, float] = {"int8": 1.5e-2, "exact": 1e-5, "fast": 3e-2}


@dataclass(frozen=True)
class Case:
    """One product: y (n, m) from x (n, k). bits None: ternary, five codes in a byte, always exact."""

    model: str
    matrix: str
    m: int
    k: int
    bits: int | None
    group_size: int
    n: int
    tables: Tables

    @property
    def shape(self) -> MatrixShape:
        """How the weights are stored; grouped ones with zero points."""
        if self.bits is None:
            return MatrixShape(self.m, self.k, 2, 0, False, 1.0, "ternary")
        return MatrixShape(self.m, self.k, self.bits, self.group_size, True, 0.0)


@dataclass(frozen=True)
class KernelResult:
    """Medians of one case.

    seconds: of a product; read_seconds: of the best plain read of the same bytes; cache_seconds: of as many
    multiply-adds at the kernel's own rate from the cache; share: the slower of both ceilings over the product, of
    pairs taken in turns; error: relative RMS.
    """

    case: Case
    isa: str
    n_threads: int
    n_bytes: int
    from_memory: bool
    seconds: float
    read_seconds: float
    cache_seconds: float
    share: float
    error: float

    @property
    def gigabytes_per_second(self) -> float:
        """Weights read per second."""
        return self.n_bytes / self.seconds / 1e9

    @property
    def gmacs(self) -> float:
        """1e9 multiply-adds replaced per second."""
        return self.case.m * self.case.k * self.case.n / self.seconds / 1e9

    @property
    def ceiling(self) -> str:
        """What binds: "read" or "cache"."""
        return "read" if self.read_seconds >= self.cache_seconds else "cache"


def cases(
    models: Sequence[str],
    bits: Sequence[int | None],
    n_tokens: Sequence[int],
    group_size: int = 128,
    tables: Tables | None = None,
) -> list[Case]:
    """The matrices of a layer of each model, in every width and number of tokens. Raises UsageError for a bad name."""
    known = known_models()
    found = []
    for model in models:
        if model not in known:
            raise UsageError(f"no shapes are known for {model!r}; known: {', '.join(known)}")
        groups = list(names.linear_groups(ModelConfig.from_dict(known[model].config)))[:4]
        for group in groups:
            name = group.fused.name.rpartition(".")[2]
            found += [
                Case(model, name, group.fused.m, group.fused.k, b, group_size, n, _tables(b, tables))
                for b in bits
                for n in n_tokens
            ]
    return found


def run(
    case: Case,
    *,
    threads: Sequence[int],
    from_memory: bool = True,
    rounds: int = 7,
    on_progress: Callable[[], None] | None = None,
) -> Iterator[KernelResult]:
    """Measure one case at each thread count: product, read, product, read, ..; medians of `rounds`.

    from_memory: stream through copies that no cache holds, as decoding streams through layers; otherwise repeat one.
    Raises KernelError where a product is wrong.
    """
    rng = np.random.default_rng(0)
    shape = case.shape
    data = random_tiles(shape, rng)
    copies = max(1, -(-MEMORY_BYTES // shape.packed_size)) if from_memory and case.n == 1 else 1
    matrices = [Matrix(shape, data) for _ in range(copies)]
    x = rng.standard_normal((case.n, case.k)).astype(np.float32)
    out = np.empty((case.n, case.m), np.float32)
    before = kernels.n_threads()
    try:
        kernels.set_threads(1)
        cache_rate = _cache_rate(case, rng)
        for n_threads in threads:
            kernels.set_threads(n_threads)
            error = _check(case, data, matrices[0].matmul(x, out, case.tables), x)
            calls = [matrix.bind(x, out, case.tables) for matrix in matrices]
            cache_seconds = case.m * case.k * case.n / cache_rate / n_threads
            products, reads = _time(calls, matrices, rounds)
            shares = [max(r, cache_seconds) / p for p, r in zip(products, reads, strict=True)]
            yield KernelResult(
                case,
                kernels.isa_selected(),
                n_threads,
                matrices[0].n_bytes,
                copies > 1,
                statistics.median(products),
                statistics.median(reads),
                cache_seconds,
                statistics.median(shares),
                error,
            )
            if on_progress:
                on_progress()
    finally:
        kernels.set_threads(before)
        for matrix in matrices:
            matrix.close()


def random_tiles(shape: MatrixShape, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """uint8 (packed_size,): random codes, scales that give weights of about unit variance per row."""
    data = np.frombuffer(bytearray(rng.bytes(shape.packed_size)), np.uint8)
    if shape.encoding == "ternary":
        data = tiles.TERNARY_BYTES[data % len(tiles.TERNARY_BYTES)]
    tails = tiles.tails(shape, data)
    tails[:, :, 0] = rng.uniform(0.8, 1.2, tails[:, :, 0].shape) / np.sqrt(shape.k)
    if shape.has_zeros:
        tails[:, :, 1] = (2**shape.bits - 1) / 2
    return data


def _time(
    calls: Sequence[Callable[[], None]], matrices: Sequence[Matrix], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of one product and of one plain read, `rounds` of each in turns. A round takes some milliseconds."""
    n_streams = ceiling.best_streams(matrices)
    calls[0]()
    repeats = max(1, int(0.02 / max(ceiling.seconds(calls[-1]), 1e-7) / len(calls)))
    again = max(1, int(0.02 / max(ceiling.read_seconds(matrices, n_streams), 1e-7)))
    products, reads = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            for call in calls:
                call()
        products.append((time.perf_counter() - start) / repeats / len(calls))
        elapsed = sum(ceiling.read_seconds(matrices, n_streams) for _ in range(again))
        reads.append(elapsed / again / len(calls))
    return products, reads


def _cache_rate(case: Case, rng: np.random.Generator) -> float:
    """Multiply-adds per second of the running thread from its own caches: what more rows cost where weights and
    tables fit there, so that neither building tables nor starting the work counts."""
    table_bytes = min(case.n, PASS_TOKENS) * 4 * (2 if case.tables == "exact" else 1)
    k = min(case.k, max(256, CACHE_BYTES // table_bytes // 128 * 128))
    block_bytes = replace(case, m=64, k=k).shape.packed_size
    blocks = max(2, CACHE_BYTES // block_bytes)
    x = rng.standard_normal((case.n, k)).astype(np.float32)
    calls, best = [], [float("inf")] * 2
    for rows in (64 * (blocks // 2), 64 * blocks):
        shape = replace(case, m=rows, k=k).shape
        matrix = Matrix(shape, random_tiles(shape, rng))
        calls.append(matrix.bind(x, np.empty((case.n, rows), np.float32), case.tables))
    for _ in range(CACHE_ROUNDS):
        best = [min(least, ceiling.seconds(call)) for least, call in zip(best, calls, strict=True)]
    rows = 64 * (blocks - blocks // 2)
    return rows * k * case.n / max(best[1] - best[0], 1e-9)


def _check(
    case: Case, data: npt.NDArray[np.uint8], found: npt.NDArray[np.float32], x: npt.NDArray[np.float32]
) -> float:
    """Relative RMS error of some rows against float64 products with the weights as stored."""
    rows = np.unique(np.linspace(0, case.m - 1, _CHECKED_ROWS).astype(np.int32))
    weights = kernels.dequantize_rows(case.shape, data, rows).astype(np.float64)
    activations = x.astype(np.float64)
    if case.tables == "exact":
        scale = 127 / np.maximum(np.abs(activations).max(axis=1, keepdims=True), 1e-5)
        activations = np.rint(x * scale.astype(np.float32)) / scale
    expected = activations @ weights.T
    error = float(np.sqrt(np.mean((found[:, rows] - expected) ** 2) / np.mean(expected**2)))
    if not error <= _BOUND[case.tables]:
        raise KernelError(
            f"{case.matrix} {case.m} x {case.k}, {case.bits or 'ternary'} bits, n = {case.n}: relative error "
            f"{error:.2e}, expected at most {_BOUND[case.tables]:.0e}; the {kernels.isa_selected()} kernel is wrong"
        )
    return error


def _tables(bits: int | None, asked: Tables | None) -> Tables:
    return "exact" if bits is None else asked or "int8"
