"""Codes of least error in what a linear layer puts out, from statistics of its inputs; knows no model.

Rows of a matrix are independent. Of a row w only the sums over calibration tokens matter: with the inputs x of
the quantised model, x' those of the float model, and the target y = w x' (plus what the residual stream lacks),

    |q X - y|^2 + damping = q H q^T - 2 q b^T + const       H = sum x x^T + damping,  b = sum y x^T + damping w

and its minimum without rounding is w* = b H^-1 (the target of GPTAQ, arXiv 2504.02692). From there:

1. GPTQ (arXiv 2210.17323) in the form of LDLQ (arXiv 2307.13304): with H = U D U^T, U unit upper triangular,
   column j is rounded after the errors of those before it were added to it through U. A group's scale comes from
   the search over the weights so compensated. Rows where the plain search does better start from that.
2. Sweeps over the groups: the least squares scale and zero point for the codes, then each code in turn to its
   best value given all others (coordinate descent as in QuantEase, arXiv 2309.01885). No step raises the error.

Arrays of the work are (columns, rows): a column of the weights is contiguous, and products are BLAS's.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tmac_llm import kernels
from tmac_llm.errors import ConvertError
from tmac_llm.kernels import MatrixShape
from tmac_llm.kernels.quantizing import Quantized

Floats = npt.NDArray[np.float32]

# Measured on held-out text: 0.003 to 0.1 of a column's own sum of squares, and 2 to 8 sweeps, are alike.
DAMPING = 0.03
SWEEPS = 3
_BLOCK = 128
# Rows of one portion of work: the same for every number of threads, so that results are, too.
ROWS = 1024


@dataclass(frozen=True, slots=True)
class Statistics:
    """Sums over tokens of a linear's inputs, float32, x: (tokens, k) of the quantised model, x' of the float one.

    hessian: x^T x, (k, k). drift: (x' - x)^T x, (k, k). residual: r^T x, (m, k), r what the output should make
    up for besides; None for nothing.
    """

    hessian: Floats
    drift: Floats
    residual: Floats | None = None


@dataclass(slots=True)
class OutputError:
    """Squared errors of what layers put out, damping included, over calibration tokens and rows: of the scale
    search alone, and as stored."""

    search: float = 0.0
    stored: float = 0.0

    def add(self, other: OutputError) -> None:
        self.search += other.search
        self.stored += other.stored

    @property
    def gain(self) -> float | None:
        """The share of the search's error that was removed, or None without any."""
        return 1 - self.stored / self.search if self.search else None


class Quadratic:
    """The damped H of a layer, and its factors: H = U D U^T.

    h: (k, k). unit: U, upper triangular with ones on its diagonal. pivots: D, (k,). damping: (k,), part of h.
    """

    def __init__(self, statistics: Statistics, damping: float = DAMPING) -> None:
        """Takes over the memory of statistics.hessian. Raises ConvertError for statistics that are not finite."""
        self.h, self.k = statistics.hessian, len(statistics.hessian)
        if not np.isfinite(self.h.sum()):
            raise ConvertError("the calibration text gives activations that are not finite")
        diagonal = np.einsum("ii->i", self.h)  # a view
        floor = max(float(diagonal.mean()) * 1e-4, 1e-12)  # for columns that are always 0
        self.damping = damping * diagonal + np.float32(floor)
        diagonal += self.damping
        self.unit = _upper_factor(self.h)
        scales = np.diagonal(self.unit).copy()
        self.pivots = scales**2
        self.unit /= scales
        self._inverses = [np.linalg.inv(self.unit[at, at]) for at in self.blocks()]

    def blocks(self, size: int = _BLOCK) -> list[slice]:
        """Column ranges, the last one perhaps shorter."""
        return [slice(i, min(i + size, self.k)) for i in range(0, self.k, size)]

    def solve(self, g: Floats) -> Floats:
        """x of H x = g, for g (k, rows); in place."""
        blocks = list(zip(self.blocks(), self._inverses, strict=True))
        for at, inverse in reversed(blocks):
            g[at] -= self.unit[at, at.stop :] @ g[at.stop :]
            g[at] = inverse @ g[at]
        g /= self.pivots[:, None]
        for at, inverse in blocks:
            g[at] -= self.unit[: at.start, at].T @ g[: at.start]
            g[at] = inverse.T @ g[at]
        return g


def _upper_factor(h: Floats) -> Floats:
    """Upper triangular U of h = U U^T: Cholesky's factor of the matrix read backwards."""
    for boost in (0.0, 1e-3, 1e-2, 1e-1):
        reverse = np.ascontiguousarray(h[::-1, ::-1])
        np.einsum("ii->i", reverse)[:] *= np.float32(1 + boost)
        with suppress(np.linalg.LinAlgError):
            return np.ascontiguousarray(np.linalg.cholesky(reverse)[::-1, ::-1])
    raise ConvertError("the statistics of the calibration text are degenerate; take a longer text")


def quantize(
    weights: Floats,
    shape: MatrixShape,
    statistics: Statistics,
    quadratic: Quadratic,
    first_row: int,
    error: OutputError,
    sweeps: int = SWEEPS,
) -> Quantized:
    """Codes, scales and zero points of rows from `first_row` on of a matrix. weights: float32 (rows, k)."""
    columns = np.ascontiguousarray(weights.T)
    work = _Rows(shape, quadratic, columns)
    g = statistics.drift.T @ columns
    if statistics.residual is not None:
        g += statistics.residual[first_row : first_row + len(weights)].T
    work.target += quadratic.solve(g)
    work.feed_errors()
    error.search += work.start_from(
        kernels.quantize(weights, shape.bits, shape.group_size, shape.has_zeros, shape.zero)
    )
    for _ in range(sweeps):
        work.sweep()
    error.stored += float(np.vdot(work.target - work.q, work.slope))
    return work.result()


def dequantized(shape: MatrixShape, coded: Quantized) -> Floats:
    """float32 (rows, k): what codes mean."""
    group = np.arange(shape.k) // shape.group_size
    scales = coded.scales.astype(np.float32)[:, group]
    zeros = shape.zero if coded.zeros is None else coded.zeros.astype(np.float32)[:, group]
    values: Floats = (coded.codes - np.asarray(zeros, np.float32)) * scales
    return values


class _Rows:
    """Some rows of a matrix at work. All arrays (k, rows), scales and zeros (n_groups, rows).

    target: w*, at first the weights; q: what the codes mean; slope: (target - q) H, minus half the gradient.
    """

    def __init__(self, shape: MatrixShape, quadratic: Quadratic, w: Floats) -> None:
        n = w.shape[1]
        self._shape, self._quadratic, self._top = shape, quadratic, np.float32((1 << shape.bits) - 1)
        self.target = w.copy()
        self.q, self.codes, self.slope = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
        self.scales = np.zeros((shape.n_groups, n), np.float32)
        self.zeros = np.full((shape.n_groups, n), np.float32(shape.zero))
        self._groups = quadratic.blocks(shape.group_size)

    def feed_errors(self) -> None:
        """GPTQ: q, codes, scales and zeros, column after column."""
        u = self._quadratic.unit
        e = np.zeros_like(self.target)
        for block in self._quadratic.blocks():
            t = self.target[block] + u[: block.start, block].T @ e[: block.start]
            for i, at in enumerate(self._groups):
                if at.start < block.start or at.start >= block.stop:
                    continue
                local = slice(at.start - block.start, at.stop - block.start)
                inside = slice(block.start, at.start)
                t[local] += u[inside, at].T @ e[inside]
                self._search(i, t[local])
                for j in range(at.start, at.stop):
                    before = slice(at.start, j)
                    column = t[j - block.start] + u[before, j] @ e[before]
                    self._round(i, j, column)
                    np.subtract(self.target[j], self.q[j], out=e[j])
        self.slope = self._quadratic.h @ e

    def start_from(self, plain: Quantized) -> float:
        """Take over the rows where the search alone did better, as it may at 1 bit; returns its error of all rows."""
        q = np.ascontiguousarray(dequantized(self._shape, plain).T)
        lost = self.target - q
        slope = self._quadratic.h @ lost
        errors = _dots(lost, slope)
        better = errors < _dots(self.target - self.q, self.slope)
        self.q[:, better], self.slope[:, better] = q[:, better], slope[:, better]
        self.codes[:, better], self.scales[:, better] = plain.codes.T[:, better], plain.scales.T[:, better]
        if plain.zeros is not None:
            self.zeros[:, better] = plain.zeros.T[:, better]
        return float(errors.sum(dtype=np.float64))

    def sweep(self) -> None:
        """Once over all groups: scale and zero point, then codes, of each."""
        h = self._quadratic.h
        for i, at in enumerate(self._groups):
            before = self.q[at].copy()
            block, slope = h[at, at], self.slope[at].copy()
            self._refit(i, at, block, slope)
            start = self.q[at].copy()
            change = np.zeros_like(start)
            for j in range(at.start, at.stop):
                local = j - at.start
                gain = slope[local] - block[local, :local] @ change[:local]
                gain /= block[local, local]
                gain += self.q[j]
                self._round(i, j, gain)
                np.subtract(self.q[j], start[local], out=change[local])
            self.slope -= h[at].T @ (self.q[at] - before)

    def _refit(self, i: int, at: slice, block: Floats, slope: Floats) -> None:
        """Least squares scale and zero point of a group for its codes, all else given; updates q and `slope`."""
        c = self.codes[at]
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float16: not better
            scale, zero = (self._line if self._shape.has_zeros else self._factor)(i, c, block, slope)
            change = (c - zero) * scale - self.q[at]
            moved = block @ change
            better = _dots(change, 2 * slope - moved) > 0
        better &= np.isfinite(scale) & np.isfinite(zero)
        self.scales[i], self.zeros[i] = np.where(better, (scale, zero), (self.scales[i], self.zeros[i]))
        self.q[at] += np.where(better, change, 0)
        slope -= np.where(better, moved, 0)

    def _line(self, i: int, c: Floats, block: Floats, slope: Floats) -> tuple[Floats, Floats]:
        """Scale and zero point: the codes and ones are the two directions of a least squares problem."""
        hc = block @ c
        cc, c1, ones = _dots(c, hc), hc.sum(axis=0), np.float32(block.sum())
        cs, s1 = _dots(c, slope), slope.sum(axis=0)
        determinant = cc * ones - c1 * c1
        sound = determinant > 1e-6 * cc * ones  # otherwise all codes are the same
        safe = np.where(sound, determinant, 1)
        scale = self.scales[i] + np.where(sound, (cs * ones - s1 * c1) / safe, 0)
        offset = np.where(sound, (s1 * cc - cs * c1) / safe, 0) - self.scales[i] * self.zeros[i]
        scale = _as_half(scale)
        zero = np.where(scale != 0, -offset / np.where(scale != 0, scale, 1), self.zeros[i])
        return scale, _as_half(zero)

    def _factor(self, i: int, c: Floats, block: Floats, slope: Floats) -> tuple[Floats, Floats]:
        """The scale alone, with the zero point that all groups have."""
        centred = c - self.zeros[i]
        power = _dots(centred, block @ centred)
        change = np.where(power > 0, _dots(centred, slope) / np.where(power > 0, power, 1), 0)
        return _as_half(self.scales[i] + change), self.zeros[i]

    def _search(self, i: int, t: Floats) -> None:
        """The scale (and zero point) of group i that suits the columns t best."""
        shape = self._shape
        rows = np.ascontiguousarray(t.T)
        found = kernels.quantize(rows, shape.bits, shape.group_size, shape.has_zeros, shape.zero)
        self.scales[i] = found.scales[:, 0]
        if found.zeros is not None:
            self.zeros[i] = found.zeros[:, 0]

    def _round(self, i: int, j: int, column: Floats) -> None:
        """Column j to the nearest value of group i."""
        scale, zero, code = self.scales[i], self.zeros[i], self.codes[j]
        np.divide(column, scale, out=code, where=scale != 0)
        code += zero
        np.rint(code, out=code)
        np.clip(code, 0, self._top, out=code)
        np.subtract(code, zero, out=self.q[j])
        self.q[j] *= scale

    def result(self) -> Quantized:
        """Codes, scales and zero points as `kernels.pack` takes them."""
        codes = np.ascontiguousarray(self.codes.T).astype(np.uint8)
        scales = np.ascontiguousarray(self.scales.T).astype(np.float16)
        zeros = np.ascontiguousarray(self.zeros.T).astype(np.float16) if self._shape.has_zeros else None
        return Quantized(codes, scales, zeros, 0.0, 0.0, 0.0)


def _dots(a: Floats, b: Floats) -> Floats:
    """Scalar products of the columns of two (n, rows) arrays: (rows,)."""
    products: Floats = np.einsum("ij,ij->j", a, b)
    return products


def _as_half(values: Floats) -> Floats:
    """Rounded to float16."""
    return values.astype(np.float16).astype(np.float32)
