"""Reader of one GGUF file: metadata and a checked tensor list, bytes on demand; knows nothing of models.

The container (ggml-org/ggml, docs/gguf.md), little-endian, version 2 or 3:

    "GGUF" | u32 version | u64 n_tensors | u64 n_pairs | pairs | tensor list | padding | data
    pair      string key | u32 type | value        string: u64 length | UTF-8
                                                   array:  u32 type | u64 length | values
    tensor    string name | u32 n_dims | u64 dims, the fastest first | u32 type | u64 offset in the data

Data begins at the next multiple of general.alignment, and every tensor at one. Counts are checked against what the
file can hold before anything is allocated, so a hostile file costs no more than the limits below. (The reader of the
`gguf` package trusts counts, and takes 24 s and 600 MB for the vocabulary of a Llama 3; this one 1 s and 30 MB.)
"""

from __future__ import annotations

import math
import os
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.files import pread_exactly
from tmac_llm.checkpoint.gguf.types import TYPES, BlockType
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import show

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Real headers: 1 to 20 MB (a vocabulary of 128,000 to 260,000 tokens and its merges), below 2,000 tensors.
MAX_HEADER_BYTES = 128 << 20
_MAX_PAIRS = _MAX_TENSORS = 1 << 16
_MAX_ELEMENTS = 1 << 20
_MAX_STRING = 1 << 24  # a chat template, or a tokenizer.json as one text
_MAX_NAME = 1 << 10
_MAX_RANK = 4
_WINDOW = 1 << 20
_AGAIN = "; the file is damaged, download it again"

# Value types 0 to 12; 8 and 9 are string and array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _BOOL = 8, 9, 7


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the tensor list: shape with the slowest dimension first, byte offsets in the file."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    begin: int
    end: int


class GgufFile:
    """An open GGUF file. metadata: key -> number, bool, str or list of them; tensors: name -> checked entry."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError, or UnsupportedError for another version, byte order or tensor type."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        self._finalizer = weakref.finalize(self, os.close, self._fd)
        try:
            self.n_bytes = os.fstat(self._fd).st_size
            cursor = _Cursor(self._fd, self.n_bytes, path.name)
            n_tensors, n_pairs = _read_start(cursor)
            self.metadata = _read_pairs(cursor, n_pairs)
            self.tensors = _read_tensors(cursor, n_tensors, self.metadata, self.n_bytes)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; happens by itself when the object is collected."""
        self._finalizer()
        self._fd = -1  # the number may be given to another file

    def read(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Bytes [begin, end) of the file. Raises CheckpointError when it shrank."""
        out = np.empty(end - begin, np.uint8)
        if out.size:
            pread_exactly(self._fd, out.data, begin, self.path.name)
        return out


class _Cursor:
    """Reads a header from its beginning, a window at a time."""

    def __init__(self, fd: int, n_bytes: int, where: str) -> None:
        self._fd, self._n_bytes, self.where = fd, n_bytes, where
        self._data = bytearray()
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file, or of what a header may have."""
        return min(self._n_bytes, MAX_HEADER_BYTES) - self.position

    def take(self, n: int, what: str) -> bytearray:
        begin = self.position
        if begin + n > len(self._data):
            self._fill(n, what)
        self.position = begin + n
        return self._data[begin : begin + n]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str, limit: int = _MAX_STRING) -> str:
        length = int.from_bytes(self.take(8, what), "little")
        if length > limit:
            raise CheckpointError(f"{self.where}: {what} has {length} bytes, at most {limit}{_AGAIN}")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.where}: {what} is not UTF-8{_AGAIN}") from None

    def _fill(self, n: int, what: str) -> None:
        """Read on, so that n bytes are there."""
        if n > self.left:
            limit = "the file ends" if self._n_bytes <= MAX_HEADER_BYTES else "a header may end"
            raise CheckpointError(
                f"{self.where}: {what} at byte {self.position} needs {n} bytes, {limit} after {self.left}"
                "; it is truncated or damaged, download it again"
            )
        missing = self.position + n - len(self._data)
        end = min(self._n_bytes, MAX_HEADER_BYTES)
        window = bytearray(min(max(missing, _WINDOW), end - len(self._data)))
        pread_exactly(self._fd, memoryview(window), len(self._data), self.where)
        self._data += window


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    magic = bytes(cursor.take(min(4, cursor.left), "the magic number"))
    if magic != MAGIC:
        raise CheckpointError(
            f"{cursor.where}: begins with {show(magic)}, expected {show(MAGIC)}; not a GGUF file, or a broken download"
        )
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        found = "big-endian" if swapped else f"version {version}"
        raise UnsupportedError(
            f"{cursor.where}: a GGUF file of {found}, which is not supported; supported: little-endian, versions"
            f" {' and '.join(map(str, VERSIONS))}; take a newer file of this model"
        )
    n_tensors, n_pairs = cursor.number("Q", "the tensor count"), cursor.number("Q", "the metadata count")
    for what, found, limit in (
        ("tensors", n_tensors, _MAX_TENSORS),
        ("metadata pairs", n_pairs, _MAX_PAIRS),
    ):
        if found > limit:
            raise CheckpointError(f"{cursor.where}: {found} {what} exceed the limit of {limit}{_AGAIN}")
    return n_tensors, n_pairs


