"""numpy work on several threads in fixed portions: no result depends on their number; knows no model.

numpy's own BLAS threads are switched off: they would fight the kernel threads, and how they split a product
depends on their number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy.typing as npt
from threadpoolctl import threadpool_limits

from tmac_llm import kernels

T = TypeVar("T")
Array = npt.NDArray[Any]

# Tokens of one portion. With fewer, threads spend their time waiting for the interpreter lock.
ROWS = 64

# A job and where to put what it raised, None for nothing.
_jobs: SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None]]] = SimpleQueue()
_n_helpers = 0


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
    _start_helpers(n_helpers)
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    for _ in range(n_helpers):
        _jobs.put((work, done))
    try:
        work()
    finally:  # an interrupt too may not return while others still write
        errors = [done.get() for _ in range(n_helpers)]
    for error in errors:
        if error is not None:
            raise error


def over_rows(function: Callable[..., None], *arrays: Array) -> None:
    """Call `function` with the same few rows of all arrays (n, ...), until it has seen every row."""

    def portion(begin: int) -> None:
        function(*(array[begin : begin + ROWS] for array in arrays))

    for_each(portion, range(0, len(arrays[0]), ROWS))


def _start_helpers(n: int) -> None:
    """Have n helpers at least; those too many sleep."""
    global _n_helpers
    while _n_helpers < n:
        _n_helpers += 1
        threading.Thread(target=_help, name=f"tmac-numpy-{_n_helpers}", daemon=True).start()


def _help() -> None:
    while True:
        work, done = _jobs.get()
        try:
            work()
        except BaseException as error:  # the caller raises it
            done.put(error)
        else:
            done.put(None)
        del work, done  # a sleeping helper keeps no array alive


def _forget_helpers() -> None:
    """In the child of a fork, which has the forking thread only."""
    global _jobs, _n_helpers
    _jobs, _n_helpers = SimpleQueue(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)
