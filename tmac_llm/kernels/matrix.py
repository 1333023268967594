"""A packed matrix in memory and its products; knows nothing of the model that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tmac_llm._native import ffi, lib
from tmac_llm.errors import KernelError
from tmac_llm.kernels.library import check, ensure_initialised, expect, has_fast_aggregation, pointer
from tmac_llm.kernels.shape import MatrixShape

Tables = Literal["int8", "exact", "fast"]

_TYPES: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): lib.TMAC_F32,
    np.dtype(np.float16): lib.TMAC_F16,
    np.dtype(np.int8): lib.TMAC_I8,
}
_TABLES = {"int8": lib.TMAC_TABLES_INT8, "exact": lib.TMAC_TABLES_EXACT, "fast": lib.TMAC_TABLES_FAST}

Activations = npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


class Tuning(NamedTuple):
    """How a matrix is multiplied, for speed alone: no choice changes a result. 0: the default.

    prefetch: bytes ahead that the weights of one token are asked for; -1: none ahead. panel_bytes: of tables that
    are live at once, several tokens.
    """

    prefetch: int = 0
    panel_bytes: int = 0


class Matrix:
    """Weights in memory of their own (huge pages where the system has them), in the order that the running
    instruction set reads. Keeps no reference to `tiles`.

    shape: the matrix; tiles: uint8 (shape.packed_size,), as `kernels.pack` makes them.
    Raises KernelError for a wrong dtype or size, or when memory runs out.
    """

    def __init__(self, shape: MatrixShape, tiles: npt.NDArray[np.uint8]) -> None:
        expect("Matrix: tiles", tiles, (np.uint8,), (shape.packed_size,))
        ensure_initialised()
        out = ffi.new("tmac_matrix **")
        check(lib.tmac_matrix_load(shape.c, pointer(tiles), out), f"loading {shape.packed_size} bytes")
        self._own(shape, out[0], shape.packed_size, None)

    @classmethod
    def view(cls, shape: MatrixShape, data: npt.NDArray[np.uint8], slabs: int = 0) -> Matrix:
        """A matrix that multiplies straight from `data`, such as a mapped file; nothing is copied.

        data: uint8, at an address that is a multiple of 64: `data` and `slabs` of a loaded matrix of this shape
        under the running instruction set, or the tiles where `keeps_order(shape)`. The matrix keeps it alive.
        Raises KernelError for data of another size, or not aligned.
        """
        expect("Matrix.view: data", data, (np.uint8,), (data.size,))
        ensure_initialised()
        if data.ctypes.data % 64:
            raise KernelError("Matrix.view: data: expected an address that is a multiple of 64")
        out = ffi.new("tmac_matrix **")
        status = lib.tmac_matrix_view(shape.c, pointer(data), data.size, slabs, out)
        check(status, f"{data.size} bytes in {slabs} slabs as {shape}")
        matrix = cls.__new__(cls)
        matrix._own(shape, out[0], 0, data)
        return matrix

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """Its bytes in the order of the running instruction set: a read-only view that keeps them alive."""
        handle = self._open()

        def keep(address: Any, handle: Any = handle) -> None:
            del handle  # goes with the view

        address = ffi.gc(lib.tmac_matrix_data(handle, ffi.NULL), keep)
        data = np.frombuffer(ffi.buffer(address, self.n_bytes), np.uint8)
        data.flags.writeable = False
        return data

    @property
    def slabs(self) -> int:
        """Parts that a ternary matrix is cut into for the threads; 0 where it is not."""
        slabs = ffi.new("int32_t *")
        lib.tmac_matrix_data(self._open(), slabs)
        return int(slabs[0])

    def precede(self, other: Matrix) -> None:
        """The product with `other` comes after that with this one: after a product of one token the threads that
        wait begin to read its weights, while the caller does other work. Holds for calls bound later."""
        self._next: Any = other._open()  # a handle, not a Matrix: a ring of these would outlive its last user

    def tune(self, tuning: Tuning) -> None:
        """Choose how it is multiplied; raises KernelError for numbers that make no sense."""
        check(lib.tmac_matrix_tune(self._open(), ffi.new("tmac_tuning *", tuning)), f"{tuning}")

    def _own(self, shape: MatrixShape, handle: Any, n_bytes: int, data: npt.NDArray[np.uint8] | None) -> None:
        self.shape = shape
        self._has_fast = has_fast_aggregation()

        def free(handle: Any, data: Any = data) -> None:
            lib.tmac_matrix_free(handle)

        self._handle: Any = ffi.gc(handle, free, n_bytes)
        self._next = ffi.NULL

    def matmul(
        self,
        x: Activations,
        out: Floats | None = None,
        tables: Tables = "int8",
        x_scales: Floats | None = None,
    ) -> Floats:
        """y = x W^T: float32 (n, m) from x (n, k), or (m,) from (k,).

        x: float32, float16 or int8, contiguous within a row. tables: "int8" rounds table entries to a scale
        per segment of columns; "exact" is the integer recipe of BitNet (float x is first quantised per token
        to int8), and what matrices of encoding "ternary" use in any case; "fast" averages the entries of "int8"
        instead of adding them (see `has_fast_aggregation`). x_scales: float32 (n,), what one
        unit of int8 x is worth (None: 1). out: float32 of the result's shape. Raises KernelError for a wrong
        dtype, shape or layout, for tables that the instruction set lacks, and for NaN or infinity in x.
        """
        if out is None and isinstance(x, np.ndarray):
            out = np.empty((*x.shape[:-1], self.shape.m), np.float32)
        self.bind(x, out, tables, x_scales)()
        return out

    def bind(
        self, x: Activations, out: Floats, tables: Tables = "int8", x_scales: Floats | None = None
    ) -> Callable[[], None]:
        """`matmul` with everything checked and every pointer made once.

        Returns a function without arguments that reads x and writes out as they are when it is called. It
        keeps the arrays and the matrix's memory alive.
        """
        arguments = self._arguments(x, out, tables, x_scales)
        multiply, keep = lib.tmac_matmul, (x, out, x_scales)

        def call(keep: Any = keep) -> None:
            status = multiply(*arguments)
            if status:
                check(status, "matmul")

        return call

    def read(self, n_streams: int = 4) -> int:
        """Read every byte once on all threads: the ceiling of a product with one token. n_streams: 1, 2, 4 or 8
        that each thread reads side by side. Returns the exclusive or of all 64-bit words."""
        checksum = ffi.new("uint64_t *")
        check(lib.tmac_matrix_read(self._open(), n_streams, checksum), f"read: {n_streams} streams")
        return int(checksum[0])

    def close(self) -> None:
        """Give the memory back as soon as no bound call needs it. Later products raise KernelError."""
        self._handle, self._next = None, ffi.NULL

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights in memory."""
        return int(lib.tmac_matrix_bytes(self._open(), ffi.NULL))

    @property
    def huge_bytes(self) -> int:
        """How many of them the system was asked to put in huge pages; 0 where it has none, and for a view."""
        huge = ffi.new("int64_t *")
        lib.tmac_matrix_bytes(self._open(), huge)
        return int(huge[0])

    def _open(self) -> Any:
        if self._handle is None:
            raise KernelError("this matrix is closed")
        return self._handle

    def _arguments(
        self, x: Activations, out: Floats, tables: Tables, x_scales: Floats | None
    ) -> tuple[Any, ...]:
        m, k, handle = self.shape.m, self.shape.k, self._open()
        _check_rows("x", x, tuple(_TYPES), k)
        _check_rows("out", out, (np.dtype(np.float32),), m)
        n = x.shape[0] if x.ndim == 2 else 1
        if out.shape[:-1] != x.shape[:-1]:
            raise KernelError(f"matmul: out: expected shape {(*x.shape[:-1], m)}, found {out.shape}")
        if n < 1:
            raise KernelError("matmul: x: expected at least one token")
        if not out.flags.writeable or np.may_share_memory(x, out):
            raise KernelError("matmul: out: expected a writeable array that does not overlap x")
        if tables not in _TABLES:
            raise KernelError(f'matmul: tables: expected "int8", "exact" or "fast", found {tables!r}')
        if tables == "fast" and not self._has_fast:
            raise KernelError(
                'matmul: tables "fast": the instruction set of this matrix has no kernel for them'
            )
        if x.dtype == np.int8 and tables != "exact":
            raise KernelError('matmul: int8 x needs tables="exact"')
        if x_scales is not None:
            if x.dtype != np.int8:
                raise KernelError("matmul: x_scales belong to int8 x only")
            expect("matmul: x_scales", x_scales, (np.float32,), (n,))
        scales = ffi.NULL if x_scales is None else ffi.cast("float *", x_scales.ctypes.data)
        y = ffi.cast("float *", out.ctypes.data)
        return (
            handle,
            pointer(x),
            _TYPES[x.dtype],
            _ld(x),
            scales,
            n,
            _TABLES[tables],
            y,
            _ld(out),
            self._next,
        )


