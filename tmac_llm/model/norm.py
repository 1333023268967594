"""Root mean square normalisation; knows nothing of where in a model it stands."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tmac_llm.model import parallel

Floats = npt.NDArray[np.float32]


class RMSNorm:
    """y = weight * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich, arXiv 1910.07467).

    weight: float32 (width,).
    """

    def __init__(self, weight: Floats, eps: float) -> None:
        self._weight = np.array(weight, np.float32)
        self._eps = eps

    def bind(self, x: Floats, out: Floats) -> Callable[[], None]:
        """Returns a function that reads x and writes out, float32 (n, ..., width); they may be the same array."""
        if x.size == self._weight.size:
            return self._bind_one(x.reshape(-1), out.reshape(-1))
        if len(x) == 1:
            return lambda: self._rows(x, out)
        return lambda: parallel.over_rows(self._rows, x, out)

    def _bind_one(self, x: Floats, out: Floats) -> Callable[[], None]:
        """One token: the factor is a scalar, which needs few numpy calls. x, out: (width,)."""
        weight, width, eps = self._weight, x.size, self._eps
        dot, sqrt, multiply = x.dot, math.sqrt, np.multiply
        factor = np.empty((), np.float32)  # numpy takes longer to read a Python float

        def norm() -> None:
            factor[()] = 1.0 / sqrt(float(dot(x)) / width + eps)
            multiply(x, weight, out)
            multiply(out, factor, out)

        return norm

    def _rows(self, x: Floats, out: Floats) -> None:
        squares = np.vecdot(x, x).astype(np.float64)
        factors = 1.0 / np.sqrt(squares / self._weight.size + self._eps)
        np.multiply(x, self._weight, out=out)
        np.multiply(out, factors.astype(np.float32)[..., None], out=out)
