"""Root mean square normalisation; knows nothing of where in a model it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tmac_llm.model import parallel

Floats = npt.NDArray[np.float32]


class RMSNorm:
    """y = weight * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich, arXiv 1910.07467).

    weight: float32 (width,), or (rows, width) where each row of x has its own.
    """

    def __init__(self, weight: Floats, eps: float) -> None:
        self._weight = np.array(weight, np.float32)
        self._eps = eps

    @classmethod
    def of_heads(cls, parts: Sequence[tuple[Floats, int]], eps: float) -> RMSNorm:
        """One norm over several kinds of heads side by side: the weight, (head_dim,), and number of each kind."""
        return cls(np.concatenate([np.tile(weight, (n, 1)) for weight, n in parts]), eps)

    def bind(self, x: Floats, out: Floats) -> Callable[[], None]:
        """Returns a function that reads x and writes out, float32 (n, ..., width); they may be the same array."""
        if x.size == self._weight.shape[-1]:
            return self._bind_one(x.reshape(-1), out.reshape(-1))
        if len(x) == 1:
            return self._bind_rows(x, out)
        return lambda: parallel.over_rows(lambda *rows: self._bind_rows(*rows)(), x, out)

    def _bind_one(self, x: Floats, out: Floats) -> Callable[[], None]:
        """One row: the factor is a scalar, which needs few numpy calls. x, out: (width,)."""
        weight, width, eps = self._weight.reshape(-1), x.size, self._eps
        dot, sqrt, multiply = x.dot, math.sqrt, np.multiply
        factor = np.empty((), np.float32)  # numpy takes longer to read a Python float

        def norm() -> None:
            factor[()] = 1.0 / sqrt(float(dot(x)) / width + eps)
            multiply(x, weight, out)
            multiply(out, factor, out)

        return norm

    def _bind_rows(self, x: Floats, out: Floats) -> Callable[[], None]:
        weight, width, eps = self._weight, np.array(x.shape[-1], np.float64), np.array(self._eps)
        squares = np.empty(x.shape[:-1], np.float32)
        roots = np.empty(squares.shape, np.float64)
        factors = np.empty(squares.shape, np.float32)
        factor_of_row = factors[..., None]

        def norm() -> None:
            np.vecdot(x, x, squares)
            np.divide(squares, width, roots)
            np.add(roots, eps, roots)
            np.sqrt(roots, roots)
            np.divide(1.0, roots, factors)
            np.multiply(x, weight, out)
            np.multiply(out, factor_of_row, out)

        return norm
