"""Random matrices and their meaning in numpy, for the tests of the kernel wall."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm import kernels
from tmac_llm.kernels import Matrix, MatrixShape

Array = npt.NDArray[Any]
GROUP_SIZES = (0, 32, 64, 128)


def parts(shape: MatrixShape, rng: np.random.Generator) -> tuple[Array, Array, Array | None]:
    """Random codes (m, k), scales and zero points of a shape."""
    dtype = np.float16 if shape.group_size else np.float32
    codes = rng.integers(0, 2**shape.bits, (shape.m, shape.k), dtype=np.uint8)
    scales = rng.uniform(0.5, 1.5, shape.scales_shape).astype(dtype)
    zeros = rng.uniform(0, 2**shape.bits - 1, shape.scales_shape).astype(dtype) if shape.has_zeros else None
    return codes, scales, zeros


def spread(shape: MatrixShape, values: Array) -> Array:
    """Scales or zero points, one per weight: float64 (m, k)."""
    values = values.astype(np.float64).reshape(shape.m, -1)
    return np.repeat(values, shape.group_size or shape.k, axis=1)[:, : shape.k]


def dequantized(shape: MatrixShape, codes: Array, scales: Array, zeros: Array | None) -> Array:
    """float64 (m, k), from the definition of MatrixShape."""
    zero: Any = shape.zero if zeros is None else spread(shape, zeros)
    return (codes.astype(np.float64) - zero) * spread(shape, scales)


def random_matrix(shape: MatrixShape, rng: np.random.Generator) -> tuple[Matrix, Array]:
    """A matrix in memory and its weights, float64 (m, k)."""
    codes, scales, zeros = parts(shape, rng)
    return Matrix(shape, kernels.pack(shape, codes, scales, zeros)), dequantized(shape, codes, scales, zeros)


def nmse(y: Array, expected: Array) -> float:
    """Squared error relative to the squared norm of what is expected."""
    return float(((y - expected) ** 2).sum() / (expected**2).sum())
