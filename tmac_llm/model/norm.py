"""RMSNorm (Zhang and Sennrich, 2019): y = w * x / sqrt(mean(x^2) + eps); knows no model."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class RMSNorm:
    """Normalises the last axis. weight: float32 (size,); eps is inside the root."""

    def __init__(self, weight: Floats, eps: float) -> None:
        self.weight = np.ascontiguousarray(weight, np.float32)
        self.eps = eps

    def __call__(self, x: Floats, out: Floats) -> Floats:
        """x: float32 (..., size); out: the same shape, may be x itself."""
        if x.size == x.shape[-1]:  # one row: a scalar root is cheaper than an array of one
            row = x.reshape(-1)
            np.multiply(x, 1.0 / sqrt(float(row.dot(row)) / row.size + self.eps), out=out)
        else:
            mean = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
            np.multiply(x, 1 / np.sqrt(mean + np.float32(self.eps)), out=out)
        return np.multiply(out, self.weight, out=out)
