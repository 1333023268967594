"""Weights multiplied straight from mapped files, whose pages all processes share; knows no decoder.

Where the running instruction set reads a matrix in the order of its packed tiles (AVX-512: bit planes) the model's
own file is mapped. Where it wants another order, a copy of such matrices in that order is made once per model and
instruction set in the user's cache, and mapped:

    bytes of a matrix, of the next, ..  each at a multiple of 64
    JSON    version (of tmac-llm), isa, model (SHA-256 of the model's manifest), order (SHA-256 of small matrices in
            this order), sha256 of all bytes before, matrices {name: {offset, n_bytes, slabs}}
    16 bytes: length of the JSON (little endian), "tmac-map"

A copy that does not match is made again. It appears whole, under a lock, by a rename: processes that hold an older one
keep its pages. Mapped pages have 4 KiB, so decoding from memory is slower than from huge pages.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import tmac_llm
from tmac_llm import cache, kernels
from tmac_llm.errors import KernelError, PackedModelError
from tmac_llm.kernels import Matrix, MatrixShape
from tmac_llm.packed.container import PackedModel
from tmac_llm.packed.files import MANIFEST

_MAGIC = b"tmac-map"
_ALIGNMENT = 64
_MAX_HEADER = 16 << 20
_SUFFIX = ".weights"

Bytes = npt.NDArray[np.uint8]


class MappedWeights:
    """The matrices of these names as views of mapped files; a copy is made where one is needed.

    copy: the file in the cache, or None where the model's own files serve.
    Raises PackedModelError for a file that is not aligned, StoreError where the cache cannot be written.
    """

    def __init__(self, packed: PackedModel, names: Sequence[str]) -> None:
        self._packed = packed
        self._shapes = _shapes(packed, names)
        reordered = {name: s for name, s in self._shapes.items() if not kernels.keeps_order(s)}
        self.copy = copy_path(packed.path) if reordered else None
        self._entries: dict[str, Any] = {}
        if self.copy:
            self._data, self._entries = _open_or_make(self.copy, packed, reordered)

    def matrix(self, name: str) -> Matrix:
        """One of the matrices; it keeps the mapping alive."""
        shape, entry = self._shapes[name], self._entries.get(name)
        if entry:
            begin = entry["offset"]
            return Matrix.view(shape, self._data[begin : begin + entry["n_bytes"]], entry["slabs"])
        data = self._packed.tiles(name)
        if data.ctypes.data % _ALIGNMENT:
            raise PackedModelError(
                f"{self._packed.path}: {name} is not at a multiple of {_ALIGNMENT} bytes, so it cannot be used where"
                " it lies; load it without mmap, or convert the model again"
            )
        return Matrix.view(shape, data)


def needs_copy(packed: PackedModel, names: Sequence[str]) -> int:
    """Bytes of the copy that has to be made before these matrices can be mapped; 0 where there is nothing to do."""
    shapes = {n: s for n, s in _shapes(packed, names).items() if not kernels.keeps_order(s)}
    if not shapes or _read(copy_path(packed.path), packed, shapes):
        return 0
    return sum(shape.packed_size for shape in shapes.values())


def directory() -> Path:
    """Where copies lie; need not exist."""
    return cache.directory() / "weights"


def copy_path(model: Path) -> Path:
    """The copy for a packed model and the running instruction set: named after the model's content."""
    return directory() / f"{model.resolve().name}-{_digest(model)[:12]}-{kernels.isa_selected()}{_SUFFIX}"


def copies(model: Path | None = None) -> list[Path]:
    """All copies, or those of one model, for every instruction set."""
    pattern = f"*-{_digest(model)[:12]}-*{_SUFFIX}" if model else f"*{_SUFFIX}"
    return sorted(directory().glob(pattern))


def remove(path: Path) -> None:
    """Remove one of `copies()`; processes that hold it keep its pages."""
    path.unlink(missing_ok=True)
    path.with_name(f".{path.name}.lock").unlink(missing_ok=True)


def verify(path: Path) -> None:
    """Hash a copy. Raises PackedModelError where its content is not what was written."""
    found = _footer(path)
    if found:
        end, header = found
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while end and (part := file.read(min(end, 1 << 20))):
                digest.update(part)
                end -= len(part)
        if digest.hexdigest() == header.get("sha256"):
            return
    raise PackedModelError(f"{path}: damaged; remove it, --mmap makes it again")