def memory_size(shape: MatrixShape) -> int:
    """Bytes that a Matrix of this shape holds with the running instruction set."""
    ensure_initialised()
    size = int(lib.tmac_memory_size(shape.c))
    check(size, "memory_size")
    return size


def keeps_order(shape: MatrixShape) -> bool:
    """Whether the running instruction set reads a matrix of this shape in the order of its packed tiles."""
    ensure_initialised()
    return bool(lib.tmac_matrix_keeps_order(shape.c))


def _check_rows(what: str, array: object, dtypes: tuple[np.dtype[Any], ...], width: int) -> None:
    """Raise KernelError unless `array` is (width,) or (n, width), of such a dtype, contiguous within rows."""
    names = " or ".join(d.name for d in dtypes)
    if not isinstance(array, np.ndarray):
        raise KernelError(f"matmul: {what}: expected a numpy array, found {type(array).__name__}")
    if array.dtype not in dtypes or array.ndim not in (1, 2) or array.shape[-1] != width:
        raise KernelError(
            f"matmul: {what}: expected {names} (n, {width}) or ({width},), found {array.dtype} {array.shape}"
        )
    if not array.size:
        return
    size = array.itemsize
    rows_apart = array.ndim == 1 or array.shape[0] == 1 or array.strides[0] >= width * size
    if (width > 1 and array.strides[-1] != size) or not rows_apart or array.strides[0] % size:
        raise KernelError(
            f"matmul: {what}: expected rows contiguous in memory, found strides {array.strides}"
        )


def _ld(array: npt.NDArray[Any]) -> int:
    """Elements from row to row."""
    if array.ndim == 2 and array.shape[0] > 1:
        return int(array.strides[0] // array.itemsize)
    return int(array.shape[-1])
