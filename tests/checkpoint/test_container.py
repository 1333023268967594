"""SafetensorsFile: values of every dtype, rows, one clear line for every damaged or hostile file."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tmac_llm.checkpoint.container import SafetensorsFile
from tmac_llm.errors import CheckpointError, TmacError, UnsupportedError

ARRAYS = {
    "f32": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "f16": np.linspace(-2, 2, 15).astype(np.float16).reshape(5, 3),
    "bf16": np.linspace(-3, 3, 6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "u8": np.arange(7, dtype=np.uint8),
    "i8": np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 2),
    "i32": np.array([[-5, 6]], np.int32),
    "i64": np.array([1 << 40], np.int64),
    "empty": np.empty((0, 3), np.float32),
    "scalar": np.array(2.5, np.float32),
}


def one(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("name", ARRAYS)
def test_values_written_by_the_reference_library(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)
    array = SafetensorsFile(path).read(name)
    assert array.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(array, ARRAYS[name])


@pytest.mark.parametrize("pad", range(8))
def test_unaligned_data(tmp_path: Path, to_safetensors: Callable[..., bytes], pad: int) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {"odd": np.arange(3, dtype=np.uint8), "f32": ARRAYS["f32"]}
    path.write_bytes(to_safetensors(arrays, pad))
    np.testing.assert_array_equal(SafetensorsFile(path).read("f32"), ARRAYS["f32"])


def test_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)
    file = SafetensorsFile(path)
    for begin in range(6):
        for end in range(begin, 6):
            np.testing.assert_array_equal(file.read("f16", begin, end), ARRAYS["f16"][begin:end])
    with pytest.raises(ValueError, match="rows"):
        file.read("f16", 2, 6)


def test_reading_rows_takes_the_memory_of_the_rows(
    tmp_path: Path, to_safetensors: Callable[..., bytes]
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_safetensors({"w": np.zeros((4096, 1024), np.float32)}))
    file = SafetensorsFile(path)
    tracemalloc.start()
    file.read("w", 100, 164)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 1024 * 4 * 1.2


HOSTILE: dict[str, tuple[Any, bytes, str]] = {
    "reversed offsets": ({"a": one(offsets=(16, 0))}, bytes(16), "reversed"),
    "beyond the file": ({"a": one(offsets=(0, 16))}, bytes(8), "ends at byte"),
    "far beyond the file": ({"a": one("U8", [1 << 40], (0, 1 << 40))}, bytes(8), "ends at byte"),
    "overlap": ({"a": one(), "b": one(offsets=(8, 24))}, bytes(24), "overlap"),
    "the same bytes": ({"a": one(), "b": one()}, bytes(16), "overlap"),
    "hole": ({"a": one(), "b": one(offsets=(20, 36))}, bytes(36), "belong to no tensor"),
    "hole at the start": ({"a": one(offsets=(4, 20))}, bytes(20), "belong to no tensor"),
    "bytes at the end": ({"a": one()}, bytes(20), "belong to no tensor"),
    "no tensors but data": ({}, bytes(4), "belong to no tensor"),
    "too few bytes": ({"a": one(shape=(2, 3))}, bytes(16), "needs 24 bytes"),
    "too many bytes": ({"a": one("F16")}, bytes(16), "needs 8 bytes"),
    "shape overflow": ({"a": one(shape=(1 << 32, 1 << 32))}, bytes(16), "overflows"),
    "overflow to the right size": ({"a": one("U8", (1 << 32, 1 << 32), (0, 0))}, b"", "overflows"),
    "overflow hidden by zero": ({"a": one("U8", (1 << 62, 1 << 62, 0), (0, 0))}, b"", "overflows"),
    "huge size": ({"a": one(shape=(1 << 70,))}, bytes(16), "shape"),
    "negative size": ({"a": one(shape=(-2, -2))}, bytes(16), "shape"),
    "fractional size": ({"a": one(shape=(2.0, 2))}, bytes(16), "shape"),
    "boolean size": ({"a": one(shape=(True, 4))}, bytes(16), "shape"),
    "too many dimensions": ({"a": one(shape=[1] * 99)}, bytes(16), "shape"),
    "negative offset": ({"a": one(offsets=(-16, 0))}, bytes(16), "data_offsets"),
    "three offsets": ({"a": one(offsets=(0, 8, 16))}, bytes(16), "data_offsets"),
    "unknown dtype": ({"a": one("F12")}, bytes(16), "dtype 'F12'"),
    "dtype of another type": ({"a": one(dtype=["F32"])}, bytes(16), "dtype"),
    "entry is a list": ({"a": [1, 2]}, bytes(16), "expected dtype, shape and data_offsets"),
    "entry without shape": (
        {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
        bytes(16),
        "expected dtype, shape",
    ),
    "header is a list": ([1], b"", "expected a JSON object"),
    "not JSON": (b"{'a': 1}", b"", "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not UTF-8"),
    "NaN": (b'{"a": NaN}', b"", "not a JSON number"),
    "duplicate tensor": (b'{"a": {"dtype": "U8"}, "a": {"dtype": "U8"}}', b"", "occurs twice"),
    "duplicate key": (b'{"a": {"dtype": "U8", "dtype": "U8"}}', b"", "occurs twice"),
    "deep nesting": (b'{"a":' + b"[" * 200000 + b"]" * 200000 + b"}", b"", "nested too deeply"),
    "endless digits": (b'{"a":' + b"9" * 10000 + b"}", b"", "not usable JSON"),
    "empty header": (b"", b"", "not JSON"),
    "surrogate name": (b'{"\\uD800": 1}', b"", "half a surrogate pair"),
    "whole surrogate pair": (b'{"\\ud83d\\ude00": 1}', b"", "expected dtype"),
    "line breaks in the name": (b'{"\\n\\u001b[31m": 1}', b"", "expected dtype"),
}


@pytest.mark.parametrize(("header", "data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = raw(tmp_path / "a.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as info:
        SafetensorsFile(path)
    assert str(info.value).startswith("a.safetensors: ")
    assert str(info.value).isprintable()
    assert len(str(info.value)) < 500


@pytest.mark.parametrize("length", [3, 1 << 20, 1 << 40, 1 << 62, (1 << 64) - 1])
def test_header_length_that_lies(tmp_path: Path, length: int) -> None:
    path = raw(tmp_path / "a.safetensors", {"a": one()}, bytes(16), length)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="header"):
        SafetensorsFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_long_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(2 << 30)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="exceeds the limit"):
        SafetensorsFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("size", range(8))
def test_tiny_files(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match="too few"):
        SafetensorsFile(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafetensorsFile(tmp_path)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.safetensors", {"a": one()}, bytes(16))
    file = SafetensorsFile(path)
    with path.open("r+b") as other:
        other.truncate(path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="truncated"):
        file.read("a")


def test_dtype_without_numpy_type(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.safetensors", {"a": one("F8_E4M3", (4, 4))}, bytes(16))
    with pytest.raises(UnsupportedError, match=r"'a'.*F8_E4M3.*supported: F32"):
        SafetensorsFile(path).read("a")


def test_close_releases_the_file(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.safetensors", {"a": one()}, bytes(16))
    file = SafetensorsFile(path)
    file.close()
    with pytest.raises(CheckpointError, match="cannot be read"):
        file.read("a")


FUZZ = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SIZE = st.one_of(st.integers(-2, 40), st.sampled_from([1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64, 1 << 80]))
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "I64", "F4", "F6_E2M3", "X"]),
        "shape": st.lists(SIZE, max_size=4),
        "data_offsets": st.lists(SIZE, min_size=2, max_size=2),
    }
)


def open_or_message(path: Path) -> SafetensorsFile | str:
    try:
        return SafetensorsFile(path)
    except TmacError as error:
        return str(error)


@FUZZ
@given(st.dictionaries(st.text(max_size=5), ENTRY, max_size=4), st.integers(0, 80))
def test_any_header_opens_or_gives_one_line(tmp_path: Path, header: dict[str, Any], n_data: int) -> None:
    opened = open_or_message(raw(tmp_path / "a.safetensors", header, bytes(n_data)))
    if isinstance(opened, str):
        assert opened.isprintable()
        return
    # What opens is covered exactly once, and every readable tensor can be read in full.
    assert sum(info.end - info.begin for info in opened.tensors.values()) == n_data
    for info in opened.tensors.values():
        if info.dtype not in ("F4", "F6_E2M3"):
            assert opened.read(info.name).shape == info.shape
    opened.close()


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_open_or_give_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    opened = open_or_message(path)
    assert isinstance(opened, SafetensorsFile) or opened.isprintable()


@FUZZ
@given(st.data())
def test_a_flipped_header_byte_opens_or_gives_one_line(tmp_path: Path, data: st.DataObject) -> None:
    good = raw(
        tmp_path / "good.safetensors", {"a": one(), "b": one(offsets=(16, 32))}, bytes(32)
    ).read_bytes()
    position = data.draw(st.integers(0, len(good) - 33))
    path = tmp_path / "a.safetensors"
    path.write_bytes(good[:position] + bytes([data.draw(st.integers(0, 255))]) + good[position + 1 :])
    opened = open_or_message(path)
    assert isinstance(opened, SafetensorsFile) or opened.isprintable()