def _shapes(packed: PackedModel, names: Sequence[str]) -> dict[str, MatrixShape]:
    return {name: shape for name in names if (shape := packed.shape(name))}


def _digest(model: Path) -> str:
    return hashlib.sha256((model / MANIFEST).read_bytes()).hexdigest()


def _identity(packed: PackedModel, shapes: dict[str, MatrixShape]) -> dict[str, str]:
    """What must be equal for a copy to be right: the model, and the order that this build reads."""
    order = hashlib.sha256()
    rng = np.random.default_rng(0)
    for small in sorted({replace(shape, m=64, k=300) for shape in shapes.values()}, key=str):
        matrix = Matrix(small, np.frombuffer(rng.bytes(small.packed_size), np.uint8))
        order.update(f"{small} {matrix.slabs}".encode() + matrix.data.tobytes())
        matrix.close()
    return {
        "version": tmac_llm.__version__,
        "isa": kernels.isa_selected(),
        "model": _digest(packed.path),
        "order": order.hexdigest(),
    }


def _open_or_make(
    path: Path, packed: PackedModel, shapes: dict[str, MatrixShape]
) -> tuple[Bytes, dict[str, Any]]:
    found = _read(path, packed, shapes)
    if found is None:
        with cache.one_at_a_time(path):
            found = _read(path, packed, shapes)  # another process may have been quicker
            if found is None:
                _make(path, packed, shapes)
                found = _read(path, packed, shapes)
    if found is None:
        raise PackedModelError(f"{path}: changed while it was read; try again")
    return found


def _make(path: Path, packed: PackedModel, shapes: dict[str, MatrixShape]) -> None:
    """Write the copy; one matrix is in memory at a time."""
    digest, offset, entries = hashlib.sha256(), 0, {}
    with cache.writing(path) as file:
        for name, shape in shapes.items():
            matrix = Matrix(shape, packed.tiles(name))
            data = matrix.data
            entries[name] = {"offset": offset, "n_bytes": data.nbytes, "slabs": matrix.slabs}
            padding = bytes(-data.nbytes % _ALIGNMENT)
            for part in (data.data, padding):
                digest.update(part)
                file.write(part)
            offset += data.nbytes + len(padding)
            del data, part
            matrix.close()
            packed.release()
        header = {**_identity(packed, shapes), "sha256": digest.hexdigest(), "matrices": entries}
        text = json.dumps(header).encode()
        file.write(text + len(text).to_bytes(8, "little") + _MAGIC)


def _read(
    path: Path, packed: PackedModel, shapes: dict[str, MatrixShape]
) -> tuple[Bytes, dict[str, Any]] | None:
    """The mapped bytes and the entries of a copy that is right for these matrices, else None."""
    found = _footer(path)
    if found is None:
        return None
    end, header = found
    entries = header.get("matrices")
    if not _identity(packed, shapes).items() <= header.items() or not isinstance(entries, dict):
        return None
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_WILLNEED)
    data = np.frombuffer(mapped, np.uint8)[:end]
    if entries.keys() != shapes.keys() or not all(_fits(data, shapes[n], e) for n, e in entries.items()):
        return None
    return data, entries


def _fits(data: Bytes, shape: MatrixShape, entry: Any) -> bool:
    """Whether an entry is a place in `data` where this matrix can lie."""
    fields = entry if isinstance(entry, dict) else {}
    offset, n_bytes, slabs = (_number(fields.get(key)) for key in ("offset", "n_bytes", "slabs"))
    if min(offset, n_bytes, slabs) < 0 or slabs >= 1 << 31:
        return False
    try:  # which finds what is not aligned, or ends behind the data
        Matrix.view(shape, data[offset : offset + n_bytes], slabs).close()
    except KernelError:
        return False
    return True


def _number(value: object) -> int:
    """A sound offset or size, else -1."""
    return value if type(value) is int and 0 <= value < 1 << 62 else -1


def _footer(path: Path) -> tuple[int, dict[str, Any]] | None:
    """(bytes before the JSON, the JSON) of a file that ends as a copy does, else None."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 16, 0))
            tail = file.read(16)
            length = int.from_bytes(tail[:8], "little")
            if tail[8:] != _MAGIC or not 0 < length <= min(size - 16, _MAX_HEADER):
                return None
            file.seek(size - 16 - length)
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError):
        return None
    return (size - 16 - length, header) if isinstance(header, dict) else None
