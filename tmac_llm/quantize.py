"""Weights of a checkpoint to codes, scales and zero points, a chunk of rows at a time; knows no files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm import kernels
from tmac_llm.checkpoint.weights import (
    CodedRows,
    CodedWeight,
    DenseWeight,
    TernaryWeight,
    Weight,
)
from tmac_llm.kernels import Encoding, MatrixShape

TERNARY_BITS = 2
# Weights read at once: enough to keep the threads busy, small beside the memory budget.
CHUNK_WEIGHTS = 1 << 22
_BLOCK = 64  # rows; a chunk of packed rows consists of whole blocks

# What `rows` of a weight gives.
Rows = npt.NDArray[Any] | CodedRows


@dataclass(frozen=True, slots=True)
class Scheme:
    """How float weights become codes: 1 to 8 bits, one float16 scale per `group_size` columns of a row.

    Each group also has a zero point of its own, unless `symmetric`: then levels lie evenly around 0.
    """

    bits: int
    group_size: int
    symmetric: bool = False

    def shape(self, weight: DenseWeight) -> MatrixShape:
        m, k = weight.shape
        zero = ((1 << self.bits) - 1) / 2 if self.symmetric else 0.0
        return MatrixShape(m, k, self.bits, self.group_size, not self.symmetric, zero)


@dataclass(slots=True)
class SearchError:
    """Summed squares of the float weights quantised, and of their errors by min-max and by the search.

    kept_power, kept_error: of codes that were kept, and of what rounding their scales and zero points changed.
    """

    power: float = 0.0
    minmax: float = 0.0
    search: float = 0.0
    kept_power: float = 0.0
    kept_error: float = 0.0

    @staticmethod
    def total(errors: Iterable[SearchError]) -> SearchError:
        """The sums of several."""
        sums = SearchError()
        for error in errors:
            for field in fields(SearchError):
                setattr(sums, field.name, getattr(sums, field.name) + getattr(error, field.name))
        return sums

    @property
    def relative_rms(self) -> float:
        """rms(stored - source) / rms(source); 0 where all is exact."""
        power = self.power + self.kept_power
        return math.sqrt((self.search + self.kept_error) / power) if power else 0.0

    @property
    def gain(self) -> float | None:
        """The share of min-max rounding's squared error that the search removes, or None without any."""
        return 1 - self.search / self.minmax if self.minmax else None

    @property
    def nmse(self) -> float | None:
        """Squared error relative to the squared weights; None where no float weight was quantised."""
        return self.search / self.power if self.power else None


def ternary_shape(
    weight: DenseWeight | TernaryWeight, group_size: int, int8_activations: bool
) -> MatrixShape:
    """W = (code - 1) * scale with codes 0, 1, 2: exact for ternary weights, which keep their scale per row.

    With int8 activations, five of these codes share a byte; products in that encoding are integer ones.

    Float weights of a ternary model, whose scale differs from column block to column block (TriLM), get one
    per group: exact too, as min-max rounding finds it, where a group lies inside one block.
    """
    by_row = isinstance(weight, TernaryWeight)
    encoding: Encoding = "ternary" if by_row and int8_activations else "planes"
    return MatrixShape(*weight.shape, TERNARY_BITS, 0 if by_row else group_size, False, 1.0, encoding)


def coded_shape(weight: CodedWeight) -> MatrixShape:
    """Codes as they are stored."""
    has_zeros = weight.zero is None
    return MatrixShape(*weight.shape, weight.bits, weight.group_size, has_zeros, weight.zero or 0.0)


def stack(weights: Sequence[Weight]) -> Weight | None:
    """Several matrices as one, row after row; None where their encodings or permutations differ."""
    first = weights[0]
    k = first.shape[1]
    m = sum(weight.shape[0] for weight in weights)
    bias = None
    if any(weight.bias is not None for weight in weights):
        parts = [np.zeros(w.shape[0], np.float32) if w.bias is None else w.bias for w in weights]
        bias = np.concatenate(parts)
    dense = [weight for weight in weights if isinstance(weight, DenseWeight)]
    if isinstance(first, DenseWeight):
        kind = (first.dtype, first.stored_bits)
        if [(w.dtype, w.stored_bits) for w in dense] == [kind] * len(weights):
            return DenseWeight((m, k), first.dtype, _stacked_rows(dense), bias, first.stored_bits)
        return None
    ternary = [weight for weight in weights if isinstance(weight, TernaryWeight)]
    if len(ternary) == len(weights):
        scales = np.concatenate([weight.scales for weight in ternary])
        return TernaryWeight((m, k), _stacked_rows(ternary), scales, bias)
    coded = [weight for weight in weights if isinstance(weight, CodedWeight)]
    if len(coded) == len(weights) and all(_same_coding(weight, coded[0]) for weight in coded):
        alike = coded[0]
        rows = _stacked_rows(coded)
        return CodedWeight((m, k), alike.bits, alike.group_size, alike.zero, rows, bias, alike.perm)
    return None


