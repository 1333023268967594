"""Downloads one large file of the Hub into the cache so that it can be stopped and resumed; knows no models.

huggingface_hub itself drops the part of a file it has when its process ends. Here the part stays in the
cache, beside the place of the whole file (`blobs/<etag>`), which huggingface_hub then finds and takes over.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tmac_llm.checkpoint.hub_errors import is_unreachable
from tmac_llm.errors import HubError

# Pauses between attempts that brought no byte; after the last one the download fails.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)

_ETAG = re.compile(r"[0-9a-f]{40,64}")
_SHA256_DIGITS = 64  # the length of the etag of a large file, which is its hash; other etags are git's


@dataclass
class Transfer:
    """What a download and its observer share: bytes on disk so far, and the wish to stop."""

    n_bytes: int = 0
    cancelled: bool = False


def download_blob(repo: str, name: str, commit: str, token: str | None, transfer: Transfer) -> None:
    """Bring the file `name` into the cache, going on where an earlier download stopped.

    Raises HubError when another process is at it or the content is wrong, InterruptedError when cancelled,
    and what huggingface_hub raises.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, name, revision=commit)
    metadata = get_hf_file_metadata(url, token=token)
    etag, size = metadata.etag, metadata.size
    if etag is None or size is None or not _ETAG.fullmatch(etag):
        return  # an unusual server: huggingface_hub downloads the file in its own way
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    if (blobs / etag).exists():
        transfer.n_bytes += size
        return
    part = blobs / f"{etag}.part"
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HubError(
                f"{repo}: another process is downloading {name}; wait until it has finished"
            ) from None
        except OSError:
            pass  # a file system without locks; the size and the hash still guard the result
        if file.tell() > size:
            _empty(file)
        resumed = file.tell() > 0
        start = transfer.n_bytes
        _receive_all(url, token, file, size, transfer)
        transfer.n_bytes = start + size
        file.flush()
        os.fsync(file.fileno())
        if resumed and len(etag) == _SHA256_DIGITS:
            _check_hash(part, etag, f"{repo}: {name}")
        os.replace(part, blobs / etag)


def _receive_all(url: str, token: str | None, file: IO[bytes], size: int, transfer: Transfer) -> None:
    """Append to `file` until it has `size` bytes, reconnecting after interruptions."""
    start = transfer.n_bytes
    failures = 0
    while (before := file.tell()) < size:
        transfer.n_bytes = start + before
        try:
            _receive(url, token, file, start, transfer)
            error: Exception = HubError(f"{url}: the server sent {file.tell()} bytes, expected {size}")
        except Exception as caught:
            if not is_unreachable(caught):
                raise
            error = caught
        failures = 0 if file.tell() > before else failures + 1
        if failures > len(RETRY_SECONDS) or file.tell() > size:
            raise error
        if failures:
            time.sleep(RETRY_SECONDS[failures - 1])


def _receive(url: str, token: str | None, file: IO[bytes], start: int, transfer: Transfer) -> None:
    """One request for the bytes after the end of `file`."""
    from huggingface_hub import constants, get_session, utils

    api: Any = utils  # its names are exported lazily, which hides them from type checkers
    headers = {**api.build_hf_headers(token=token), "Accept-Encoding": "identity"}
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        api.hf_raise_for_status(response)
        if response.status_code != 206:  # the whole file, whatever was asked for
            _empty(file)
        for block in response.iter_bytes():
            if transfer.cancelled:
                raise InterruptedError("download cancelled")
            file.write(block)
            transfer.n_bytes = start + file.tell()


def _empty(file: IO[bytes]) -> None:
    file.truncate(0)
    file.seek(0)


def _check_hash(part: Path, expected: str, where: str) -> None:
    """A part that lay on the disk may have lost its tail in a crash."""
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        part.unlink()
        raise HubError(f"{where}: SHA-256 {found[:12]}..., expected {expected[:12]}...; download it again")
