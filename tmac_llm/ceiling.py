"""What this machine can do at best with given weights: the ceilings that benchmarks put beside their figures.

Knows matrices and a clock; prints nothing. Shares are honest only if the ceiling is the best that is possible, so
plain reads are tried with several numbers of streams per thread, and the fastest counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tmac_llm.kernels import Matrix

STREAMS = (1, 2, 4, 8)


def seconds(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_seconds(matrices: Sequence[Matrix], n_streams: int) -> float:
    """Seconds of a plain read of all matrices, on all threads."""

    def read() -> None:
        for matrix in matrices:
            matrix.read(n_streams)

    return seconds(read)


def best_streams(matrices: Sequence[Matrix], rounds: int = 3) -> int:
    """The number of streams per thread that reads these matrices fastest, in the best of `rounds`."""
    best = {n: min(read_seconds(matrices, n) for _ in range(rounds)) for n in STREAMS}
    return min(best, key=best.__getitem__)
