"""A checkpoint becomes a packed model; knows both sides, and neither encodings nor bytes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy.typing as npt

from tmac_llm import quantize, store
from tmac_llm.checkpoint import Checkpoint, CodedRows, open_checkpoint
from tmac_llm.checkpoint.hub import fetch
from tmac_llm.convert_plan import Matrix, Options, Origin, Plan
from tmac_llm.errors import ConvertError, KernelError, TmacError, TokenizerError
from tmac_llm.gguf_tokenizer import write_tokenizer_files
from tmac_llm.packed import names
from tmac_llm.packed.writer import PackedWriter, check_target
from tmac_llm.paths import expand_user
from tmac_llm.quantize import Rows, SearchError
from tmac_llm.sampling_defaults import model_sampling
from tmac_llm.tokenizer import Tokenizer

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
    """How one matrix (m, k) is stored: in n_bytes bytes, scales included; bits: of a code, or of a float.

    relative_rms: rms(stored - source) / rms(source), 0 where it is exact. origin: of its codes.
    """

    name: str
    m: int
    k: int
    bits: int
    n_bytes: int
    relative_rms: float
    origin: Origin


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
    file: str | None = None,
) -> ConvertReport:
    """Convert a Hub id or a local checkpoint into a packed model, a few million weights at a time.

    file: which of several weight files of the source, such as one of its GGUF models. out: the directory to create;
    None: one of the local store, named after source and bits. bits: 1, 2, 3, 4, 8, or 16 to keep float; None: as
    the source has them, 4 where it is float. group_size: 32, 64 or 128 columns share a scale. head_bits: of embedding
    and output head, 2 to 8 or 16; None: as the source has them, 8 where they are float, or 16 with bits 16.
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
    local = fetch(source, revision, token, lambda done, total: report("download", done, total), file)
    checkpoint = open_checkpoint(local)
    with _companions(checkpoint) as directory:
        _check_companions(directory, checkpoint.config.vocab_size, force)
        plan = Plan(checkpoint, options)
        target = Path(out) if out is not None else _target(source, local, file, plan.label)
        writer, errors = PackedWriter(target, plan.specs, force=force), Errors()
        bytes_after = writer.n_bytes
        if not dry_run:
            with writer:
                n_bytes = checkpoint.n_bytes
                _write_tensors(
                    writer, plan, errors, lambda name, share: report(name, int(share * n_bytes), n_bytes)
                )
                copies = [directory / name for name in COPIED if (directory / name).is_file()]
                config = plan.config(_provenance(source, local, revision, file), errors.relative_rms())
                bytes_after = writer.finish(config, copies)
    return _report(checkpoint, plan, errors, target, bytes_after, time.monotonic() - start)


def _report(
    checkpoint: Checkpoint, plan: Plan, errors: Errors, target: Path, bytes_after: int, seconds: float
) -> ConvertReport:
    rms, search = errors.relative_rms(), errors.of_layers()
    matrices = tuple(
        MatrixReport(m.name, *m.weight.shape, m.bits, m.spec.n_bytes, rms.get(m.name, 0.0), m.origin)
        for m in plan.matrices
    )
    return ConvertReport(
        path=target,
        format=checkpoint.format,
        notes=tuple(checkpoint.notes),
        bits=plan.bits,
        head_bits=plan.head_bits,
        bits_per_weight=8 * sum(m.n_bytes for m in matrices) / sum(m.m * m.k for m in matrices),
        bytes_before=checkpoint.n_bytes,
        bytes_after=bytes_after,
        seconds=seconds,
        peak_memory=_peak_memory(),
        gain=search.gain,
        nmse=search.nmse,
        matrices=matrices,
    )


