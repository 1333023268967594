"""What all tests share: helper modules beside this file, and reference data beside the repository."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tmac_llm import kernels

# A background job of a shell inherits an ignored SIGINT, and so would every program that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))


def _shared(name: str) -> Path:
    path = Path(__file__).parents[2] / "shared" / name
    if not path.is_dir():
        pytest.skip(f"../shared/{name} is not beside this repository")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference checkpoints, one directory each."""
    return _shared("golden")


@pytest.fixture(scope="session")
def shared_data_dir() -> Path:
    """Texts for training and evaluation."""
    return _shared("data")


@pytest.fixture(params=["avx512", "avx2", "neon", "scalar"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test once per instruction set; those that this build or CPU lacks are skipped with the reason."""
    known = {info.name: info for info in kernels.isas()}
    if request.param not in known:
        pytest.skip(f"{request.param} is not compiled in on this architecture")
    if not known[request.param].supported:
        pytest.skip(f"this CPU lacks {known[request.param].requires}")
    before, threads = kernels.isa_selected(), kernels.n_threads()
    kernels.init(request.param, threads)
    yield request.param
    kernels.init(before, threads)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(7)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = kernels.n_threads()
    yield
    kernels.set_threads(before)
