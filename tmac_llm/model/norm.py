"""Root mean square normalisation; knows nothing of where in a model it stands."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tmac_llm.model import parallel

Floats = npt.NDArray[np.float32]


class RMSNorm:
    """y = weight * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich, arXiv 1910.07467).

    weight: float32 (width,).
    """

    def __init__(self, weight: Floats, eps: float) -> None:
        self._weight = np.array(weight, np.float32)[
            None
        ]  # numpy is fastest with one token's shape, (1, width)
        self._width = weight.size
        self._eps = eps

    def __call__(self, x: Floats, out: Floats) -> None:
        """x, out: float32 (n, ..., width); they may be the same array."""
        if x.size == self._width:  # one token: a scalar needs no numpy calls
            factor = 1.0 / math.sqrt(float(np.vdot(x, x)) / self._width + self._eps)
            np.multiply(x, self._weight, out=out)
            np.multiply(out, factor, out=out)
        elif len(x) == 1:
            self._rows(x, out)
        else:
            parallel.over_rows(self._rows, x, out)

    def _rows(self, x: Floats, out: Floats) -> None:
        squares = np.vecdot(x, x).astype(np.float64)
        factors = 1.0 / np.sqrt(squares / self._width + self._eps)
        np.multiply(x, self._weight, out=out)
        np.multiply(out, factors.astype(np.float32)[..., None], out=out)
