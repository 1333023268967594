"""Measure what quantised weights and lookup tables cost: the normalised mean squared error (NMSE) of products.

Knows the kernel wall and random numbers; prints nothing. As T-MAC's table of kernel errors (arXiv 2407.00088): Gaussian
weights and activations, products in float64 as the truth. NMSE(y, z) = sum (y - z)^2 / sum z^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tmac_llm import kernels
from tmac_llm.errors import KernelError
from tmac_llm.kernels import Matrix, MatrixShape, Tables

# What rounding table entries to int8 may cost, by design, on Gaussian activations.
TABLES_BUDGET = 1e-4
# NMSE against the weights as stored above which a kernel is wrong, not inexact.
_WRONG: dict[Tables, float] = {"int8": 2 * TABLES_BUDGET, "fast": 1e-3, "exact": 1e-10}
_ROWS = 1024  # raised to float64 at a time

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TableError:
    """NMSE of one kind of tables: against the weights before they were quantised, and as they are stored."""

    against_float: float
    against_stored: float


@dataclass(frozen=True)
class AccuracyResult:
    """One matrix. bits None: ternary weights, whose activations are int8 per token on both sides.

    weights: NMSE of quantising the weights alone; minmax: of plain min-max rounding (round to nearest) in the same
    groups. tables: by kind, "fast" only where the instruction set has it; ternary: "exact".
    """

    m: int
    k: int
    bits: int | None
    group_size: int
    n: int
    isa: str
    weights: float
    minmax: float
    tables: dict[Tables, TableError]


def run(
    m: int, k: int, bits: int | None, *, group_size: int = 128, n: int = 4, seed: int = 0
) -> AccuracyResult:
    """Quantise a random (m, k) matrix, multiply n random tokens. The same seed gives the same figures.

    Raises KernelError for an impossible shape, and where a kernel's error shows that it is wrong.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, k), np.float32)
    if bits is None:
        return _ternary(rng, m, k, x)
    weights = rng.standard_normal((m, k), np.float32)
    shape = MatrixShape(m, k, bits, group_size, True, 0.0)
    quantized = kernels.quantize(weights, bits, group_size, zeros=True)
    tiles = kernels.pack(shape, quantized.codes, quantized.scales, quantized.zeros)
    truth, stored = (
        _product(weights, x.astype(np.float64)),
        _stored_product(shape, tiles, x.astype(np.float64)),
    )
    errors: dict[Tables, TableError] = {}
    with_tables: tuple[Tables, ...] = ("int8", "fast") if kernels.has_fast_aggregation() else ("int8",)
    matrix = Matrix(shape, tiles)
    for tables in with_tables:
        y = matrix.matmul(x, tables=tables)
        errors[tables] = _checked(tables, TableError(nmse(y, truth), nmse(y, stored)), shape)
    matrix.close()
    total = float(np.einsum("ij,ij->", weights, weights, dtype=np.float64))
    minmax = quantized.error_minmax / total
    return AccuracyResult(
        m, k, bits, group_size, n, kernels.isa_selected(), nmse(stored, truth), minmax, errors
    )


def nmse(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """sum (found - expected)^2 / sum expected^2, in float64."""
    difference = found.astype(np.float64) - expected
    return float(np.sum(difference**2) / np.sum(expected.astype(np.float64) ** 2))


def _ternary(rng: np.random.Generator, m: int, k: int, x: Floats) -> AccuracyResult:
    """BitNet's recipe: ternary weights with a scale per row, activations rounded to int8 by the largest of a token."""
    shape = MatrixShape(m, k, 2, 0, False, 1.0, "ternary")
    codes = rng.integers(0, 3, (m, k), np.uint8)
    scales = rng.uniform(0.5, 1.5, m).astype(np.float32)
    tiles = kernels.pack(shape, codes, scales)
    units = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    ints = np.rint(x / units).astype(np.int8)
    truth = _stored_product(shape, tiles, ints * units.astype(np.float64))
    matrix = Matrix(shape, tiles)
    y = matrix.matmul(ints, tables="exact", x_scales=units[:, 0].copy())
    matrix.close()
    error = nmse(y, truth)
    errors: dict[Tables, TableError] = {"exact": _checked("exact", TableError(error, error), shape)}
    return AccuracyResult(m, k, None, 0, len(x), kernels.isa_selected(), 0.0, 0.0, errors)


def _product(weights: Floats, x: Doubles) -> Doubles:
    """float64 (n, m): x W^T, some rows at a time."""
    parts = [x @ weights[at : at + _ROWS].astype(np.float64).T for at in range(0, len(weights), _ROWS)]
    return np.concatenate(parts, axis=1)


def _stored_product(shape: MatrixShape, tiles: npt.NDArray[np.uint8], x: Doubles) -> Doubles:
    """The same with the weights that the tiles hold."""
    parts = []
    for at in range(0, shape.m, _ROWS):
        rows = np.arange(at, min(at + _ROWS, shape.m), dtype=np.int32)
        parts.append(x @ kernels.dequantize_rows(shape, tiles, rows).astype(np.float64).T)
    return np.concatenate(parts, axis=1)


def _checked(tables: Tables, error: TableError, shape: MatrixShape) -> TableError:
    if not error.against_stored <= _WRONG[tables]:
        raise KernelError(
            f"{shape.m} x {shape.k}, {shape.bits} bits, tables {tables}: NMSE {error.against_stored:.1e} against the "
            f"weights as stored, expected at most {_WRONG[tables]:.0e}; the {kernels.isa_selected()} kernel is wrong"
        )
    return error
