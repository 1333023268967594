"""GPTQ over a whole model: layer after layer on the activations that the layers before give; resumable.

Knows plans, checkpoints and the unfinished state; the arithmetic is in gptq.py, the forward pass in calibration.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm import __version__, evaluation, gptq, kernels, quantize
from tmac_llm.calibration import Layer, LayerCalibration
from tmac_llm.checkpoint import Checkpoint, DenseWeight
from tmac_llm.checkpoint.weights import to_float32
from tmac_llm.convert_plan import Matrix, Plan
from tmac_llm.errors import ConvertError, KernelError
from tmac_llm.gptq import OutputError, Quadratic, Statistics
from tmac_llm.model import parallel
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.linear import DenseLinear, Linear, LutLinear, SplitLinear
from tmac_llm.packed import names
from tmac_llm.packed.names import LinearGroup
from tmac_llm.packed.unfinished import Unfinished
from tmac_llm.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
# What is being worked on, and the share of all work that is done, 0 to 1.
Progress = Callable[[str, float], None]

GROUPS = 4  # of linears with one input, in a layer
_PASSES = 6 + gptq.SWEEPS  # products of rows with a (k, k) matrix


def calibration_windows(tokenizer: Tokenizer, text: str, n_tokens: int, config: ModelConfig) -> Ids:
    """int64 (n_windows, context): windows of a text as in evaluation, evenly spread, about n_tokens in all.

    Special tokens in the text are read as such: conversations may stand there as the chat template writes them.
    Raises UsageError for a text of less than two windows.
    """
    context = min(evaluation.DEFAULT_CONTEXT, config.max_position_embeddings)
    ids, bos = evaluation.encode(tokenizer, text, parse_special=True)
    windows = evaluation.windows(ids, context, bos)
    n = max(n_tokens // context, 1)
    return windows if n >= len(windows) else windows[np.arange(n) * len(windows) // n]


class Calibrator:
    """Quantises the linears of every layer of a plan to the calibration windows."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, windows: Ids, progress: Progress) -> None:
        """windows: token ids (n_windows, context). Raises ConvertError for weights that are not float."""
        self._plan, self._checkpoint, self._windows = plan, checkpoint, windows
        self._config = checkpoint.config
        self._matrices = {matrix.name: matrix for matrix in plan.matrices}
        self._groups = list(names.linear_groups(self._config))
        for matrix in plan.matrices_in_layers:
            if not isinstance(matrix.weight, DenseWeight) or matrix.shape is None or plan.is_ternary:
                raise ConvertError(
                    f"{matrix.name}: the method gptq is for float weights and 1 to 8 bits"
                    f" ({checkpoint.format}, {plan.bits} bits); leave out --method"
                )
        self._progress = _Progress(self._groups, windows.size, progress)

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything but the source that the result depends on, as JSON values."""
        options = {"bits": self._plan.bits, "group size": self._plan.group_size}
        head = {"head bits": self._plan.head_bits, "symmetric": self._plan.symmetric}
        text = {
            "calibration shape": list(self._windows.shape),
            "calibration text": sha256(self._windows.tobytes()).hexdigest(),
        }
        method = {"version": __version__, "damping": gptq.DAMPING, "sweeps": gptq.SWEEPS}
        return {**options, **head, **text, **method}

    def run(self, work: Unfinished) -> OutputError:
        """Save the tiles of every matrix in the layers in `work`, by tensor name. Raises ConvertError."""
        parallel.limit_blas()
        shape = (2, *self._windows.shape, self._config.hidden_size)
        streams = work.scratch(int(np.prod(shape))).reshape(shape)
        inputs = (work.scratch(self._size(0, 2)), work.scratch(self._size(1, 3)))
        error = OutputError()
        if work.n_done:
            streams[...] = work.load(f"streams-{work.n_done}", np.float32).reshape(shape)
            error = OutputError(*work.load(f"errors-{work.n_done}", np.float64).tolist())
        else:
            self._embed(streams)
        for i in range(self._config.num_hidden_layers):
            if i < work.n_done:
                self._progress.skip(i)
                continue
            made: dict[str, npt.NDArray[Any]] = dict(self._layer(i, streams, inputs, error))
            made |= {f"streams-{i + 1}": streams, f"errors-{i + 1}": np.array(astuple(error))}
            work.save(i + 1, made, drop=(f"streams-{i}", f"errors-{i}"))
        return error

    def _size(self, *groups: int) -> int:
        """Floats of the widest inputs of these groups, of all tokens."""
        return self._windows.size * max(self._groups[group].fused.k for group in groups)

    def _embed(self, streams: Floats) -> None:
        """The embedding of all windows: as the packed model will have it, and in float."""
        weight, shape = self._matrices[names.EMBEDDING].weight, self._matrices[names.EMBEDDING].shape
        assert isinstance(weight, DenseWeight)
        for begin, end in quantize.chunks(weight.shape):
            used, at = np.unique(self._windows, return_inverse=True)
            inside = (used >= begin) & (used < end)
            if not inside.any():
                continue
            floats = weight.rows(begin, end)[used[inside] - begin]
            rows = to_float32(floats)
            packed = rows
            if shape is not None:
                part = replace(shape, m=len(rows))
                tiles = quantize.encode(weight, shape, begin, floats, quantize.SearchError())
                packed = kernels.dequantize_rows(part, tiles, np.arange(len(rows), dtype=np.int32))
            where = inside[at].reshape(self._windows.shape)
            place = np.cumsum(inside)[at].reshape(self._windows.shape)[where] - 1
            streams[0][where], streams[1][where] = packed[place], rows[place]

    def _layer(
        self, i: int, streams: Floats, inputs: tuple[Floats, Floats], error: OutputError
    ) -> dict[str, npt.NDArray[np.uint8]]:
        """Tensor name -> tiles of a layer's matrices; moves the streams behind the layer."""
        groups = self._groups[GROUPS * i : GROUPS * (i + 1)]
        parts = [self._parts(group) for group in groups]
        layer = Layer(self._config, i, self._checkpoint.tensor)
        calibration = LayerCalibration(
            layer, lambda g: _float_linear(parts[g]), streams[0], streams[1], inputs
        )
        made: dict[str, npt.NDArray[np.uint8]] = {}
        before: Linear | None = None
        for g, matrices in enumerate(parts):
            collected = partial(self._progress.collected, groups[g].fused.name, GROUPS * i + g)
            statistics = calibration.collect(g, before, collected)
            quadratic = Quadratic(statistics)
            linears: list[Linear] = []
            for matrix in matrices:
                assert matrix.shape is not None
                tiles = self._quantize(matrix, statistics, quadratic, error)
                linears.append(LutLinear(kernels.Matrix(matrix.shape, tiles), matrix.weight.bias))
                made[matrix.spec.name] = tiles
            before = linears[0] if len(linears) == 1 else SplitLinear(linears)
        assert before is not None
        calibration.finish(before)
        return made

    def _quantize(
        self, matrix: Matrix, statistics: Statistics, quadratic: Quadratic, error: OutputError
    ) -> npt.NDArray[np.uint8]:
        """The tiles of one matrix, in portions of rows on all threads."""
        weight, shape = matrix.weight, matrix.shape
        assert isinstance(weight, DenseWeight)
        assert shape is not None
        m, k = weight.shape
        portions = [(begin, min(begin + gptq.ROWS, m)) for begin in range(0, m, gptq.ROWS)]
        tiles = np.empty(shape.packed_size, np.uint8)
        errors = [OutputError() for _ in portions]

        def portion(i: int) -> None:
            begin, end = portions[i]
            rows = to_float32(weight.rows(begin, end))
            found = gptq.quantize(rows, shape, statistics, quadratic, begin, errors[i])
            kernels.pack_rows(shape, begin, found.codes, found.scales, found.zeros, tiles)
            self._progress.quantized(matrix.name, (end - begin) * k * k)

        try:
            parallel.for_each(portion, range(len(portions)))
        except KernelError as kernel_error:
            raise ConvertError(f"{matrix.name}: {kernel_error}") from None
        for part in errors:
            error.add(part)
        return tiles

    def _parts(self, group: LinearGroup) -> list[Matrix]:
        """The matrices of a group: the fused one, or each part."""
        fused = self._matrices.get(group.fused.name)
        return [fused] if fused else [self._matrices[part.name] for part in group.parts]


