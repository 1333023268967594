"""numpy work on several threads in fixed portions: no result depends on their number; knows no model.

numpy's own BLAS threads are switched off: they would fight the kernel threads, and how they split a product
depends on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy.typing as npt
from threadpoolctl import threadpool_limits

from tmac_llm import kernels

T = TypeVar("T")
Array = npt.NDArray[Any]

# Tokens of one portion: a few hundred kilobytes of activations, which the level 2 cache holds.
ROWS = 16

_pool: tuple[int, ThreadPoolExecutor] | None = None


def limit_blas() -> None:
    """Run numpy's BLAS on the calling thread alone, in this whole process."""
    threadpool_limits(1, user_api="blas")


def for_each(function: Callable[[T], None], items: Sequence[T]) -> None:
    """Call `function` with every item, on `kernels.n_threads()` threads, the caller's included."""
    n_helpers = min(kernels.n_threads(), len(items)) - 1
    queue = iter(items)  # advancing an iterator is atomic

    def work() -> None:
        for item in queue:
            function(item)

    if n_helpers < 1:
        work()
        return
    helpers = [_helpers().submit(work) for _ in range(n_helpers)]
    try:
        work()
    finally:  # an interrupt too may not return while others still write
        wait(helpers)
    for helper in helpers:
        helper.result()


def over_rows(function: Callable[..., None], *arrays: Array) -> None:
    """Call `function` with the same few rows of all arrays (n, ...), until it has seen every row."""

    def portion(begin: int) -> None:
        function(*(array[begin : begin + ROWS] for array in arrays))

    for_each(portion, range(0, len(arrays[0]), ROWS))


def _helpers() -> ThreadPoolExecutor:
    global _pool
    n_threads = kernels.n_threads()
    if _pool is None or _pool[0] != n_threads:
        if _pool is not None:
            _pool[1].shutdown(wait=False)
        _pool = n_threads, ThreadPoolExecutor(max(n_threads - 1, 1), thread_name_prefix="tmac-numpy")
    return _pool[1]
