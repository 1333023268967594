"""The files of a packed directory: manifest, JSON, mapped tensor files, each checked; knows no models."""

from __future__ import annotations

import json
import mmap
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from tmac_llm.errors import PackedModelError
from tmac_llm.model.fields import show

FORMAT = "tmac-packed"
FORMAT_VERSION = 1
MANIFEST = "tmac_manifest.json"
CONFIG = "config.json"
AGAIN = "convert the model again"
# A writer's directory until it is complete; no reader accepts it.
TEMPORARY = re.compile(r"\.(?P<target>.+)\.convert-(?P<pid>[0-9]{1,9})-[0-9a-f]{8}")
DTYPES = {
    "U8": np.dtype(np.uint8),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

_MAX_JSON_BYTES = 16 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says of one file: bytes, and the SHA-256 in hexadecimal."""

    size: int
    sha256: str


def read_manifest(path: Path) -> dict[str, FileEntry]:
    """File name -> entry of a finished packed directory, every file present with its size.

    Raises PackedModelError: not a packed model, unfinished, of another version, a file missing or damaged.
    """
    if TEMPORARY.fullmatch(path.resolve().name):
        raise PackedModelError(f"{path}: an unfinished conversion; {AGAIN}")
    if not path.is_dir():
        raise PackedModelError(f"{path}: no such directory")
    where = path / MANIFEST
    if not where.is_file():
        raise PackedModelError(f"{path}: no {MANIFEST}, so not a packed model; `tmac-llm convert` makes one")
    manifest = read_json(where)
    if manifest.get("format") != FORMAT:
        raise PackedModelError(f"{where}: expected format {FORMAT!r}, found {show(manifest.get('format'))}")
    check_version(where, "format_version", manifest.get("format_version"), FORMAT_VERSION)
    files = manifest.get("files")
    if not isinstance(files, dict) or CONFIG not in files:
        raise PackedModelError(f"{where}: expected an object `files` with {CONFIG}; {AGAIN}")
    entries = {name: _parse_file_entry(where, name, entry) for name, entry in files.items()}
    for name, entry in entries.items():
        if not (path / name).is_file():
            raise PackedModelError(f"{path / name}: missing; {AGAIN}")
        found = (path / name).stat().st_size
        if found != entry.size:
            raise PackedModelError(f"{path / name}: expected {entry.size} bytes, found {found}; {AGAIN}")
    return entries


def check_version(where: Path, key: str, found: object, *expected: int) -> None:
    """Raises PackedModelError unless the version is one of those expected."""
    if isinstance(found, bool) or found not in expected:
        versions = " or ".join(map(str, expected))
        raise PackedModelError(
            f"{where}: expected {key} {versions}, found {show(found)}; {AGAIN} or install a matching tmac-llm"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 16 MiB."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise PackedModelError(f"{path}: {error.strerror}; {AGAIN}") from None
    if len(data) > _MAX_JSON_BYTES:
        raise PackedModelError(f"{path}: larger than {_MAX_JSON_BYTES} bytes; {AGAIN}")
    return _parse_json(path, data)


def map_tensors(path: Path) -> tuple[mmap.mmap, dict[str, Array]]:
    """Map a safetensors file; its tensors by name, as read-only views.

    The safetensors library checks the header (bounds, overlaps, holes, sizes); then its offsets can be used.
    """
    try:
        with safe_open(path, "numpy"):
            pass
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise PackedModelError(f"{path}: {' '.join(str(error).split())}; {AGAIN}") from None
    data = np.frombuffer(mapped, np.uint8)
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = _parse_json(path, data[8:start].tobytes())
    header.pop("__metadata__", None)
    return mapped, {name: _view(path, name, entry, data[start:]) for name, entry in header.items()}


def temporary_name(target: str) -> str:
    """A name that TEMPORARY recognises, for a directory that this process will complete or remove."""
    return f".{target}.convert-{os.getpid()}-{secrets.token_hex(4)}"


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _view(path: Path, name: str, entry: Any, data: Array) -> Array:
    # The library takes a list of the three values for an object, too.
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry, dict) else None
    if dtype is None:
        expected = ", ".join(DTYPES)
        raise PackedModelError(
            f"{path}: tensor {show(name)}: expected {expected}, found {show(entry)}; {AGAIN}"
        )
    begin, end = entry["data_offsets"]
    tensor: Array = data[begin:end].view(dtype).reshape(entry["shape"])
    return tensor


def _parse_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackedModelError(f"{path}: not JSON: {' '.join(str(error).split())[:120]}; {AGAIN}") from None
    if not isinstance(value, dict):
        raise PackedModelError(f"{path}: expected a JSON object, found {show(value)}; {AGAIN}")
    return value


def _parse_file_entry(where: Path, name: str, entry: object) -> FileEntry:
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
        raise PackedModelError(f"{where}: {show(name)} is not the name of a file beside it; {AGAIN}")
    size, sha256 = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if not isinstance(size, int) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise PackedModelError(
            f"{where}: {show(name)}: expected size and sha256, found {show(entry)}; {AGAIN}"
        )
    return FileEntry(size, sha256)
