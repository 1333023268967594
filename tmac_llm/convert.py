"""A checkpoint becomes a packed model; knows both sides, and neither encodings nor bytes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tmac_llm import convert_gptq, kernels, quantize, store
from tmac_llm.checkpoint import Checkpoint, CodedRows, DenseWeight, open_checkpoint
from tmac_llm.checkpoint.hub import fetch
from tmac_llm.checkpoint.weights import to_float32
from tmac_llm.convert_gptq import Calibrator
from tmac_llm.convert_plan import Matrix, Options, Origin, Plan
from tmac_llm.errors import ConvertError, KernelError, TmacError, TokenizerError, UsageError
from tmac_llm.gguf_tokenizer import write_tokenizer_files
from tmac_llm.gptq import OutputError
from tmac_llm.packed import names
from tmac_llm.packed.unfinished import Unfinished
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

DEFAULT_CALIBRATION_TOKENS = 1 << 15
# The share of the time that calibration takes; the rest is writing.
_CALIBRATING = 0.98


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
    what is left there, relative to the squared weights; both None where none of them was quantised, gain also
    where that was not by the search alone. output: with the method gptq, what the layers put out; else None.
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
    output: OutputError | None
    matrices: tuple[MatrixReport, ...]

    @property
    def is_exact(self) -> bool:
        """Whether the linear layers have the values of the source."""
        return self.gain is None and self.output is None


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
    method: str = "search",
    calibration: str | None = None,
    calibration_tokens: int = DEFAULT_CALIBRATION_TOKENS,
) -> ConvertReport:
    """Convert a Hub id or a local checkpoint into a packed model, a few million weights at a time.

    file: which of several weight files of the source, such as one of its GGUF models. out: the directory to create;
    None: one of the local store, named after source and bits. bits: 1, 2, 3, 4, 8, or 16 to keep float; None: as
    the source has them, 4 where it is float. group_size: 32, 64 or 128 columns share a scale. head_bits: of embedding
    and output head, 2 to 8 or 16; None: as the source has them, 8 where they are float, or 16 with bits 16.
    symmetric: no zero points. force: replace an existing packed model, discard an unfinished conversion of another
    kind, and allow bits that the model was not trained for. dry_run: report only. method: "search", scales of least
    squared error of the weights; "gptq", codes of least error of what the layers put out over calibration_tokens
    tokens of the text `calibration`, for float checkpoints: slow, better at 2 to 4 bits, goes on after a kill.

    Raises ConvertError (refused, or the disk is full), CheckpointError or UnsupportedError (the source),
    HubError, TokenizerError, UsageError. Killed at any moment it leaves nothing that opens as a packed model.
    """
    start = time.monotonic()
    report = progress or (lambda name, done, total: None)
    options = Options(bits, group_size, head_bits, symmetric, force, method)
    options.check()
    _check_calibration(method, calibration, calibration_tokens)
    if out is not None:
        check_target(Path(out), force=force)
    local = fetch(source, revision, token, lambda done, total: report("download", done, total), file)
    checkpoint = open_checkpoint(local)
    with _companions(checkpoint) as directory:
        _check_companions(directory, checkpoint.config.vocab_size, force)
        plan = Plan(checkpoint, options)
        target = Path(out) if out is not None else _target(source, local, file, plan.label)
        work = _Conversion(
            plan=plan,
            checkpoint=checkpoint,
            directory=directory,
            provenance=_provenance(source, local, revision, file),
            target=target,
            writer=PackedWriter(target, plan.specs, force=force),
            progress=lambda name, share: report(name, int(share * checkpoint.n_bytes), checkpoint.n_bytes),
            force=force,
        )
        bytes_after = work.writer.n_bytes
        if not dry_run:
            bytes_after = work.calibrated(calibration, calibration_tokens) if calibration else work.write({})
    return _report(work, bytes_after, time.monotonic() - start)


def _report(work: _Conversion, bytes_after: int, seconds: float) -> ConvertReport:
    checkpoint, plan = work.checkpoint, work.plan
    rms, search = work.errors.relative_rms(), work.errors.of_layers()
    matrices = tuple(
        MatrixReport(m.name, *m.weight.shape, m.bits, m.spec.n_bytes, rms.get(m.name, 0.0), m.origin)
        for m in plan.matrices
    )
    return ConvertReport(
        path=work.target,
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
        output=work.output,
        matrices=matrices,
    )


@dataclass(slots=True)
class _Conversion:
    """One conversion, from its plan to the directory. progress: gets a name and the share done, 0 to 1."""

    plan: Plan
    checkpoint: Checkpoint
    directory: Path
    provenance: str
    target: Path
    writer: PackedWriter
    progress: Callable[[str, float], None]
    force: bool
    errors: Errors = field(default_factory=lambda: Errors())
    output: OutputError | None = None

    def calibrated(self, text: str, n_tokens: int) -> int:
        """Quantise the layers to a text, then write; returns the bytes written."""
        tokenizer, config = Tokenizer.from_dir(self.directory), self.checkpoint.config
        windows = convert_gptq.calibration_windows(tokenizer, text, n_tokens, config)
        tell, layers = self.progress, self.plan.matrices_in_layers
        calibrator = Calibrator(
            self.plan, self.checkpoint, windows, lambda name, share: tell(name, share * _CALIBRATING)
        )
        recipe = calibrator.recipe | {"source": self.provenance, "files": _identities(self.checkpoint.path)}
        with Unfinished(self.target, recipe, force=self.force) as work:
            self.output = calibrator.run(work)
            self.progress = lambda name, share: tell(name, _CALIBRATING + share * (1 - _CALIBRATING))
            finished = {matrix.spec.name: work.load(matrix.spec.name) for matrix in layers}
            for matrix in layers:
                _add_errors(matrix, finished[matrix.spec.name], self.errors.of(matrix.name))
            n_bytes = self.write(finished)
            work.remove()
        return n_bytes

    def write(self, finished: Mapping[str, Array]) -> int:
        """Read, encode and write in three threads, so that the disks work while the CPU does.

        finished: tiles that exist, by tensor name. Returns the bytes written.
        """
        plan, writer = self.plan, self.writer
        total = sum(matrix.n_weights for matrix in plan.matrices if matrix.spec.name not in finished)
        done = 0
        with writer:
            pieces = _ahead(_pieces(writer, plan, finished))
            for name, n_weights, values in _ahead(_encoded(pieces, self.errors)):
                writer.write(name, values)
                done += n_weights
                self.progress(name.rpartition(".")[0], done / total)
            copies = [self.directory / name for name in COPIED if (self.directory / name).is_file()]
            return writer.finish(plan.config(self.provenance, self.errors.relative_rms()), copies)


def _add_errors(matrix: Matrix, tiles: Array, error: SearchError) -> None:
    """What calibrated codes changed of the weights themselves."""
    assert isinstance(matrix.weight, DenseWeight)
    assert matrix.shape is not None
    for begin, end in quantize.chunks(matrix.weight.shape):
        values = to_float32(matrix.weight.rows(begin, end))
        stored = kernels.dequantize_rows(matrix.shape, tiles, np.arange(begin, end, dtype=np.int32))
        stored -= values
        error.power += float(np.vdot(values, values))
        error.search += float(np.vdot(stored, stored))


def _pieces(
    writer: PackedWriter, plan: Plan, finished: Mapping[str, Array]
) -> Iterator[tuple[str, Matrix | None, int, Rows]]:
    """(tensor name, matrix, first row, rows) of matrices, and whole vectors and finished tiles, in file order."""
    matrices = {matrix.spec.name: matrix for matrix in plan.matrices}
    for spec in writer.specs:
        if spec.name in finished:
            yield spec.name, None, 0, finished[spec.name]
            continue
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


def _check_calibration(method: str, calibration: str | None, n_tokens: int) -> None:
    if method == "gptq" and not calibration:
        raise UsageError("method gptq needs a calibration text, some 100 kB or more of what the model is for")
    if method != "gptq" and calibration is not None:
        raise UsageError(f"a calibration text belongs to the method gptq, not to {method}")
    if n_tokens < 1:
        raise UsageError(f"calibration_tokens {n_tokens}: expected 1 or more")


def _identities(path: Path) -> list[list[str | int]]:
    """Name, size and time of change of the weight files: those of another checkpoint differ."""
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found]


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
