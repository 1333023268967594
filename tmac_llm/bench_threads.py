"""Measure the thread pool: what a second thread brings where memory is no limit, what a fork costs, and that an idle
process is idle.

Knows kernels and a clock; prints nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tmac_llm import kernels
from tmac_llm.bench_kernels import random_tiles
from tmac_llm.ceiling import seconds
from tmac_llm.kernels import Matrix, MatrixShape

# 4 bits, 590 kB: two of these and the tables of 64 tokens stay in the caches of two cores.
_SHAPE = MatrixShape(1024, 1024, 4, 128, True, 0.0)
_N_TOKENS = 64
_WORK = 40e-6  # of each thread in a job whose overhead is measured
_JOBS = 2000
_SETTLE = 0.01  # after the last product; the system also counts CPU time in steps of up to 4 ms


@dataclass(frozen=True)
class ThreadResult:
    """speedup: of a product of 64 tokens in the cache over one thread, median of pairs. fork_seconds: what a job costs
    beyond its work. idle_seconds: CPU time of the whole process in `rest` seconds, from 10 ms after a product on."""

    n_threads: int
    speedup: float
    fork_seconds: float
    idle_seconds: float
    rest: float


def run(n_threads: int, rounds: int = 15, rest: float = 0.2) -> ThreadResult:
    """Measure n_threads against one."""
    rng = np.random.default_rng(0)
    matrix = Matrix(_SHAPE, random_tiles(_SHAPE, rng))
    x = rng.standard_normal((_N_TOKENS, _SHAPE.k)).astype(np.float32)
    product = matrix.bind(x, np.empty((_N_TOKENS, _SHAPE.m), np.float32))
    before = kernels.n_threads()
    try:
        ratios = []
        for _ in range(rounds):
            one, many = (_best(product, n) for n in (1, n_threads))
            ratios.append(one / many)
        fork = min(kernels.fork_join_time(_JOBS, _WORK) / _JOBS - _WORK for _ in range(3))
        product()
        time.sleep(_SETTLE)
        used = time.process_time()
        time.sleep(rest)
        idle = time.process_time() - used
    finally:
        kernels.set_threads(before)
        matrix.close()
    return ThreadResult(n_threads, statistics.median(ratios), fork, idle, rest)


def _best(product: Callable[[], None], n_threads: int) -> float:
    """Seconds of the fastest of a few products."""
    kernels.set_threads(n_threads)
    product()
    return min(seconds(product) for _ in range(5))
