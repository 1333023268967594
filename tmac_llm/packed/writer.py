"""The directory of a packed model, written: streamed, hashed on the way, named last; knows no models."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tmac_llm.errors import ConvertError
from tmac_llm.packed import files
from tmac_llm.packed.files import CONFIG, DTYPES, MANIFEST, TEMPORARY, Array, FileEntry

MAX_SHARD_BYTES = 4 * 10**9
INDEX = "model.safetensors.index.json"
_HEADER_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (a key of files.DTYPES) and shape of a tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return int(math.prod(self.shape) * DTYPES[self.dtype].itemsize)


class PackedWriter:
    """Writes one packed model. All tensors are announced first, so that each file's header precedes its data.

        with PackedWriter(out, specs) as writer:
            for spec in writer.specs:                       # in the order of the files
                writer.write(spec.name, array)              # whole, or piece by piece in row order
            writer.finish(config)

    Files are written to a sibling of `out`, which `finish` renames to `out`; leaving the block without it
    removes the sibling. What a killed process left behind is removed by the next writer.
    """

    def __init__(
        self,
        out: Path,
        specs: Sequence[TensorSpec],
        *,
        force: bool = False,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        """`force` replaces an existing packed model. Raises ConvertError where `out` may not be written."""
        check_target(out, force=force)
        self.out = out.resolve()
        self.specs = sorted(specs, key=_file_order)
        self.n_bytes = sum(spec.n_bytes for spec in specs)
        self._shards = _plan_shards(self.specs, max_shard_bytes)
        self._todo = deque((i, spec) for i, shard in enumerate(self._shards) for spec in shard)
        self._left = 0  # bytes that the tensor in front still lacks
        self._file: _HashedFile | None = None
        self._entries: dict[str, FileEntry] = {}
        self._finished = False
        self._force = force

    def __enter__(self) -> PackedWriter:
        """Raises ConvertError where the directory cannot be made or the disk has too little space."""
        parent = self.out.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(parent)
            self._check_space()
            self._path = parent / files.temporary_name(self.out.name)
            self._path.mkdir()
            # Held until this process ends, however it ends: tells a running conversion from a dead one.
            self._lock = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a disk without locks: what is left there stays
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise self._failed(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.abandon()
        if not self._finished:
            shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)

    def write(self, name: str, values: Array) -> None:
        """Append C-ordered values to the tensor `name`, which must be the next incomplete one of `specs`."""
        shard, spec = self._todo[0]
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._left = self._left or spec.n_bytes
        if spec.name != name or values.dtype != DTYPES[spec.dtype] or data.size > self._left:
            raise ValueError(
                f"{name}: {values.dtype} {values.shape} does not continue {spec}, {self._left} bytes left"
            )
        try:
            if self._file is None:
                self._file = _HashedFile(self._path / self._shard_name(shard))
                self._file.write(_header(self._shards[shard]))
            self._file.write(data)
            self._left -= data.size
            if self._left == 0:
                self._todo.popleft()
                if spec is self._shards[shard][-1]:
                    self._close(self._file)
                    self._file = None
        except OSError as error:
            raise self._failed(error) from None

    def finish(self, config: Mapping[str, Any], copies: Sequence[Path] = ()) -> int:
        """Write config.json, copy files as they are, write the manifest and give the directory its name.

        Returns the bytes of all files but the manifest.
        """
        if self._todo:
            raise ValueError(f"{self._todo[0][1].name} is not complete")
        try:
            self._add(CONFIG, _json(config))
            for path in copies:
                self._add(path.name, path.read_bytes())
            if len(self._shards) > 1:
                self._add(INDEX, _json(self._index()))
            n_bytes = sum(entry.size for entry in self._entries.values())
            self._add(MANIFEST, _json(self._manifest()))
            files.sync_directory(self._path)
            self._take_name()
        except OSError as error:
            raise self._failed(error) from None
        return n_bytes

    def _index(self) -> dict[str, Any]:
        shards = enumerate(self._shards)
        weight_map = {spec.name: self._shard_name(i) for i, shard in shards for spec in shard}
        return {"metadata": {"total_size": self.n_bytes}, "weight_map": weight_map}

    def _manifest(self) -> dict[str, Any]:
        entries = {name: asdict(entry) for name, entry in sorted(self._entries.items())}
        return {"format": files.FORMAT, "format_version": files.FORMAT_VERSION, "files": entries}

    def _take_name(self) -> None:
        """Rename to `out`. A model to be replaced first steps aside, under a name that any writer removes."""
        aside = None
        if self._force and self.out.exists():
            aside = self.out.parent / files.temporary_name(self.out.name)
            self.out.rename(aside)
        try:
            self._path.rename(self.out)
        except OSError:
            if aside:
                aside.rename(self.out)
            raise
        self._finished = True
        files.sync_directory(self.out.parent)
        if aside:
            shutil.rmtree(aside, ignore_errors=True)

    def _add(self, name: str, data: bytes) -> None:
        self._file = _HashedFile(self._path / name)
        self._file.write(data)
        self._close(self._file)
        self._file = None

    def _close(self, file: _HashedFile) -> None:
        self._entries[file.path.name] = file.close()

    def _shard_name(self, i: int) -> str:
        n = len(self._shards)
        return "model.safetensors" if n == 1 else f"model-{i + 1:05d}-of-{n:05d}.safetensors"

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.out.parent).free
        if free < self.n_bytes:
            raise ConvertError(
                f"{self.out.parent}: needs {self.n_bytes / 1e6:.1f} MB of disk, {free / 1e6:.1f} MB are free;"
                " make room or choose another directory"
            )

    def _failed(self, error: OSError) -> ConvertError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = f"make room for {self.n_bytes / 1e6:.1f} MB" if full else "choose another directory"
        return ConvertError(
            f"{self.out}: cannot be written: {error.strerror}; nothing is left behind, {remedy}"
        )


class _HashedFile:
    """A new file whose size and SHA-256 are known when it is closed, and which is on the disk then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | Array) -> None:
        view = memoryview(data)  # type: ignore[arg-type]
        self._hash.update(view)
        self._size += len(view)
        while view:
            view = view[self._file.write(view) :]

    def close(self) -> FileEntry:
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(self._size, self._hash.hexdigest())

    def abandon(self) -> None:
        self._file.close()


