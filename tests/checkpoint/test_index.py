"""open_tensor_files: which files are read, and shards that are missing, foreign or contradictory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tmac_llm.checkpoint.index import open_tensor_files
from tmac_llm.errors import CheckpointError, UnsupportedError

A, B = np.arange(4, dtype=np.float32), np.arange(6, dtype=np.float32).reshape(3, 2)


def test_single_file(files: Any) -> None:
    files.weights({"a": A})
    for path in (files.path, files.path / "model.safetensors"):
        opened = open_tensor_files(path)
        assert opened.names() == ["a"]
        np.testing.assert_array_equal(opened.read("a"), A)
        assert opened.n_bytes == (files.path / "model.safetensors").stat().st_size


def test_one_file_of_another_name(files: Any) -> None:
    files.weights({"a": A}, "weights.safetensors")
    assert open_tensor_files(files.path).names() == ["a"]


def test_shards(files: Any) -> None:
    files.weights({"a": A}, "x-1.safetensors")
    files.weights({"b": B}, "x-2.safetensors")
    files.index({"a": "x-1.safetensors", "b": "x-2.safetensors"})
    opened = open_tensor_files(files.path)
    assert set(opened.names()) == {"a", "b"}
    assert (opened.file_name("a"), opened.file_name("b")) == ("x-1.safetensors", "x-2.safetensors")
    np.testing.assert_array_equal(opened.read("b", 1, 3), B[1:])
    assert opened.info("b").shape == (3, 2)


def test_shards_may_be_links_to_a_cache(files: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    blob = tmp_path_factory.mktemp("blobs") / "1234"
    files.weights({"a": A}, "x.safetensors")
    (files.path / "x.safetensors").rename(blob)
    (files.path / "x.safetensors").symlink_to(blob)
    files.index({"a": "x.safetensors"})
    assert open_tensor_files(files.path).names() == ["a"]


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "..",
        "x.bin",
        "",
        3,
        None,
        "x\0.safetensors",
        ".safetensors",
    ],
)
def test_index_pointing_elsewhere(files: Any, shard: Any) -> None:
    (files.path / "sub").mkdir()
    files.weights({"a": A}, "sub/x.safetensors")
    files.index({"a": shard})
    with pytest.raises(CheckpointError, match="points to") as info:
        open_tensor_files(files.path)
    assert str(info.value).isprintable()


@pytest.mark.parametrize("weight_map", [None, [], {}, "x.safetensors"])
def test_index_without_weight_map(files: Any, weight_map: Any) -> None:
    files.index(weight_map)
    with pytest.raises(CheckpointError, match="weight_map"):
        open_tensor_files(files.path)


def test_missing_shard(files: Any) -> None:
    files.weights({"a": A}, "x-1.safetensors")
    files.index({"a": "x-1.safetensors", "b": "x-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing.*x-2\.safetensors"):
        open_tensor_files(files.path)


def test_listed_tensor_that_its_shard_does_not_hold(files: Any) -> None:
    files.weights({"a": A}, "x-1.safetensors")
    files.weights({"b": B}, "x-2.safetensors")
    files.index({"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"'c' should be in x-2"):
        open_tensor_files(files.path)
    files.index({"a": "x-2.safetensors", "b": "x-1.safetensors"})
    with pytest.raises(CheckpointError, match=r"should be in"):
        open_tensor_files(files.path)


def test_tensor_in_two_shards(files: Any) -> None:
    files.weights({"a": A}, "x-1.safetensors")
    files.weights({"a": A, "b": B}, "x-2.safetensors")
    files.index({"a": "x-1.safetensors", "b": "x-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"'a' is in both x-1\.safetensors and x-2\.safetensors"):
        open_tensor_files(files.path)


def test_several_files_without_index(files: Any) -> None:
    files.weights({"a": A}, "x-1.safetensors")
    files.weights({"b": B}, "x-2.safetensors")
    with pytest.raises(CheckpointError, match="2 safetensors files but no model"):
        open_tensor_files(files.path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickles_are_refused_with_the_reason(files: Any, name: str) -> None:
    (files.path / name).write_bytes(b"\x80\x04")
    with pytest.raises(UnsupportedError, match=f"{name}.*arbitrary code.*safetensors"):
        open_tensor_files(files.path)


def test_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a Hugging Face checkpoint"):
        open_tensor_files(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"weight_map": NaN}', b"\xff", b"[" * 100000])
def test_damaged_index(files: Any, text: bytes, to_safetensors: Callable[..., bytes]) -> None:
    (files.path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_tensor_files(files.path)
