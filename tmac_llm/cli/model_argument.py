"""What a MODEL argument means: a packed directory, a name of the store, or a source to convert on first use.

Knows the store, the embedded model and convert; does not know what the verb does with the model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tmac_llm.cli import console
from tmac_llm.errors import ConvertError, StoreError, UsageError
from tmac_llm.paths import expand_user

if TYPE_CHECKING:
    from tmac_llm.llm import LLM


def open_model(
    model: str | None,
    *,
    threads: int | None,
    tables: Literal["int8", "exact", "fast"] | None,
    context: int | None,
    cache_type: Literal["f32", "int8"],
    mmap: bool,
) -> LLM:
    """Load the model that the argument names; None is the embedded one. The options are checked ones."""
    import tmac_llm
    from tmac_llm import kernels

    path = packed_path(model)
    if threads is not None:
        kernels.set_threads(threads)
    if mmap:
        prepare_mmap(path)
    return tmac_llm.load(path, tables=tables, context_length=context, cache_type=cache_type, mmap=mmap)


def prepare_mmap(path: Path) -> None:
    """Say that the first --mmap of a model takes its time, and what happens to a file that is cut short."""
    from tmac_llm import kernels, mapped
    from tmac_llm.load import mapped_names
    from tmac_llm.packed.container import PackedModel

    packed = PackedModel.open(path)
    if n_bytes := mapped.needs_copy(packed, mapped_names(packed)):
        what = f"{console.size(n_bytes)} in the order of {kernels.isa_selected()}"
        console.note(f"--mmap: copying {what} to {mapped.directory()}, once")
    kernels.explain_bus_errors(
        f"error: {path}: a mapped file was cut short or cannot be read; do not change a model while it runs with --mmap"
    )


def packed_path(model: str | None) -> Path:
    """The packed directory of a MODEL argument, converting a source that was not converted before."""
    if model is None:
        return _default()
    if not model:
        raise UsageError("MODEL is empty; leave it out for the storyteller that comes with tmac-llm")
    from tmac_llm import store

    path = expand_user(model)
    if path.is_dir():
        return path if _is_packed(path) else _convert_once(model)
    if path.suffix == ".gguf" and path.is_file():
        return _convert_once(model)
    if store.matches(model):
        return store.resolve(model)
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _convert_once(model)
    if model.startswith((".", "/", "~")) or path.exists():
        raise StoreError(f"{model}: no such model directory")
    return store.resolve(model)


def _is_packed(path: Path) -> bool:
    from tmac_llm.packed.files import MANIFEST

    return (path / MANIFEST).is_file()


def _convert_once(source: str) -> Path:
    """The store's conversion of a source with default options, made now if there is none."""
    from tmac_llm import store
    from tmac_llm.cli.convert import run_conversion, show_report

    if store.matches(source):
        return store.resolve(source)
    console.note(
        f"{source}: not converted yet; converting with default options (`tmac-llm convert` has more)"
    )
    report = run_conversion(source)
    show_report(report, dry_run=False)
    return report.path


def _default() -> Path:
    """The embedded model, packed once per version of its weights."""
    from tmac_llm import resources, store
    from tmac_llm.convert import convert

    source = resources.default_model()
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()[:12]
    target = store.home() / "embedded" / f"{source.name}-{digest}"
    if not _is_packed(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{target.parent}: cannot be made: {error.strerror}; set TMAC_HOME to a directory that can be written"
            ) from None
        try:
            convert(source, target)
        except ConvertError:
            if not _is_packed(target):  # otherwise another process was quicker
                raise
    return target