def check_target(out: Path, *, force: bool) -> None:
    """Raises ConvertError where `out` exists, or with `force` is something else than a packed model."""
    if not os.path.lexists(out):
        return
    if not force:
        raise ConvertError(f"{out}: exists; --force replaces it, or choose another name")
    if not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ConvertError(
            f"{out}: exists and is not a packed model, so --force does not replace it; choose another name"
        )


def remove_leftovers(parent: Path) -> None:
    """Remove what conversions that are dead have left in a directory."""
    for path in parent.iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if (
            match
            and not path.is_symlink()
            and path.is_dir()
            and not _is_alive(int(match["pid"]))
            and not _is_locked(path)
        ):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_locked(path: Path) -> bool:
    """Whether a process, here or on another machine, may hold the directory's lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # another user's
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _file_order(spec: TensorSpec) -> int:
    """Tiles have multiples of 128 bytes, F32 of 4: in this order every tensor is aligned to its type."""
    return ("U8", "F32", "I32", "F16", "BF16").index(spec.dtype)


def _plan_shards(specs: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.n_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.n_bytes
    return shards


def _header(specs: Sequence[TensorSpec]) -> bytes:
    """Length and JSON of a safetensors file, padded with spaces so that the data starts aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": files.FORMAT}}
    begin = 0
    for spec in specs:
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.n_bytes],
        }
        begin += spec.n_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(len(text) + 8) // _HEADER_ALIGNMENT) * _HEADER_ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