def _float_linear(matrices: Sequence[Matrix]) -> Linear:
    """The linear of the checkpoint itself, in float32."""
    linears: list[Linear] = []
    for matrix in matrices:
        weight = matrix.weight
        assert isinstance(weight, DenseWeight)
        linears.append(DenseLinear(to_float32(weight.rows(0, weight.shape[0])), weight.bias))
    return linears[0] if len(linears) == 1 else SplitLinear(linears)


class _Progress:
    """Counts multiply-adds, of which most of the time is made, and tells their share."""

    def __init__(self, groups: Sequence[LinearGroup], n_tokens: int, tell: Progress) -> None:
        self._tell, self._done, self._lock = tell, 0.0, Lock()
        self._collect = [
            n_tokens * 2 * (g.fused.k**2 + (before.fused.m * before.fused.k))
            for before, g in zip((groups[0], *groups), groups, strict=False)
        ]
        self._quantize = [_PASSES * g.fused.m * g.fused.k**2 for g in groups]
        self._total = sum(self._collect) + sum(self._quantize)

    def skip(self, layer: int) -> None:
        """A layer was finished in an earlier run."""
        groups = slice(GROUPS * layer, GROUPS * (layer + 1))
        self._add(f"layer {layer}", sum(self._collect[groups]) + sum(self._quantize[groups]))

    def collected(self, name: str, group: int, share: float) -> None:
        """A further share of a group's statistics."""
        self._add(name, share * self._collect[group])

    def quantized(self, name: str, cells: int) -> None:
        """Rows with `cells` = rows * k * k."""
        self._add(name, _PASSES * cells)

    def _add(self, name: str, work: float) -> None:
        with self._lock:
            self._done += work
            self._tell(name, min(self._done / self._total, 1.0))
