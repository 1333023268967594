"""The GGUF container: files of the gguf package are read, hostile ones cost one line, little memory and no time."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tmac_llm.checkpoint.gguf import container
from tmac_llm.checkpoint.gguf.container import GgufFile
from tmac_llm.errors import CheckpointError, UnsupportedError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file_bytes(
    pairs: tuple[bytes, ...] = (),
    entries: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    counts = (
        len(entries) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(entries)
    return header + bytes(-len(header) % 32) + data


SOUND = file_bytes(
    (pair("a", 8, text("b")), pair("n", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3))),
    (entry("x", (4, 2), 0, 0), entry("y", (32,), 2, 32)),
    np.arange(8, dtype="<f4").tobytes() + bytes(18),
)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], GgufFile]:
    def open_bytes(data: bytes) -> GgufFile:
        (tmp_path / "model.gguf").write_bytes(data)
        return GgufFile(tmp_path / "model.gguf")

    return open_bytes


def test_a_file_of_the_package(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint64("u", 1 << 40)
    writer.add_float32("f", 0.5)
    writer.add_bool("yes", True)
    writer.add_array("texts", ["", "a", "\u00e4\u2581"])
    writer.add_array("floats", [1.0, -2.5])
    writer.add_tensor("x", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("h", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "a.gguf")
    expected = {
        "general.architecture": "llama",
        "u": 1 << 40,
        "f": 0.5,
        "yes": True,
        "texts": ["", "a", "\u00e4\u2581"],
        "floats": [1.0, -2.5],
    }
    assert {key: file.metadata[key] for key in expected} == expected
    x, h = file.tensors["x"], file.tensors["h"]
    assert (x.shape, x.type.name, h.shape, h.type.name) == ((2, 3), "F32", (5,), "F16")
    assert file.read(x.begin, x.end).view("<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert file.read(h.begin, h.end).view("<f2").tolist() == [1] * 5


def test_a_file_written_by_hand(opened: Any) -> None:
    file = opened(SOUND)
    assert file.metadata == {"a": "b", "n": [1, -2, 3]}
    assert file.tensors["x"].shape == (2, 4)
    assert file.read(file.tensors["x"].begin, file.tensors["x"].end).view("<f4").tolist() == list(range(8))


def test_a_header_of_many_windows(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_WINDOW", 7)
    assert opened(SOUND).metadata == {"a": "b", "n": [1, -2, 3]}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "needs 4 bytes|begins with"),
        (b"GGU", "begins with b'GGU'"),
        (b"\x80\x02}q\x00", "begins with .*expected b'GGUF'"),
        (file_bytes(magic=b"GGML"), "not a GGUF file"),
        (file_bytes(version=1), "version 1, which is not supported"),
        (file_bytes(version=4), "version 4"),
        (file_bytes(version=3 << 24), "big-endian"),
        (file_bytes(n_pairs=1 << 63), "exceed the limit"),
        (file_bytes(n_tensors=1 << 40), "exceed the limit"),
        (file_bytes(n_pairs=60000), "truncated or damaged"),
        (file_bytes(n_tensors=60000), "truncated or damaged|unknown type|twice"),
        (file_bytes((pair("k", 8, struct.pack("<Q", 1 << 62)),)), "has 4611686018427387904 bytes"),
        (file_bytes((struct.pack("<Q", 1 << 50),)), "a metadata key has"),
        (file_bytes((pair("k", 8, struct.pack("<Q", 1) + b"\xff"),)), "not UTF-8"),
        (file_bytes((pair("k", 99, b""),)), "unknown type 99"),
        (file_bytes((pair("k", 9, struct.pack("<IQ", 0, 1 << 62)),)), "elements, more than"),
        (file_bytes((pair("k", 9, struct.pack("<IQ", 8, 1 << 21)),)), "elements, more than"),
        (file_bytes((pair("k", 9, struct.pack("<IQ", 9, 1)),)), "an array of type 9"),
        (file_bytes((pair("k", 4, bytes(4)),) * 2), "there twice"),
        (file_bytes((pair("general.alignment", 4, bytes(4)),)), "expected a power of two"),
        (file_bytes((pair("general.alignment", 4, struct.pack("<I", 48)),)), "expected a power of two"),
        (file_bytes((pair("general.alignment", 8, text("32")),)), "expected a power of two"),
        (file_bytes((), (entry("x", (1,) * 5, 0, 0),)), "5 dimensions"),
        (file_bytes((), (entry("x", (4,), 77, 0),)), "tensor type 77"),
        (file_bytes((), (entry("x", (1 << 40, 1 << 40), 0, 0),)), "absurd"),
        (file_bytes((), (entry("x", (4,), 0, 1 << 62),)), "absurd"),
        (file_bytes((), (entry("x", (33,), 2, 0),)), "33 values do not divide into the blocks of 32 of Q4_0"),
        (
            file_bytes((), (entry("x", (3, 32), 36, 0),)),
            "96 values do not divide into the blocks of 128 of I2_S",
        ),
        (file_bytes((), (entry("x", (8,), 0, 4),), bytes(64)), "no multiple of 32"),
        (file_bytes((), (entry("x", (9,), 0, 0),), bytes(32)), "ends at byte"),
        (file_bytes((), (entry("x", (1,), 0, 1 << 40),), bytes(32)), "ends at byte"),
        (file_bytes((), (entry("x", (8,), 0, 0),) * 2, bytes(64)), "there twice"),
        (file_bytes((), (entry("x", (9,), 0, 0), entry("y", (8,), 0, 32)), bytes(99)), "overlap"),
    ],
)
def test_hostile_files(opened: Any, data: bytes, match: str) -> None:
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=match) as info:
        opened(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(info.value)
    assert peak < 8 << 20


def test_a_long_header_is_not_read_to_its_end(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", 1 << 10)
    pairs = tuple(pair(f"key{i}", 8, text("x" * 50)) for i in range(100))
    with pytest.raises(CheckpointError, match="a header may end"):
        opened(file_bytes(pairs))


@pytest.mark.parametrize("size", range(0, len(SOUND), 7))
def test_every_truncation_gives_one_line(opened: Any, size: int) -> None:
    with pytest.raises(CheckpointError) as info:
        opened(SOUND[:size])
    assert "\n" not in str(info.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(SOUND) - 1), st.integers(1, 255))
def test_a_flipped_byte_opens_or_gives_one_line(opened: Any, at: int, flip: int) -> None:
    data = bytearray(SOUND)
    data[at] ^= flip
    message = ""
    try:
        file = opened(bytes(data))
        for tensor in file.tensors.values():
            file.read(tensor.begin, tensor.end)
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 2), st.integers(0, 3))
def test_any_bytes_after_the_start(opened: Any, data: bytes, n_tensors: int, n_pairs: int) -> None:
    message = ""
    try:
        opened(b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + data)
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        GgufFile(tmp_path / "none.gguf")
    (tmp_path / "dir.gguf").mkdir()
    with pytest.raises(CheckpointError):
        GgufFile(tmp_path / "dir.gguf")


def test_a_file_that_shrinks_after_opening(opened: Any, tmp_path: Path) -> None:
    file = opened(SOUND)
    (tmp_path / "model.gguf").write_bytes(SOUND[:200])
    y = file.tensors["y"]
    with pytest.raises(CheckpointError, match="truncated"):
        file.read(y.begin, y.end)


def test_unknown_versions_are_no_damage(opened: Any) -> None:
    with pytest.raises(UnsupportedError):
        opened(file_bytes(version=9))
