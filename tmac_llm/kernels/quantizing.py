"""Float weights to codes, scales and zero points of least squared error; knows no bit policy and no model."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tmac_llm._native import ffi, lib
from tmac_llm.errors import KernelError
from tmac_llm.kernels.library import check, ensure_initialised, expect, pointer
from tmac_llm.kernels.shape import MatrixShape

_TYPES = {
    np.dtype(np.float32): lib.TMAC_F32,
    np.dtype(np.float16): lib.TMAC_F16,
    np.dtype(np.uint16): lib.TMAC_BF16,
    np.dtype(ml_dtypes.bfloat16): lib.TMAC_BF16,
}


class Quantized(NamedTuple):
    """What `kernels.pack` takes, and summed squares: errors of plain min-max rounding and of the search, weights."""

    codes: npt.NDArray[np.uint8]  # (rows, k)
    scales: npt.NDArray[np.float16]  # (rows, n_groups)
    zeros: npt.NDArray[np.float16] | None  # (rows, n_groups)
    error_minmax: float
    error_search: float
    power: float


def quantize(
    weights: npt.NDArray[Any], bits: int, group_size: int, zeros: bool, zero: float = 0.0
) -> Quantized:
    """Quantise rows by groups of columns, searching the scale (and zero point) of least squared error.

    weights: (rows, k), float32, float16, bfloat16, or uint16 holding bfloat16 bits; C order. group_size: 32,
    64 or 128. zeros: search a zero point per group too; otherwise `zero`, in code units, holds for all. Runs
    on all threads. Raises KernelError for NaN or infinity, and for weights whose scale would exceed float16.
    """
    if not isinstance(weights, np.ndarray) or weights.ndim != 2 or weights.dtype not in _TYPES:
        raise KernelError(
            f"quantize: expected a matrix of float32, float16 or bfloat16, found {_describe(weights)}"
        )
    if group_size == 0:
        raise KernelError("quantize: group_size 0 (a scale per row), expected 32, 64 or 128")
    m, k = weights.shape
    expect("quantize: weights", weights, (weights.dtype.type,), (m, k))
    shape = MatrixShape(m, k, bits, group_size, zeros, zero)
    codes = np.empty((m, k), np.uint8)
    scales = np.empty((m, shape.n_groups), np.float16)
    zero_points = np.empty((m, shape.n_groups), np.float16) if zeros else None
    errors = np.zeros(3)
    ensure_initialised()
    status = lib.tmac_quantize(
        shape.c,
        m,
        pointer(weights),
        _TYPES[weights.dtype],
        pointer(codes),
        pointer(scales),
        pointer(zero_points),
        ffi.cast("double *", errors.ctypes.data),
    )
    check(status, "quantize")
    return Quantized(codes, scales, zero_points, *errors.tolist())


def _describe(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
