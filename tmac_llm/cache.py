"""The user's cache: files that can be made again at any time; knows how one is written whole, not what it holds."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

from tmac_llm.errors import StoreError
from tmac_llm.paths import expand_user

_DIRECTORY = "TMAC_HOME to a directory that can be written"


def directory() -> Path:
    """TMAC_HOME/cache, or the user cache directory of the platform; need not exist.

    Raises StoreError for a user without a home directory.
    """
    chosen = os.environ.get("TMAC_HOME")
    try:
        return expand_user(Path(chosen) / "cache" if chosen else platformdirs.user_cache_path("tmac-llm"))
    except RuntimeError:
        raise StoreError("no home directory is known; set TMAC_HOME to the path of a directory") from None


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path`, in place of an older one, when the block ends without an error.

    Raises StoreError where it cannot be written; then nothing is left of it.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}; set {_DIRECTORY}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Only one process at a time runs the block for this path; others wait. The lock ends with its process."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "wb")  # noqa: SIM115  (the lock ends when it is closed)
    except OSError as error:
        raise StoreError(f"{lock}: cannot be made: {error.strerror}; set {_DIRECTORY}") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
