"""What the command line tests share: a packed tiny model, and a way to run the program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tmac_llm.convert import convert

TINY = Path(__file__).parents[1] / "data" / "tiny-bitnet"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' tiny BitNet model, packed."""
    out = tmp_path_factory.mktemp("packed") / "tiny"
    convert(TINY, out)
    return out


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home for store, history and downloads."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def run(home: Path) -> Run:
    """run("list", "--json", input="..."): the finished program, as text; env adds variables."""

    def call(*arguments: str, input: str | None = "", env: dict[str, str] | None = None):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TMAC_", "HF_"))}
        environment |= {
            "TMAC_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(home / "hf"),
            **(env or {}),
        }
        return subprocess.run(
            [sys.executable, "-m", "tmac_llm", *arguments],
            input=input,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call
