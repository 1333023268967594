"""The seam that hides how a linear layer is stored: tables, dense, or parts; knows no names and no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tmac_llm.kernels import Matrix, Tables
from tmac_llm.model import parallel
from tmac_llm.model.norm import RMSNorm

Floats = npt.NDArray[np.float32]

# Weights of one portion of a dense product; fixed, so that threads do not change a result.
_DENSE_PORTION = 1 << 20


class Linear(Protocol):
    """y = x W^T + bias for W of m rows and k columns."""

    m: int
    k: int

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        """out, float32 (n, m), from x, float32 (n, k); rows may lie apart. Returns out."""
        ...


class LutLinear:
    """A packed matrix, multiplied by table lookup.

    tables: "exact" is BitNet's integer recipe with int8 activations per token; "int8" rounds table entries.
    The call on the same two arrays as the last time, as in decoding, costs no checks.
    """

    def __init__(self, matrix: Matrix, bias: Floats | None = None, tables: Tables = "int8") -> None:
        self.m, self.k = matrix.shape.m, matrix.shape.k
        self._matrix = matrix
        self._bias = bias
        self._tables: Tables = tables
        self._x: Floats | None = None
        self._out: Floats | None = None
        self._multiply: Callable[[], None] = lambda: None

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        if out is None:
            out = np.empty((len(x), self.m), np.float32)
        if x is not self._x or out is not self._out:
            self._multiply = self._matrix.bind(x, out, self._tables)
            self._x, self._out = x, out
        self._multiply()
        if self._bias is not None:
            np.add(out, self._bias, out=out)
        return out


class DenseLinear:
    """Float32 weights multiplied by BLAS; weights of another type are converted once.

    weight: (m, k) of float32, float16 or bfloat16. int8_activations: x is rounded to int8 per token first.
    """

    def __init__(
        self, weight: npt.NDArray[Any], bias: Floats | None = None, int8_activations: bool = False
    ) -> None:
        self.m, self.k = weight.shape
        self._weight = np.ascontiguousarray(weight, np.float32)
        self._bias = bias
        self._int8_activations = int8_activations
        step = max(_DENSE_PORTION // self.k, 64)
        self._portions = [slice(begin, min(begin + step, self.m)) for begin in range(0, self.m, step)]

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        if out is None:
            out = np.empty((len(x), self.m), np.float32)
        scales = None
        if self._int8_activations:
            x, scales = round_to_int8(x)

        def portion(rows: slice) -> None:
            np.matmul(x, self._weight[rows].T, out=out[:, rows])

        parallel.for_each(portion, self._portions)
        if scales is not None:
            np.divide(out, scales, out=out)
        if self._bias is not None:
            np.add(out, self._bias, out=out)
        return out


class SplitLinear:
    """Several linears of the same input, their outputs side by side."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.m, self.k = sum(part.m for part in parts), parts[0].k
        self._parts = tuple(parts)
        self._out: Floats | None = None
        self._slices: list[Floats] = []

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        if out is None:
            out = np.empty((len(x), self.m), np.float32)
        if out is not self._out:
            ends = np.cumsum([part.m for part in self._parts])
            self._slices = [out[:, end - part.m : end] for part, end in zip(self._parts, ends, strict=True)]
            self._out = out
        for part, columns in zip(self._parts, self._slices, strict=True):
            part(x, columns)
        return out


class PermutedLinear:
    """A linear whose columns are stored in another order: its column j multiplies input perm[j].

    perm: int32 (k,), a permutation.
    """

    def __init__(self, linear: Linear, perm: npt.NDArray[np.int32]) -> None:
        self.m, self.k = linear.m, linear.k
        self._linear, self._perm = linear, perm.astype(np.intp)
        self._x = np.empty((0, self.k), np.float32)

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        if len(self._x) != len(x):
            self._x = np.empty((len(x), self.k), np.float32)
        np.take(x, self._perm, axis=1, out=self._x, mode="clip")  # the other modes copy `out`
        return self._linear(self._x, out)


class NormedLinear:
    """A linear that normalises its input first, by a norm of its own."""

    def __init__(self, norm: RMSNorm, linear: Linear) -> None:
        self.m, self.k = linear.m, linear.k
        self._norm, self._linear = norm, linear
        self._x = np.empty((0, self.k), np.float32)

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        if len(self._x) != len(x):
            self._x = np.empty((len(x), self.k), np.float32)
        self._norm(x, self._x)
        return self._linear(self._x, out)


def round_to_int8(x: Floats) -> tuple[Floats, Floats]:
    """BitNet's activations (arXiv 2402.17764, section 2): per token, 127 / absmax and x times it, rounded.

    Returns integers in -127 .. 127 as float32 (n, k), and the factors (n, 1).
    """
    absmax = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-5))
    scales = np.float32(127) / absmax
    return np.rint(x * scales), scales
