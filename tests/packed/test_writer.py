"""PackedWriter: the bytes of its files, and that nothing is left of a conversion that did not finish."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tmac_llm.errors import ConvertError, PackedModelError
from tmac_llm.packed import writer as module
from tmac_llm.packed.container import PackedModel
from tmac_llm.packed.writer import PackedWriter, TensorSpec

SPECS = [
    TensorSpec("norm", "F32", (5,)),
    TensorSpec("half", "BF16", (3, 3)),
    TensorSpec("first", "U8", (256,)),
    TensorSpec("half16", "F16", (1, 2)),
    TensorSpec("second", "U8", (512,)),
]
DTYPES = {"U8": np.uint8, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def values(spec: TensorSpec) -> np.ndarray:
    n = int(np.prod(spec.shape))
    return (np.arange(n) % 251).astype(DTYPES[spec.dtype]).reshape(spec.shape)


def write(out: Path, **arguments) -> PackedWriter:
    with PackedWriter(out, SPECS, **arguments) as writer:
        for spec in writer.specs:
            writer.write(spec.name, values(spec))
        writer.finish({"model_type": "none"})
    return writer


def everything(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


def test_the_bytes_of_a_file(tmp_path):
    with PackedWriter(tmp_path / "model", [TensorSpec("a", "F32", (2,))]) as writer:
        writer.write("a", np.array([1, 2], np.float32))
        writer.finish({})
    text = b'{"__metadata__":{"format":"tmac-packed"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    expected = (120).to_bytes(8, "little") + text.ljust(120) + b"\0\0\x80\x3f\0\0\0\x40"
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == expected
    manifest = json.loads((tmp_path / "model" / "tmac_manifest.json").read_text())
    assert manifest == {
        "format": "tmac-packed",
        "format_version": 1,
        "files": {
            "config.json": {
                "size": 3,
                "sha256": "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356",
            },
            "model.safetensors": {
                "size": 136,
                "sha256": subprocess.run(
                    ["sha256sum", tmp_path / "model" / "model.safetensors"], capture_output=True, check=True
                )
                .stdout.split()[0]
                .decode(),
            },
        },
    }


def test_tensors_are_aligned_to_their_types(tmp_path):
    write(tmp_path / "model")
    data = (tmp_path / "model" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    assert (8 + length) % 64 == 0
    for entry in header.values():
        assert entry["data_offsets"][0] % np.dtype(DTYPES[entry["dtype"]]).itemsize == 0
    found = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    assert all(np.array_equal(found[spec.name], values(spec)) for spec in SPECS)


@pytest.mark.parametrize("limit", [100, 256, 600, 770, 10**9])
def test_shards_and_their_index(tmp_path, limit):
    write(tmp_path / "model", max_shard_bytes=limit)
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    found = {}
    for i, shard in enumerate(shards):
        if len(shards) > 1:
            assert shard.name == f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = safetensors.numpy.load_file(shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= limit
        found |= dict.fromkeys(tensors, shard.name)
    assert set(found) == {spec.name for spec in SPECS}
    index = tmp_path / "model" / "model.safetensors.index.json"
    assert index.exists() == (len(shards) > 1)
    if index.exists():
        total = sum(spec.n_bytes for spec in SPECS)
        assert json.loads(index.read_text()) == {"metadata": {"total_size": total}, "weight_map": found}


def test_pieces_may_be_of_any_size(tmp_path):
    write(tmp_path / "whole")
    with PackedWriter(tmp_path / "pieces", SPECS) as writer:
        for spec in writer.specs:
            flat = values(spec).reshape(-1)
            for begin in range(0, flat.size, 7):
                writer.write(spec.name, flat[begin : begin + 7])
        size = writer.finish({"model_type": "none"})
    for name in everything(tmp_path / "whole"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes()
    files = [p for p in (tmp_path / "pieces").iterdir() if p.name != "tmac_manifest.json"]
    assert size == sum(p.stat().st_size for p in files)


def test_copies_are_exact(tmp_path):
    source = tmp_path / "tokenizer.json"
    source.write_bytes(b"\0\r\n{}")
    with PackedWriter(tmp_path / "model", []) as writer:
        writer.finish({}, [source])
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == b"\0\r\n{}"


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("second", np.zeros(512, np.uint8)),
        ("first", np.zeros(257, np.uint8)),
        ("first", np.zeros(256, np.int8)),
    ],
    ids=["order", "size", "dtype"],
)
def test_a_wrong_tensor_is_a_mistake_of_the_caller(tmp_path, name, array):
    with pytest.raises(ValueError, match=name), PackedWriter(tmp_path / "model", SPECS) as writer:
        writer.write(name, array)
    assert everything(tmp_path) == []


def test_an_incomplete_model_does_not_finish(tmp_path):
    with PackedWriter(tmp_path / "m", SPECS) as writer:
        writer.write("first", np.zeros(255, np.uint8))
        with pytest.raises(ValueError, match="first is not complete"):
            writer.finish({})
    with PackedWriter(tmp_path / "m", SPECS):
        pass
    assert everything(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_an_error(tmp_path, error):
    def stop() -> None:
        with PackedWriter(tmp_path / "deep" / "model", SPECS) as writer:
            writer.write("first", np.zeros(100, np.uint8))
            raise error

    with pytest.raises(error):
        stop()
    assert everything(tmp_path) == ["deep"]


def test_an_existing_target_is_refused(tmp_path):
    for name in ("file", "directory", "link"):
        path = tmp_path / name
        if name == "file":
            path.write_text("mine")
        elif name == "directory":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(ConvertError, match=r"exists; --force"):
            PackedWriter(path, SPECS)


def test_force_replaces_a_packed_model_only(tmp_path):
    write(tmp_path / "model")
    (tmp_path / "model" / "extra").write_text("of the old one")
    write(tmp_path / "model", force=True, max_shard_bytes=100)
    assert not (tmp_path / "model" / "extra").exists()
    assert (tmp_path / "model" / "model-00001-of-00003.safetensors").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    write(mine, force=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    for path in (tmp_path / "letters", tmp_path / "letters" / "love.txt"):
        with pytest.raises(ConvertError, match="not a packed model"):
            write(path, force=True)
    assert (tmp_path / "letters" / "love.txt").read_text() == "dear"
    assert not [name for name in everything(tmp_path) if name.startswith(".")]


def test_a_failed_replacement_keeps_the_old_model(tmp_path, monkeypatch):
    write(tmp_path / "model")
    before = everything(tmp_path)
    with pytest.raises(ZeroDivisionError), PackedWriter(tmp_path / "model", SPECS, force=True):
        raise ZeroDivisionError
    assert everything(tmp_path) == before

    rename, failures = Path.rename, []

    def fail_once(self: Path, target: Path) -> Path:
        if target.name == "model" and not failures:
            failures.append(OSError(errno.EIO, os.strerror(errno.EIO)))
            raise failures[0]
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(ConvertError, match="Input/output error"):
        write(tmp_path / "model", force=True)
    monkeypatch.undo()
    assert everything(tmp_path) == before


def test_too_little_space_is_told_with_both_numbers(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    specs = [TensorSpec("big", "U8", (3_000_000,))]
    with (
        pytest.raises(ConvertError, match=r"needs 3\.0 MB of disk, 2\.0 MB are free"),
        PackedWriter(tmp_path / "m", specs),
    ):
        pass
    assert everything(tmp_path) == []


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 6, 7])
def test_a_disk_that_fills_up(tmp_path, monkeypatch, calls):
    done = 0
    original = module._HashedFile.write

    def write_some(self, data):
        nonlocal done
        done += 1
        if done == calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, data)

    monkeypatch.setattr(module._HashedFile, "write", write_some)
    with pytest.raises(
        ConvertError, match="No space left on device; nothing is left behind, make room"
    ) as error:
        write(tmp_path / "model")
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == []


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvertError, match=r"cannot be written: (File exists|Not a directory)"):
        write(tmp_path / "file" / "model")


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_leftovers_of_dead_conversions_are_removed_by_the_next_one(tmp_path):
    dead = tmp_path / f".other.convert-{dead_pid()}-0123abcd"
    locked = tmp_path / f".other.convert-{dead_pid()}-4567abcd"
    alive = tmp_path / f".other.convert-{os.getpid()}-89abcdef"
    similar = [tmp_path / ".other.convert-x-0123abcd", tmp_path / "other.convert-1-0123abcd"]
    for path in (dead, locked, alive, *similar):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"part")
    lock = os.open(locked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with PackedWriter(tmp_path / "running", SPECS) as running:
        write(tmp_path / "model")
        assert running._path.is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        p.name for p in (locked, alive, *similar, tmp_path / "model")
    )
    os.close(lock)
    shutil.rmtree(tmp_path / "model")
    write(tmp_path / "model")
    assert not locked.exists()


def test_leftovers_of_other_users_do_not_matter(tmp_path, monkeypatch):
    theirs = tmp_path / f".other.convert-{dead_pid()}-0123abcd"
    theirs.mkdir()
    original = os.open

    def refuse(path, *arguments, **options):
        if path == theirs:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(path, *arguments, **options)

    monkeypatch.setattr(module.os, "open", refuse)
    write(tmp_path / "model")
    assert theirs.is_dir()


def test_a_disk_without_locks_keeps_leftovers(tmp_path, monkeypatch):
    def refuse(fd, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    left = tmp_path / f".other.convert-{dead_pid()}-0123abcd"
    left.mkdir()
    monkeypatch.setattr(module.fcntl, "flock", refuse)
    write(tmp_path / "model")
    assert left.is_dir()


def test_writes_through_a_link_to_the_directory(tmp_path, converted):
    (tmp_path / "disk").mkdir()
    shutil.copytree(converted, tmp_path / "disk" / "model")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    write(tmp_path / "model", force=True)
    assert (tmp_path / "model").is_symlink()
    assert everything(tmp_path / "disk")[0] == "model"
    with pytest.raises(PackedModelError, match="quant_method"):
        PackedModel.open(tmp_path / "model")
