"""Work split over threads: everything once, errors passed on, helpers stopped before returning."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from tmac_llm import kernels
from tmac_llm.model import parallel


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = kernels.n_threads()
    kernels.set_threads(request.param)
    yield request.param
    kernels.set_threads(before)


@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_every_item_once(n_threads, n):
    seen = []
    parallel.for_each(seen.append, range(n))
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
def test_every_row_once(n_threads, n):
    a, b = np.arange(2.0 * n).reshape(n, 2), np.zeros((n, 2))

    def add(x, y):
        y += x

    parallel.over_rows(add, a, b)
    np.testing.assert_array_equal(a, b)


def test_an_error_is_passed_on_when_nobody_works_any_more(n_threads):
    running = set()

    def work(item):
        running.add(item)
        try:
            if item == 3:
                raise ZeroDivisionError
            time.sleep(0.002)
        finally:
            running.discard(item)

    with pytest.raises(ZeroDivisionError):
        parallel.for_each(work, range(20))
    assert not running


def test_helpers_work(n_threads):
    names, barrier = set(), threading.Barrier(n_threads)

    def work(_):
        barrier.wait(timeout=10)
        names.add(threading.current_thread().name)

    parallel.for_each(work, range(n_threads))
    assert len(names) == n_threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_child_of_a_fork_has_helpers_of_its_own(n_threads):
    parallel.for_each(id, range(8))
    child = os.fork()
    if not child:
        seen = []
        parallel.for_each(seen.append, range(100))
        os._exit(0 if sorted(seen) == list(range(100)) else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done
    assert os.waitstatus_to_exitcode(status) == 0


def test_blas_is_limited_to_one_thread():
    parallel.limit_blas()
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} <= {1}
