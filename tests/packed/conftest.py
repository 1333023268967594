"""A small packed model to read, damage and write again."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint

from tmac_llm.convert import convert


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed Llama of 2 bits with a bias, made once."""
    directory = tmp_path_factory.mktemp("packed")
    checkpoint = write_checkpoint(directory / "source", "qwen2", num_hidden_layers=1)
    return convert(checkpoint.path, directory / "model", bits=2, group_size=32, force=True).path


@pytest.fixture
def packed(converted: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(converted, tmp_path / "model"))


@pytest.fixture
def sign(packed: Path) -> Callable[..., None]:
    """Write a file of `packed` and its entry in the manifest, so that only its content can be wrong."""

    def write(name: str, data: bytes) -> None:
        (packed / name).write_bytes(data)
        where = packed / "tmac_manifest.json"
        manifest = json.loads(where.read_text())
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        where.write_text(json.dumps(manifest))

    return write


@pytest.fixture
def edit_config(packed: Path, sign: Callable[..., None]) -> Callable[[Callable[..., Any]], None]:
    """Change config.json of `packed` by a function."""

    def edit(change: Callable[[dict[str, Any]], Any]) -> None:
        config = json.loads((packed / "config.json").read_text())
        change(config)
        sign("config.json", json.dumps(config).encode())

    return edit
