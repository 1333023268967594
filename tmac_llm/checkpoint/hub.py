"""Fetches a model repository from the Hugging Face Hub or its cache; knows nothing of what its files hold."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tmac_llm.checkpoint.files import read_json
from tmac_llm.checkpoint.gguf import source as gguf
from tmac_llm.checkpoint.hub_download import Transfer, download_blob
from tmac_llm.checkpoint.hub_errors import endpoint, explain, is_offline, is_unreachable
from tmac_llm.checkpoint.index import INDEX, refuse_pickles
from tmac_llm.errors import HubError
from tmac_llm.paths import expand_user

Progress = Callable[[int, int], None]

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_POLL_SECONDS = 0.1

_log = logging.getLogger(__name__)


def fetch(
    source: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
    file: str | None = None,
) -> Path:
    """The local path of `source`: an existing file or directory as it is, else a Hub id such as "owner/name".

    Only configuration, weights (safetensors, else GGUF) and tokenizer files are downloaded, into the cache of
    huggingface_hub, where an interrupted download goes on later. HF_ENDPOINT, HF_HOME, HF_TOKEN and
    HF_HUB_OFFLINE are respected; without a network the cached files are used. `progress(done, total)` gets bytes,
    in the calling thread. file: the weights to take, such as one of several GGUF files; then its path is returned.
    Raises HubError, or UnsupportedError (before anything is downloaded) for a repository without such weights.
    """
    path = expand_user(source)
    if str(source) and path.exists():
        if revision is not None:
            raise HubError(f"{source}: a local path has no revision; leave --revision out")
        return path if file is None else _in_directory(path, file)
    repo = str(source)
    if not _REPO_ID.fullmatch(repo):
        raise HubError(f"{repo}: no such file or directory, and not a Hub id of the form owner/name")
    try:
        listing = _list_files(repo, revision, token)
        if listing is None:
            return _cached(repo, revision, file)
        return _download(repo, revision, token, *listing, progress, file)
    except Exception as error:
        if explained := explain(error, repo, revision):
            raise explained from error
        raise


def needed_files(repo: str, names: Iterable[str], file: str | None = None) -> list[str]:
    """Which files of a repository to download. Raises UnsupportedError or HubError when there is none.

    Weights are model.safetensors, or the numbered shards; copies in other formats (consolidated.safetensors,
    original/) are left out. Without safetensors it is the one GGUF model; file: the weights that are wanted.
    """
    names = sorted(names)
    small = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in _SMALL_FILES)]
    if file is not None:
        weights = gguf.parts(file) if file.endswith(gguf.SUFFIX) else [file]
        missing = [n for n in weights if n not in names]
        if missing:
            ggufs = ", ".join(gguf.models(names)[:12]) or "none"
            raise HubError(f"{repo}: the repository has no file {missing[0]}; its GGUF models: {ggufs}")
        return weights + small
    top = [n for n in names if n.endswith(".safetensors") and "/" not in n]
    shards = [n for n in top if _SHARD.fullmatch(n)]
    if "model.safetensors" in top:
        weights = ["model.safetensors"]
    elif INDEX in names and shards:
        weights = [INDEX, *shards]
    else:
        weights = [n for n in top if not n.startswith(("consolidated", "adapter_"))]
        weights += [INDEX] if INDEX in names else []
    if not [n for n in weights if n != INDEX]:
        return _only_gguf(repo, names) + small
    if "config.json" not in names:
        raise HubError(f"{repo}: the repository has no config.json; it is not a Hugging Face checkpoint")
    return weights + small


def _only_gguf(repo: str, names: list[str]) -> list[str]:
    """The files of the GGUF model of a repository without safetensors."""
    ggufs = gguf.models(names)
    if not ggufs:
        refuse_pickles(names, repo)
        raise HubError(
            f"{repo}: the repository has no .safetensors and no .gguf files; it holds no model to convert"
        )
    if len(ggufs) > 1:
        raise HubError(f"{repo}: {gguf.choice(ggufs)}")
    return gguf.parts(ggufs[0])


def _in_directory(path: Path, file: str) -> Path:
    """A file of a local directory."""
    if not path.is_dir():
        raise HubError(f"{path}: is a file itself; leave --file out")
    if not (path / file).is_file():
        raise HubError(f"{path}: has no file {file}")
    return path / file


def _list_files(repo: str, revision: str | None, token: str | None) -> tuple[str, dict[str, int]] | None:
    """(commit, file name -> size in bytes), or None when the Hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, token=token)
    except OfflineModeIsEnabled:
        return None
    except Exception as error:
        if not is_unreachable(error):
            raise
        _log.warning("%s cannot be reached; looking for %s in the cache", endpoint(), repo)
        return None
    if info.sha is None:
        raise HubError(f"{repo}: {endpoint()} did not name a commit; try again later")
    return info.sha, {file.rfilename: file.size or 0 for file in info.siblings or []}