def _read_pairs(cursor: _Cursor, n_pairs: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = cursor.text("a metadata key", _MAX_NAME)
        if key in metadata:
            raise CheckpointError(f"{cursor.where}: metadata {show(key)} is there twice{_AGAIN}")
        metadata[key] = _read_value(cursor, cursor.number("I", f"the type of {show(key)}"), show(key))
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.text(f"metadata {key}")
    if kind == _ARRAY:
        return _read_array(cursor, key)
    if kind not in _SCALARS:
        raise CheckpointError(f"{cursor.where}: metadata {key} has the unknown type {kind}{_AGAIN}")
    return cursor.number(_SCALARS[kind], f"metadata {key}")


def _read_array(cursor: _Cursor, key: str) -> list[Any]:
    kind, length = cursor.number("I", f"metadata {key}"), cursor.number("Q", f"metadata {key}")
    if kind != _STRING and kind not in _SCALARS:  # arrays of arrays are allowed, and nobody writes them
        raise UnsupportedError(f"{cursor.where}: metadata {key} is an array of type {kind}{_AGAIN}")
    size = 8 if kind == _STRING else struct.calcsize("<" + _SCALARS[kind])
    if length > _MAX_ELEMENTS or length * size > cursor.left:
        raise CheckpointError(
            f"{cursor.where}: metadata {key} has {length} elements, more than the file or the limit of"
            f" {_MAX_ELEMENTS} holds{_AGAIN}"
        )
    if kind == _STRING:
        what = f"metadata {key}"
        return [cursor.text(what) for _ in range(length)]
    dtype = "?" if kind == _BOOL else f"<{np.dtype(_SCALARS[kind]).str[1:]}"
    values: list[Any] = np.frombuffer(cursor.take(length * size, f"metadata {key}"), dtype).tolist()
    return values


def _read_tensors(
    cursor: _Cursor, n_tensors: int, metadata: dict[str, Any], n_bytes: int
) -> dict[str, GgufTensor]:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & alignment - 1:
        raise CheckpointError(
            f"{cursor.where}: general.alignment is {show(alignment)}, expected a power of two{_AGAIN}"
        )
    entries = [_read_entry(cursor) for _ in range(n_tensors)]
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in entries:
        who = f"{cursor.where}: tensor {show(name)}"
        begin, end = start + offset, start + offset + kind.n_bytes_of(shape)
        if name in tensors:
            raise CheckpointError(f"{who} is there twice{_AGAIN}")
        if offset % alignment:
            raise CheckpointError(f"{who}: offset {offset} is no multiple of {alignment}{_AGAIN}")
        if end > n_bytes:
            raise CheckpointError(
                f"{who} ends at byte {end} but the file has {n_bytes}; it is truncated, download it again"
            )
        tensors[name] = GgufTensor(name, kind, shape, begin, end)
    previous = None
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if previous and tensor.begin < previous.end:
            raise CheckpointError(
                f"{cursor.where}: tensors {show(previous.name)} and {show(tensor.name)} overlap{_AGAIN}"
            )
        previous = tensor
    return tensors


def _read_entry(cursor: _Cursor) -> tuple[str, BlockType, tuple[int, ...], int]:
    name = cursor.text("a tensor name", _MAX_NAME)
    who = f"tensor {show(name)}"
    rank = cursor.number("I", who)
    if rank > _MAX_RANK:
        raise CheckpointError(f"{cursor.where}: {who} has {rank} dimensions, at most {_MAX_RANK}{_AGAIN}")
    shape = tuple(cursor.number("Q", who) for _ in range(rank))[::-1]
    kind, offset = cursor.number("I", who), cursor.number("Q", who)
    if kind not in TYPES:
        raise UnsupportedError(
            f"{cursor.where}: {who} has the tensor type {kind}, which is not known; take a file of a common type,"
            " such as Q4_0 or Q8_0"
        )
    block = TYPES[kind]
    if math.prod(n for n in shape if n) >= 1 << 48 or offset >= 1 << 48:
        raise CheckpointError(f"{cursor.where}: {who}: shape {list(shape)} at {offset} is absurd{_AGAIN}")
    n_values = shape[-1] if block.rows_are_whole and shape else math.prod(shape)
    if n_values % block.n_values:
        raise CheckpointError(
            f"{cursor.where}: {who}: {n_values} values do not divide into the blocks of {block.n_values} of"
            f" {block.name}{_AGAIN}"
        )
    return name, block, shape, offset
