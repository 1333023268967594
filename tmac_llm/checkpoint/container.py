"""Reader of one safetensors file: a checked header and tensor rows read on demand; knows nothing of models.

The container (huggingface/safetensors, format section of its README):

    u64 little-endian N | N bytes of JSON header | data

Header entries hold dtype, shape and data_offsets [begin, end) relative to byte 8 + N. The data must be
covered without overlaps and without holes. Rows are copied with pread, so no alignment is assumed, and memory
use is the rows asked for: a mapped file would count every page it touched.
"""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.files import MAX_JSON_BYTES, parse_json, pread_exactly
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import show

# Bits per element of every dtype of the format; those with a numpy type can be read.
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
}
_BITS |= {"BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64}
_BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_NUMPY = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_MAX_RANK = 8
_AGAIN = "; the file is damaged, download it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One header entry; `begin` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open safetensors file. `tensors` maps names to header entries, all of them checked."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError, or UnsupportedError for a dtype outside the format."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        self._finalizer = weakref.finalize(self, os.close, self._fd)
        try:
            self.n_bytes = os.fstat(self._fd).st_size
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; reading fails from here on. Happens by itself when the object is collected."""
        self._finalizer()
        self._fd = -1  # the number may be given to another file

    def read(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Rows [begin, end) of a tensor (all of it by default) as a new array of shape (end - begin, ...).

        BF16 has dtype ml_dtypes.bfloat16. Raises CheckpointError when the file shrank, UnsupportedError for a
        dtype that numpy does not know.
        """
        info = self.tensors[name]
        dtype = _NUMPY.get(info.dtype)
        if dtype is None:
            raise UnsupportedError(
                f"{self.path.name}: tensor {show(name)} has dtype {info.dtype}, which is not supported;"
                f" supported: {', '.join(_NUMPY)}"
            )
        shape, offset = info.shape, info.begin
        if shape:
            end = shape[0] if end is None else end
            if not 0 <= begin <= end <= shape[0]:
                raise ValueError(f"rows [{begin}, {end}) of a tensor of shape {shape}")
            offset += begin * math.prod(shape[1:]) * dtype.itemsize
            shape = (end - begin, *shape[1:])
        array = np.empty(shape, dtype)
        if array.size:
            pread_exactly(self._fd, array.reshape(-1).view(np.uint8).data, offset, self.path.name)
        return array

    def _read_header(self) -> dict[str, TensorInfo]:
        where = self.path.name
        if self.n_bytes < 8:
            raise CheckpointError(f"{where}: {self.n_bytes} bytes are too few for a safetensors file{_AGAIN}")
        prefix = bytearray(8)
        pread_exactly(self._fd, memoryview(prefix), 0, where)
        length = int.from_bytes(prefix, "little")
        if length > self.n_bytes - 8:
            raise CheckpointError(
                f"{where}: the header should have {length} bytes but the file has {self.n_bytes}"
                "; it is truncated or not a safetensors file, download it again"
            )
        if length > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{where}: a header of {length} bytes exceeds the limit of {MAX_JSON_BYTES}{_AGAIN}"
            )
        data = bytearray(length)
        pread_exactly(self._fd, memoryview(data), 8, where)
        entries = parse_json(bytes(data), f"{where}: header")
        entries.pop("__metadata__", None)
        start = 8 + length
        tensors = {name: _parse_entry(where, name, entry, start) for name, entry in entries.items()}
        _check_coverage(where, tensors, start, self.n_bytes)
        return tensors


def _parse_entry(where: str, name: str, entry: Any, start: int) -> TensorInfo:
    who = f"{where}: tensor {show(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{who}: expected dtype, shape and data_offsets, found {show(entry)}{_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise UnsupportedError(f"{who}: dtype {show(dtype)} is not supported; supported: {', '.join(_NUMPY)}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_size(n) for n in shape):
        raise CheckpointError(
            f"{who}: expected a shape of at most {_MAX_RANK} sizes, found {show(shape)}{_AGAIN}"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise CheckpointError(f"{who}: expected data_offsets [begin, end], found {show(offsets)}{_AGAIN}")
    begin, end = offsets
    if begin > end:
        raise CheckpointError(f"{who}: data_offsets [{begin}, {end}] are reversed{_AGAIN}")
    if math.prod(n for n in shape if n) * 8 >= 1 << 63:
        raise CheckpointError(f"{who}: a shape of {shape} overflows 64 bits{_AGAIN}")
    n_bits = math.prod(shape) * _BITS[dtype]
    if n_bits != (end - begin) * 8:
        raise CheckpointError(
            f"{who}: {dtype} {shape} needs {n_bits / 8:g} bytes but data_offsets cover {end - begin}{_AGAIN}"
        )
    return TensorInfo(name, dtype, tuple(shape), start + begin, start + end)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _check_coverage(where: str, tensors: dict[str, TensorInfo], start: int, n_bytes: int) -> None:
    """The tensors must follow each other from the header to the end of the file."""
    position, previous = start, "the header"
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.end > n_bytes:
            raise CheckpointError(
                f"{where}: tensor {show(info.name)} ends at byte {info.end} but the file has {n_bytes}"
                "; it is truncated, download it again"
            )
        if info.begin < position:
            raise CheckpointError(f"{where}: tensors {previous} and {show(info.name)} overlap{_AGAIN}")
        if info.begin > position:
            raise CheckpointError(
                f"{where}: {info.begin - position} bytes between {previous} and tensor {show(info.name)}"
                f" belong to no tensor{_AGAIN}"
            )
        position, previous = info.end, show(info.name)
    if position != n_bytes:
        raise CheckpointError(
            f"{where}: {n_bytes - position} bytes after {previous} belong to no tensor{_AGAIN}"
        )
