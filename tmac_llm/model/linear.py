"""The seam that hides how a linear layer is stored: tables, dense, or parts; knows no names and no files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm.kernels import Matrix, Tables
from tmac_llm.model import parallel
from tmac_llm.model.norm import RMSNorm

Floats = npt.NDArray[np.float32]

# Weights of one portion of a dense product; fixed, so that threads do not change a result.
_DENSE_PORTION = 1 << 20


class Linear(ABC):
    """y = x W^T + bias for W of m rows and k columns."""

    m: int
    k: int

    @abstractmethod
    def bind(self, x: Floats, out: Floats) -> Callable[[], None]:
        """Returns a function that reads x, float32 (n, k), and writes out, float32 (n, m); rows may lie apart.

        Everything is checked and made here, as kernels.Matrix.bind does, so that calls cost little. Raises
        KernelError for wrong arrays; so does the call for NaN or infinity in x.
        """

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        """`bind` and one call; returns out, or a new array."""
        if out is None:
            out = np.empty((len(x), self.m), np.float32)
        self.bind(x, out)()
        return out


class LutLinear(Linear):
    """A packed matrix, multiplied by table lookup.

    tables: "exact" is BitNet's integer recipe with int8 activations per token; "int8" rounds table entries.
    """

    def __init__(self, matrix: Matrix, bias: Floats | None = None, tables: Tables = "int8") -> None:
        self.m, self.k = matrix.shape.m, matrix.shape.k
        self._matrix = matrix
        self._bias = bias
        self._tables: Tables = tables

    def bind(self, x: Floats, out: Floats) -> Callable[[], None]:
        multiply, bias, add = self._matrix.bind(x, out, self._tables), self._bias, np.add
        if bias is None:
            return multiply

        def linear() -> None:
            multiply()
            add(out, bias, out)

        return linear


class DenseLinear(Linear):
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

    def bind(self, x: Floats, out: Floats) -> Callable[[], None]:
        bias, int8_activations = self._bias, self._int8_activations
        portions = [(self._weight[rows].T, out[:, rows]) for rows in self._portions]

        def linear() -> None:
            rounded, scales = round_to_int8(x) if int8_activations else (x, None)

            def portion(item: tuple[Floats, Floats]) -> None:
                np.matmul(rounded, item[0], out=item[1])

            parallel.for_each(portion, portions)
            if scales is not None:
                np.divide(out, scales, out=out)
            if bias is not None:
                np.add(out, bias, out=out)

        return linear


class SplitLinear(Linear):
    """Several linears of the same input, their outputs side by side."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.m, self.k = sum(part.m for part in parts), parts[0].k
        self._parts = tuple(parts)

    def bind(self, x: Floats, out: Floats) -> Callable[[], None]:
        ends = np.cumsum([part.m for part in self._parts])
        bound = [
            part.bind(x, out[:, end - part.m : end]) for part, end in zip(self._parts, ends, strict=True)
        ]

        def linear() -> None:
            for part in bound:
                part()

        return linear


class PermutedLinear(Linear):
    """A linear whose columns are stored in another order: its column j multiplies input perm[j].

    perm: int32 (k,), a permutation.
    """

    def __init__(self, linear: Linear, perm: npt.NDArray[np.int32]) -> None:
        self.m, self.k = linear.m, linear.k
        self._linear, self._perm = linear, perm.astype(np.intp)

    def bind(self, x: Floats, out: Floats) -> Callable[[], None]:
        perm, permuted = self._perm, np.empty((len(x), self.k), np.float32)
        multiply = self._linear.bind(permuted, out)

        def linear() -> None:
            x.take(perm, 1, permuted, "clip")  # the other modes copy `out`
            multiply()

        return linear


class NormedLinear(Linear):
    """A linear that normalises its input first, by a norm of its own."""

    def __init__(self, norm: RMSNorm, linear: Linear) -> None:
        self.m, self.k = linear.m, linear.k
        self._norm, self._linear = norm, linear

    def bind(self, x: Floats, out: Floats) -> Callable[[], None]:
        normed = np.empty((len(x), self.k), np.float32)
        norm, multiply = self._norm.bind(x, normed), self._linear.bind(normed, out)

        def linear() -> None:
            norm()
            multiply()

        return linear


def round_to_int8(x: Floats) -> tuple[Floats, Floats]:
    """BitNet's activations (arXiv 2402.17764, section 2): per token, 127 / absmax and x times it, rounded.

    Returns integers in -127 .. 127 as float32 (n, k), and the factors (n, 1).
    """
    absmax = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-5))
    scales = np.float32(127) / absmax
    return np.rint(x * scales), scales