def _same_coding(a: CodedWeight, b: CodedWeight) -> bool:
    if (a.bits, a.group_size, a.zero) != (b.bits, b.group_size, b.zero):
        return False
    if a.perm is None or b.perm is None:
        return a.perm is b.perm
    return np.array_equal(a.perm, b.perm)


def as_dense(weight: Weight) -> DenseWeight:
    """Weights as floats, ternary ones and codes as float32, for a conversion that gives them other bits."""
    if isinstance(weight, DenseWeight):
        return replace(weight, stored_bits=None) if weight.stored_bits else weight
    if isinstance(weight, CodedWeight):
        return _dequantised(weight)
    ternary = weight

    def rows(begin: int, end: int) -> npt.NDArray[np.float32]:
        return ternary.rows(begin, end) * ternary.scales[begin:end, None]

    return DenseWeight(weight.shape, np.dtype(np.float32), rows, weight.bias)


def _dequantised(weight: CodedWeight) -> DenseWeight:
    columns = np.arange(weight.shape[1]) // (weight.group_size or weight.shape[1])

    def rows(begin: int, end: int) -> npt.NDArray[np.float32]:
        coded = weight.rows(begin, end)

        def spread(part: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
            per_column: npt.NDArray[np.float32] = part.astype(np.float32).reshape(len(coded), -1)[:, columns]
            return per_column

        zeros = np.float32(weight.zero or 0) if coded.zeros is None else spread(coded.zeros)
        values: npt.NDArray[np.float32] = coded.codes - zeros
        values *= spread(coded.scales)
        if weight.perm is None:
            return values
        out = np.empty_like(values)
        out[:, weight.perm] = values
        return out

    return DenseWeight(weight.shape, np.dtype(np.float32), rows, weight.bias)


def chunks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """[begin, end) row ranges of a matrix (m, k), each a multiple of 64 rows but the last."""
    m, k = shape
    step = max(CHUNK_WEIGHTS // k // _BLOCK, 1) * _BLOCK
    for begin in range(0, m, step):
        yield begin, min(begin + step, m)


def encode(
    weight: Weight, shape: MatrixShape | None, begin: int, rows: Rows, error: SearchError
) -> npt.NDArray[Any]:
    """What is stored of the rows of `weight` from row `begin` on, as `weight.rows` gave them.

    Returns packed bytes, uint8, in the encoding of `shape` (of the whole matrix), or the rows themselves
    where `shape` is None. Squared errors of quantising are added to `error`. Raises KernelError for weights
    too large for a float16 scale.
    """
    if isinstance(rows, CodedRows):
        assert shape is not None
        error.kept_power += rows.power
        error.kept_error += rows.error
        return kernels.pack(replace(shape, m=len(rows)), rows.codes, rows.scales, rows.zeros)
    if shape is None:
        return rows
    part = replace(shape, m=len(rows))
    if isinstance(weight, TernaryWeight):
        scales = weight.scales[begin : begin + len(rows)]
        return kernels.pack(part, (rows + np.int8(1)).view(np.uint8), scales)
    coded = kernels.quantize(rows, shape.bits, shape.group_size, shape.has_zeros, shape.zero)
    error.power += coded.power
    error.minmax += coded.error_minmax
    error.search += coded.error_search
    return kernels.pack(part, coded.codes, coded.scales, coded.zeros)


def _joined(parts: Sequence[CodedRows]) -> CodedRows:
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return CodedRows(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
        sum(part.power for part in parts),
        sum(part.error for part in parts),
    )


def _stacked_rows(weights: Sequence[Weight]) -> Callable[[int, int], Any]:
    def rows(begin: int, end: int) -> Any:
        parts: list[Any] = []
        first = 0
        for weight in weights:
            last = first + weight.shape[0]
            if begin < last and end > first:
                parts.append(weight.rows(max(begin, first) - first, min(end, last) - first))
            first = last
        if len(parts) == 1:
            return parts[0]
        return _joined(parts) if isinstance(parts[0], CodedRows) else np.concatenate(parts)

    return rows
