"""Linear layers: the one seam that hides whether weights are lookup tables or float; knows no layer names.

`linear(x, out)` computes y = W x + b for every token. A layer remembers the last pair of arrays it was called with, so
that the decode loop, which always passes the same ones, pays neither checks nor pointer making.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tmac_llm.kernels import Matrix, Tables

Floats = npt.NDArray[np.float32]


class Linear(Protocol):
    """What the decoder needs of a linear layer with m outputs and k inputs. n_bytes: of weights in memory."""

    m: int
    k: int
    n_bytes: int

    def __call__(self, x: Floats, out: Floats) -> Floats:
        """x: float32 (n_tokens, k); out: float32 (n_tokens, m), contiguous within a token. Returns out."""


class LutLinear:
    """Weights as packed tiles, multiplied by table lookup. tables: "exact" is BitNet's integer recipe."""

    def __init__(self, matrix: Matrix, bias: Floats | None = None, tables: Tables = "int8") -> None:
        self.m, self.k, self.n_bytes = matrix.shape.m, matrix.shape.k, matrix.n_bytes
        self._matrix, self._bias, self._tables = matrix, bias, tables
        self._x: Floats | None = None
        self._out: Floats | None = None
        self._call: Callable[[], None] | None = None

    def __call__(self, x: Floats, out: Floats) -> Floats:
        """y = W x + b."""
        if x is not self._x or out is not self._out or self._call is None:
            self._x, self._out, self._call = x, out, self._matrix.bind(x, out, self._tables)
        self._call()
        if self._bias is not None:
            np.add(out, self._bias, out=out)
        return out


class DenseLinear:
    """Float weights through numpy, the reference that quality is measured against.

    weight: (m, k) of any float type, kept as float32. int8_activations: round x to int8 per token first, as BitNet does.
    """

    def __init__(
        self, weight: npt.NDArray[Any], bias: Floats | None = None, int8_activations: bool = False
    ) -> None:
        self.m, self.k = weight.shape
        self._weight = np.ascontiguousarray(weight, np.float32).T
        self.n_bytes = self._weight.nbytes
        self._bias, self._int8_activations = bias, int8_activations

    def __call__(self, x: Floats, out: Floats) -> Floats:
        """y = W x + b."""
        np.matmul(round_to_int8(x) if self._int8_activations else x, self._weight, out=out)
        if self._bias is not None:
            np.add(out, self._bias, out=out)
        return out


class SplitLinear:
    """Several layers of one input, whose outputs follow each other: q, k, v that could not be stored as one matrix."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.m, self.k = sum(part.m for part in parts), parts[0].k
        self.n_bytes = sum(part.n_bytes for part in parts)
        self._parts = tuple(parts)
        self._out: Floats | None = None
        self._views: list[Floats] = []

    def __call__(self, x: Floats, out: Floats) -> Floats:
        """y = (W_1 x + b_1, W_2 x + b_2, ..)."""
        if out is not self._out:
            ends = np.cumsum([part.m for part in self._parts])[:-1]
            self._out, self._views = out, np.split(out, ends, axis=-1)
        for part, view in zip(self._parts, self._views, strict=True):
            part(x, view)
        return out


def round_to_int8(x: Floats) -> Floats:
    """x as BitNet's activation quantisation leaves it: int8 steps of absmax / 127 per token, back in float32."""
    scale = np.float32(127) / np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
    return np.clip(np.rint(x * scale), -128, 127) / scale
