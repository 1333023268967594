"""What a long conversion has finished, kept beside its target so that a killed one goes on; knows no models.

    .NAME.unfinished/progress.json     what is being made, and SHA-256 and size of every file that is complete
    .NAME.unfinished/*                 arrays as raw bytes

progress.json is replaced in one step, after the files that it names are on the disk: a kill at any moment leaves
the state before or after. Files that it does not name are remains, and removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tmac_llm.errors import ConvertError, PackedModelError
from tmac_llm.packed import files
from tmac_llm.packed.files import Array, FileEntry

_FORMAT = "tmac-unfinished"
_VERSION = 1
_PROGRESS = "progress.json"
_PARTIAL = "progress.json.partial"
_AGAIN = "--force starts again"


def directory(target: Path) -> Path:
    """Where the unfinished state of a packed model lies."""
    return target.parent / f".{target.name}.unfinished"


class Unfinished:
    """The state of one conversion, for one process at a time.

        with Unfinished(target, recipe, force=False) as work:
            for i in range(work.n_done, n): ...; work.save(i + 1, arrays, drop=names)
            work.remove()

    Leaving the block keeps the state where a step was saved, and else removes it.
    """

    def __init__(self, target: Path, recipe: Mapping[str, Any], *, force: bool) -> None:
        """recipe: everything the result depends on, as JSON values; `force` discards a state of another one."""
        self.path = directory(target.resolve())
        self.n_done = 0
        self._recipe = json.loads(json.dumps(recipe))
        self._force = force
        self._entries: dict[str, FileEntry] = {}

    def __enter__(self) -> Unfinished:
        """Raises ConvertError: in use, of another conversion, damaged, or the disk refuses."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._take_over()
            except BaseException:
                os.close(self._lock)
                raise
        except BlockingIOError:
            raise ConvertError(f"{self.path}: another conversion is at work on it; wait for it") from None
        except OSError as error:
            raise ConvertError(
                f"{self.path}: cannot be used: {error.strerror}; choose another target"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.n_done == 0:
            self.remove()
        os.close(self._lock)

    def save(self, n_done: int, arrays: Mapping[str, Array], drop: Sequence[str] = ()) -> None:
        """n_done steps are complete, with these arrays of theirs; `drop` names those needed no more.

        Raises ConvertError where the disk is full or refuses.
        """
        entries = dict(self._entries)
        try:
            for name, array in arrays.items():
                entries[name] = self._write(name, array)
            dropped = [name for name in drop if entries.pop(name, None)]
            files.sync_directory(self.path)
            self._entries, self.n_done = entries, n_done
            self._write_progress()
            for name in dropped:
                (self.path / name).unlink()
        except OSError as error:
            raise ConvertError(
                f"{self.path}: cannot be written: {error.strerror}; make room, the same command then goes on"
            ) from None

    def load(self, name: str, dtype: Any = np.uint8) -> Array:
        """A saved array, flat, read only and mapped."""
        return np.memmap(self.path / name, dtype, "r")

    def scratch(self, n: int) -> Array:
        """n float32 in a file without a name: gone with this process, and written out when memory is short."""
        path = self.path / "scratch"
        try:
            with open(path, "w+b") as file:
                path.unlink()
                os.posix_fallocate(file.fileno(), 0, 4 * n)
                return np.memmap(file, np.float32, "r+", shape=(n,))
        except OSError as error:
            raise ConvertError(
                f"{self.path}: needs {4 * n / 1e6:.0f} MB of disk for activations: {error.strerror};"
                " make room, or take fewer calibration tokens"
            ) from None

    def remove(self) -> None:
        """Forget everything, once it is of no more use."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _take_over(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            self._resume()
        except ConvertError:
            if not self._force or not (self.path / _PROGRESS).is_file():
                raise
        for path in self.path.iterdir():
            if path.name not in (*self._entries, _PROGRESS):
                path.unlink()
        self._write_progress()

    def _resume(self) -> None:
        """Take over what is there. Raises ConvertError unless it is empty, or sound and of the same recipe."""
        if not (self.path / _PROGRESS).is_file():
            found = [path.name for path in self.path.iterdir() if path.name not in (_PARTIAL, "scratch")]
            if found:
                raise ConvertError(f"{self.path}: exists and is not an unfinished conversion; remove it")
            return
        try:
            progress = files.read_json(self.path / _PROGRESS)
            entries = {name: FileEntry(**entry) for name, entry in progress["files"].items()}
            n_done, recipe = int(progress["n_done"]), dict(progress["recipe"])
        except (PackedModelError, KeyError, TypeError, ValueError, AttributeError):
            raise ConvertError(f"{self.path / _PROGRESS}: damaged; {_AGAIN}") from None
        if any(Path(name).name != name for name in entries):
            raise ConvertError(f"{self.path / _PROGRESS}: damaged: names files elsewhere; {_AGAIN}")
        if progress.get("version") != _VERSION:
            raise ConvertError(f"{self.path}: an unfinished conversion of another version; {_AGAIN}")
        for key in {**recipe, **self._recipe}:
            if recipe.get(key) != self._recipe.get(key):
                was, now = _short(recipe.get(key)), _short(self._recipe.get(key))
                raise ConvertError(
                    f"{self.path}: an unfinished conversion with another {key}: expected {was}, found {now};"
                    f" give the same to go on, or {_AGAIN}"
                )
        for name, entry in entries.items():
            self._check(name, entry)
        self._entries, self.n_done = entries, n_done

    def _check(self, name: str, entry: FileEntry) -> None:
        path = self.path / name
        try:
            with open(path, "rb") as file:
                size, digest = (
                    os.fstat(file.fileno()).st_size,
                    hashlib.file_digest(file, "sha256").hexdigest(),
                )
        except OSError as error:
            raise ConvertError(f"{path}: {error.strerror}; {_AGAIN}") from None
        if (size, digest) != (entry.size, entry.sha256):
            raise ConvertError(f"{path}: damaged: size or SHA-256 differ from what was written; {_AGAIN}")

    def _write(self, name: str, array: Array) -> FileEntry:
        data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        with open(self.path / name, "wb", buffering=0) as file:
            left = data
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        return FileEntry(len(data), hashlib.sha256(data).hexdigest())

    def _write_progress(self) -> None:
        progress = {
            "format": _FORMAT,
            "version": _VERSION,
            "n_done": self.n_done,
            "recipe": self._recipe,
            "files": {name: asdict(entry) for name, entry in self._entries.items()},
        }
        self._write(_PARTIAL, np.frombuffer(json.dumps(progress, indent=1).encode(), np.uint8))
        (self.path / _PARTIAL).rename(self.path / _PROGRESS)
        files.sync_directory(self.path)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