def _download(
    repo: str,
    revision: str | None,
    token: str | None,
    commit: str,
    files: dict[str, int],
    progress: Progress | None,
    file: str | None,
) -> Path:
    from huggingface_hub import snapshot_download

    wanted = needed_files(repo, files, file)
    total = sum(files[name] for name in wanted)
    missing = [name for name in wanted if not _is_cached(repo, name, commit)]
    cached = total - sum(files[name] for name in missing)
    _check_space(repo, total - cached)
    transfer = Transfer()

    def work() -> str:
        for name in missing:
            if name.endswith((".safetensors", gguf.SUFFIX)):
                download_blob(repo, name, commit, token, transfer)
        # Takes over what is in the cache, adds the small files, and notes which commit the revision is.
        return snapshot_download(
            repo,
            revision=revision,
            token=token,
            allow_patterns=[glob.escape(name) for name in wanted],
            tqdm_class=_silent_bar(),
        )

    def report() -> None:
        if progress is not None:
            progress(min(cached + transfer.n_bytes, total), total)

    def cancel() -> None:
        transfer.cancelled = True

    path = Path(_in_thread(work, report, cancel))
    if progress is not None:
        progress(total, total)
    return path / wanted[0] if file or wanted[0].endswith(gguf.SUFFIX) else path


def _cached(repo: str, revision: str | None, file: str | None) -> Path:
    """The snapshot in the cache, or its GGUF model; complete or HubError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason = "HF_HUB_OFFLINE is set" if is_offline() else f"{endpoint()} cannot be reached"
    try:
        snapshot = snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=[file or "config.json"]
        )
    except LocalEntryNotFoundError:
        raise HubError(
            f"{repo}: {reason} and the model is not in the cache; check the network or give a local path"
        ) from None
    path = Path(snapshot)
    if file or not any(path.glob("*.safetensors")):
        names = [p.relative_to(path).as_posix() for p in path.rglob(f"*{gguf.SUFFIX}")]
        ggufs = [file] if file else gguf.models(names)
        if len(ggufs) > 1:
            raise HubError(f"{repo}: the cache {gguf.choice(ggufs)}")
        if ggufs and all((path / part).exists() for part in gguf.parts(ggufs[0])):
            return path / ggufs[0]
    shards = list(path.glob("*.safetensors"))
    if not (path / "model.safetensors").exists() and (path / INDEX).exists():
        weight_map = read_json(path / INDEX).get("weight_map")
        listed = weight_map.values() if isinstance(weight_map, dict) else []
        shards = shards if all((path / str(name)).exists() for name in listed) else []
    if not shards or not (path / "config.json").exists():
        raise HubError(
            f"{repo}: {reason} and the cache has only a part of the model; run again with a network"
        )
    return path


def _is_cached(repo: str, name: str, commit: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, name, revision=commit), str)


def _check_space(repo: str, n_bytes: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next((p for p in (cache, *cache.parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    if n_bytes > free:
        raise HubError(
            f"{repo}: the download needs {n_bytes / 1e9:.1f} GB but {cache} has {free / 1e9:.1f} GB free;"
            " free some space or set HF_HOME to another disk"
        )


def _silent_bar() -> type[Any]:
    from huggingface_hub import utils

    api: Any = utils  # its names are exported lazily, which hides them from type checkers

    class Bar(api.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Bar


def _in_thread(work: Callable[[], str], report: Callable[[], None], cancel: Callable[[], None]) -> str:
    """Run `work` in a thread and `report` in this one, so that Ctrl-C is seen at once."""
    result: list[str] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="download", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            report()
    except BaseException:
        cancel()
        raise
    if failure:
        raise failure[0]
    return result[0]