def _write_tensors(
    writer: PackedWriter, plan: Plan, errors: Errors, progress: Callable[[str, float], None]
) -> None:
    """Read, encode and write in three threads, so that the disks work while the CPU does.

    progress: gets a name and the share of the weights that is done, 0 to 1.
    """
    total = sum(matrix.n_weights for matrix in plan.matrices)
    done = 0
    for name, n_weights, values in _ahead(_encoded(_ahead(_pieces(writer, plan)), errors)):
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
    pieces: Iterator[tuple[str, Matrix | None, int, Rows]], errors: Errors
) -> Iterator[tuple[str, int, Array]]:
    """(tensor name, weights in it, what is written) of each piece."""
    for name, matrix, begin, values in pieces:
        if matrix is None:
            assert not isinstance(values, CodedRows)
            yield name, 0, values
            continue
        try:
            error = errors.of(matrix.name)
            yield name, values.size, quantize.encode(matrix.weight, matrix.shape, begin, values, error)
        except KernelError as kernel_error:
            raise ConvertError(f"{matrix.name}, rows from {begin}: {kernel_error}") from None


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made in a thread while the consumer works on the current one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


class Errors:
    """What quantising each matrix cost."""

    def __init__(self) -> None:
        self._by_name: dict[str, SearchError] = {}

    def of(self, name: str) -> SearchError:
        """The sums of one matrix, to be added to."""
        return self._by_name.setdefault(name, SearchError())

    def of_layers(self) -> SearchError:
        """Those of all linear layers together."""
        return SearchError.total(
            error for name, error in self._by_name.items() if name not in (names.EMBEDDING, names.LM_HEAD)
        )

    def relative_rms(self) -> dict[str, float]:
        """By matrix, as MatrixReport has it; without the exact ones."""
        return {name: error.relative_rms for name, error in self._by_name.items() if error.relative_rms}


def _target(source: str | Path, local: Path, file: str | None, label: str) -> Path:
    """The place in the local store."""
    if expand_user(source).exists():
        name = str(local)
    else:
        name = f"{source}/{Path(file).stem}" if file else str(source)
    return store.models_dir() / store.model_name(name, encoding=label)


def _provenance(source: str | Path, local: Path, revision: str | None, file: str | None) -> str:
    """What the packed model says it was made from: a Hub id with revision and file, or an absolute path."""
    if expand_user(source).exists():
        return str(local.resolve())
    name = f"{source}@{revision}" if revision else str(source)
    return f"{name}/{file}" if file else name


@contextmanager
def _companions(checkpoint: Checkpoint) -> Iterator[Path]:
    """The directory with the tokenizer files: of the checkpoint, or a temporary one with those of a GGUF file.

    A vocabulary in GGUF metadata that cannot be converted gives way to a tokenizer beside the file.
    """
    path = checkpoint.path
    directory = path if path.is_dir() else path.parent
    if checkpoint.metadata is None:
        yield directory
        return
    with TemporaryDirectory(prefix="tmac-tokenizer-") as temporary:
        try:
            write_tokenizer_files(checkpoint.metadata, Path(temporary), path.name)
        except TokenizerError as error:
            if not any((directory / name).is_file() for name in COPIED[:2]):
                raise
            checkpoint.notes.append(f"tokenizer files beside the GGUF file are taken: {error}")
            yield directory
            return
        yield Path(temporary)


def _check_companions(directory: Path, vocab_size: int, force: bool) -> None:
    """Raises ConvertError for a missing tokenizer, one with more tokens than the model, or files that do not load."""
    path = directory / "tokenizer.json"
    if not path.is_file() and not (directory / "tokenizer.model").is_file():
        raise ConvertError(
            f"{directory}: no tokenizer.json, no tokenizer.model; copy one there from the original repository"
        )
    try:
        tokenizer = Tokenizer.from_dir(directory)
        tokenizer.unnamed_ids(vocab_size)
        model_sampling(directory)
    except TmacError as error:
        raise ConvertError(str(error)) from None
    if tokenizer.largest_id >= vocab_size and not force:
        raise ConvertError(
            f"{directory}: the tokenizer has token ids up to {tokenizer.largest_id} but the model's vocabulary ends at"
            f" {vocab_size - 1}; take the tokenizer of this very model, or --force"
        )


def _peak_memory() -> int:
    """Peak resident bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
