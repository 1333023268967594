"""A checkpoint becomes a packed model; knows both sides, and neither encodings nor bytes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
from tokenizers import Tokenizer

from tmac_llm import quantize, store
from tmac_llm.checkpoint import CodedRows, open_checkpoint
from tmac_llm.checkpoint.hub import fetch
from tmac_llm.convert_plan import Matrix, Options, Plan
from tmac_llm.errors import ConvertError, KernelError
from tmac_llm.packed import names
from tmac_llm.packed.writer import PackedWriter, check_target
from tmac_llm.quantize import Rows, SearchError

COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)

# What is being worked on, bytes of the source done, bytes of the source in all.
Progress = Callable[[str, int, int], None]
Array = npt.NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """How one matrix (m, k) is stored: in n_bytes bytes, scales included; bits: of a code, or of a float."""

    name: str
    m: int
    k: int
    bits: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did, or with dry_run would do.

    format, notes: what the source was found to be. bits: of the linear layers, head_bits: of embedding and
    output head; 16: float. bits_per_weight: over all matrices, scales included. bytes_before: of the source's
    tensor files; bytes_after: of all files written. peak_memory: bytes, of this process so far. gain:
    the share of min-max rounding's squared error that the scale search removed from the linear layers; nmse:
    what is left there, relative to the squared weights; both None where none of them was quantised.
    """

    path: Path
    format: str
    notes: tuple[str, ...]
    bits: int
    head_bits: int
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    seconds: float
    peak_memory: int
    gain: float | None
    nmse: float | None
    matrices: tuple[MatrixReport, ...]


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    bits: int | None = None,
    group_size: int = 128,
    head_bits: int | None = None,
    symmetric: bool = False,
    force: bool = False,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> ConvertReport:
    """Convert a Hub id or a local checkpoint into a packed model, a few million weights at a time.

    out: the directory to create; None: one of the local store, named after source and bits. bits: 1, 2, 3, 4,
    8, or 16 to keep float; None: 4, while ternary weights stay ternary. group_size: 32, 64 or 128 columns
    share a scale. head_bits: of embedding and output head, 2 to 8 or 16; None: 8, or 16 with bits 16.
    symmetric: no zero points. force: replace an existing packed model, and allow bits that the model was not
    trained for. dry_run: report only.

    Raises ConvertError (refused, or the disk is full), CheckpointError or UnsupportedError (the source),
    HubError, UsageError. Killed at any moment it leaves nothing that opens as a packed model.
    """
    start = time.monotonic()
    report = progress or (lambda name, done, total: None)
    options = Options(bits, group_size, head_bits, symmetric, force)
    options.check()
    if out is not None:
        check_target(Path(out), force=force)
    local = fetch(source, revision, token, lambda done, total: report("download", done, total))
    directory = local if local.is_dir() else local.parent
    checkpoint = open_checkpoint(local)
    _check_tokenizer(directory, checkpoint.config.vocab_size, force)
    plan = Plan(checkpoint, options)
    target = (
        Path(out)
        if out is not None
        else store.models_dir() / store.model_name(str(source), encoding=plan.label)
    )
    writer, error = PackedWriter(target, plan.specs, force=force), SearchError()
    bytes_after = writer.n_bytes
    if not dry_run:
        with writer:
            n_bytes = checkpoint.n_bytes
            _write_tensors(
                writer, plan, error, lambda name, share: report(name, int(share * n_bytes), n_bytes)
            )
            copies = [directory / name for name in COPIED if (directory / name).is_file()]
            bytes_after = writer.finish(plan.config(_provenance(source, local, revision)), copies)
    matrices = tuple(MatrixReport(m.name, *m.weight.shape, m.bits, m.spec.n_bytes) for m in plan.matrices)
    return ConvertReport(
        path=target,
        format=checkpoint.format,
        notes=tuple(checkpoint.notes),
        bits=plan.bits,
        head_bits=plan.head_bits,
        bits_per_weight=8 * sum(m.n_bytes for m in matrices) / sum(m.m * m.k for m in matrices),
        bytes_before=checkpoint.n_bytes,
        bytes_after=bytes_after,
        seconds=time.monotonic() - start,
        peak_memory=_peak_memory(),
        gain=error.gain,
        nmse=error.nmse,
        matrices=matrices,
    )


def _write_tensors(
    writer: PackedWriter, plan: Plan, error: SearchError, progress: Callable[[str, float], None]
) -> None:
    """Read, encode and write in three threads, so that the disks work while the CPU does.

    progress: gets a name and the share of the weights that is done, 0 to 1.
    """
    total = sum(matrix.n_weights for matrix in plan.matrices)
    done = 0
    for name, n_weights, values in _ahead(_encoded(_ahead(_pieces(writer, plan)), error)):
        writer.write(name, values)
        done += n_weights
        progress(name.rpartition(".")[0], done / total)


def _pieces(writer: PackedWriter, plan: Plan) -> Iterator[tuple[str, Matrix | None, int, Rows]]:
    """(tensor name, matrix, first row, rows) of all matrices, and whole vectors, in file order."""
    matrices = {matrix.spec.name: matrix for matrix in plan.matrices}
    for spec in writer.specs:
        if spec.name in plan.vectors:
            yield spec.name, None, 0, plan.vectors[spec.name]
            continue
        matrix = matrices[spec.name]
        for begin, end in quantize.chunks(matrix.weight.shape):
            yield spec.name, matrix, begin, matrix.weight.rows(begin, end)


def _encoded(
    pieces: Iterator[tuple[str, Matrix | None, int, Rows]], error: SearchError
) -> Iterator[tuple[str, int, Array]]:
    """(tensor name, weights in it, what is written) of each piece."""
    for name, matrix, begin, values in pieces:
        if matrix is None:
            assert not isinstance(values, CodedRows)
            yield name, 0, values
            continue
        try:
            counted = error if matrix.name not in (names.EMBEDDING, names.LM_HEAD) else SearchError()
            yield name, values.size, quantize.encode(matrix.weight, matrix.shape, begin, values, counted)
        except KernelError as kernel_error:
            raise ConvertError(f"{matrix.name}, rows from {begin}: {kernel_error}") from None


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made in a thread while the consumer works on the current one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


def _provenance(source: str | Path, local: Path, revision: str | None) -> str:
    """What the packed model says it was made from: a Hub id with its revision, or an absolute path."""
    if local == Path(source).expanduser():
        return str(local.resolve())
    return f"{source}@{revision}" if revision else str(source)


def _check_tokenizer(directory: Path, vocab_size: int, force: bool) -> None:
    """Raises ConvertError for a missing tokenizer, and for one with more tokens than the model."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        if (directory / "tokenizer.model").is_file():
            return
        raise ConvertError(
            f"{directory}: no tokenizer.json, no tokenizer.model; copy one there from the original repository"
        )
    try:
        vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing more specific
        raise ConvertError(f"{path}: not a tokenizer: {' '.join(str(error).split())[:200]}") from None
    n_ids = max(vocabulary.values(), default=-1) + 1
    if n_ids > vocab_size and not force:
        raise ConvertError(
            f"{path}: has token ids up to {n_ids - 1} but the model's vocabulary ends at {vocab_size - 1};"
            " take the tokenizer of this very model, or --force"
        )


def _peak_memory() -> int:
    """Peak resident bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
