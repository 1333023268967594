"""What all tests share: helper modules beside this file, and reference data beside the repository."""

import sys
from pathlib import Path

import pytest

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
