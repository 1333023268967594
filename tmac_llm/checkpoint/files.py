"""Strict reading of the small JSON files of a repository, in bounded memory; does not know what they mean."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tmac_llm.errors import CheckpointError

# Real files: config.json 2 kB, safetensors headers and shard indices below 5 MB.
MAX_JSON_BYTES = 16 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError: unreadable, too large, or not one plain object."""
    if not path.is_file():  # a pipe would block, a device never end
        raise CheckpointError(f"{path}: {'not a plain' if path.exists() else 'no such'} file")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_JSON_BYTES:
                raise CheckpointError(
                    f"{path}: {size} bytes exceed the limit of {MAX_JSON_BYTES}; the file is damaged"
                )
            data = file.read(size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_json(data, path.name)


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The object in `data`. Raises CheckpointError for bad UTF-8 or JSON, duplicate keys, NaN, lone surrogates."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 at byte {error.start}; the file is damaged") from None
    except RecursionError:
        raise CheckpointError(f"{where}: nested too deeply; the file is damaged") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where}: not JSON at character {error.pos}: {error.msg}") from None
    except ValueError as error:  # from the hooks below, or a number of thousands of digits
        raise CheckpointError(f"{where}: not usable JSON: {str(error).split(';')[0]}") from None
    if b"\\ud" in data.lower() and not _is_unicode(value):
        raise CheckpointError(f"{where}: a text with half a surrogate pair; the file is damaged")
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def pread_exactly(fd: int, buffer: memoryview, offset: int, where: str) -> None:
    """Fill `buffer` from the file at `offset`; raises CheckpointError when the file ends before."""
    done = 0
    while done < len(buffer):
        try:
            n = os.preadv(fd, [buffer[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"{where}: cannot be read: {error.strerror}") from None
        if n == 0:
            raise CheckpointError(
                f"{where}: ends at byte {offset + done}, expected {offset + len(buffer)} bytes or more;"
                " it is truncated, download it again"
            )
        done += n


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} occurs twice")
            seen.add(key)
    return result


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
