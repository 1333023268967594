"""What all formats of stored codes share: groups and scales as the kernels take them; knows no packing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.dense import FLOATS, DenseEncoding, check_float
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.weights import CodedRows, CodedWeight, Weight, check_finite, to_float32
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import show

# Rows [begin, end) as stored: codes, scales (n, groups), zero points of that shape or None.
StoredRows = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any] | None]]
MAX_GROUP, MIN_GROUP = 128, 32


class CodedEncoding:
    """Base of the encodings whose linears hold codes; a linear with a float `.weight` instead stays float.

    A subclass says which tensors a linear has (`_check_codes`) and reads them (`_codes`).
    """

    quantised_tables = True

    def __init__(self, files: TensorFiles, notes: list[str]) -> None:
        self._files = files
        self._notes = notes
        self._rounding = Rounding(notes)
        self._dense = DenseEncoding(files, "float")
        self._slot: tuple[str, Any] = ("", None)

    @property
    def description(self) -> str:
        raise NotImplementedError

    def check(self, name: str, shape: tuple[int, int]) -> list[str]:
        if f"{name}.weight" in self._files and self._files.info(f"{name}.weight").dtype in FLOATS:
            self._say(f"{name} is stored in float and stays so", "is stored in float")
            return self._dense.check(name, shape)
        bias = [f"{name}.bias"] if f"{name}.bias" in self._files else []
        for tensor in bias:
            check_float(self._files, tensor, shape[:1])
        return [*self._check_codes(name, shape), *bias]

    def linear(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> Weight:
        if f"{name}.weight" in self._files and self._files.info(f"{name}.weight").dtype in FLOATS:
            return self._dense.linear(name, shape, bias)
        return self._codes(name, shape, self._extra_bias(name) if bias is None else bias)

    def _check_codes(self, name: str, shape: tuple[int, int]) -> list[str]:
        raise NotImplementedError

    def _codes(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> Weight:
        raise NotImplementedError

    def _once(self, name: str, read: Callable[[], Any]) -> Any:
        """What `read` gives for the linear `name`; kept until another linear is read, row range by row range."""
        if self._slot[0] != name:
            self._slot = ("", None)
            self._slot = (name, read())
        return self._slot[1]

    def _floats(self, tensor: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """A float tensor, or rows of it, without NaN and infinity."""
        values = self._files.read(tensor, begin, end)
        check_finite(values, f"{self._files.file_name(tensor)}: tensor {tensor}", begin)
        return values

    def _words(self, tensor: str, begin: int = 0, end: int | None = None) -> NDArray[np.uint32]:
        return self._files.read(tensor, begin, end).view(np.uint32)

    def _extra_bias(self, name: str) -> NDArray[np.float32] | None:
        """A `.bias` that config.json does not mention: old AutoGPTQ wrote zeros, which are left out."""
        tensor = f"{name}.bias"
        if tensor not in self._files:
            return None
        bias = to_float32(self._floats(tensor))
        if not bias.any():
            return None
        self._say(
            f"{tensor}, maybe not alone, is not zero although config.json has no bias: added", "has no bias"
        )
        return bias

    def _say(self, note: str, about: str) -> None:
        """A note, once per subject for the whole model."""
        if not any(about in known for known in self._notes):
            self._notes.append(note)


class Rounding:
    """Counts what storing scales and zero points as float16 costs; the one note about it is kept current."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes
        self._at: int | None = None
        self._worst = {"scale": 0.0, "zero point": 0.0}

    def to_float16(self, values: NDArray[Any], what: str, where: str) -> NDArray[np.float16]:
        """Raises UnsupportedError for a value beyond float16's range. what: "scale" or "zero point"."""
        if values.dtype == np.float16:
            return np.ascontiguousarray(values)
        exact = to_float32(values)
        with np.errstate(over="ignore", under="ignore"):
            stored = exact.astype(np.float16)
        if np.isinf(stored).any():
            raise UnsupportedError(
                f"{where}: a {what} of {np.abs(exact).max():g} exceeds float16 (65504), which groups are stored"
                " with; convert the unquantised original of this model instead"
            )
        error = np.abs(stored.astype(np.float32) - exact)
        if what == "scale":  # relative to itself; a zero point counts in code units
            error = np.divide(error, np.abs(exact), out=np.zeros_like(error), where=exact != 0)
        worst = float(error.max(initial=0))
        if worst > self._worst[what]:
            self._worst[what] = worst
            self._note()
        return np.ascontiguousarray(stored)

    def _note(self) -> None:
        scale, zero = self._worst["scale"], self._worst["zero point"]
        parts = [f"scales by up to {scale:.1e} of their value"] if scale else []
        parts += [f"zero points by up to {zero:.1e} of a step"] if zero else []
        note = f"not exact: rounded to float16: {' and '.join(parts)}"
        if self._at is None:
            self._at = len(self._notes)
            self._notes.append(note)
        self._notes[self._at] = note


def native_group(group_size: int, k: int, name: str) -> int:
    """The kernels' group size that expresses `group_size` exactly: 0 (per row), 32, 64 or 128 columns.

    A group of another size is several of its largest suitable divisor. Raises UnsupportedError without one.
    """
    if group_size >= k and group_size not in (32, 64, 128):
        return 0
    native = math.gcd(group_size, MAX_GROUP)
    if native < MIN_GROUP:
        raise UnsupportedError(
            f"{name}: groups of {group_size} columns are not supported; supported: multiples of {MIN_GROUP},"
            " or one per row; convert the unquantised original of this model instead"
        )
    return native


def group_permutation(group: NDArray[np.int32], group_size: int, where: str) -> NDArray[np.int32] | None:
    """Columns sorted by their group, stable; None where they are in order. Then groups are whole again.

    Raises CheckpointError where some group has more or fewer than group_size columns (but for the last).
    """
    in_order = np.arange(len(group)) // group_size
    if np.array_equal(group, in_order):
        return None
    perm = np.argsort(group, kind="stable").astype(np.int32)
    if np.array_equal(group[perm], in_order):
        return perm
    raise CheckpointError(
        f"{where} does not give each of {in_order[-1] + 1} groups {group_size} inputs, found"
        f" {show(group[:8].tolist())}; the file is damaged, download it again"
    )


def coded_weight(
    name: str,
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    zero: float | None,
    rows: StoredRows,
    rounding: Rounding,
    bias: NDArray[np.float32] | None = None,
    perm: NDArray[np.int32] | None = None,
) -> CodedWeight:
    """A CodedWeight of `rows` with any group_size (as large as k: per row); zero: of all groups, or None.

    perm: stored column j multiplies input perm[j]; `rows` gives stored columns.
    """
    k = shape[1]
    native = native_group(group_size, k, name)
    n_groups = -(-k // native) if native else 1

    def scale_like(values: NDArray[Any], what: str) -> NDArray[Any]:
        if not native:
            return np.ascontiguousarray(to_float32(values)[:, 0])
        if group_size != native and values.shape[1] != n_groups:
            values = np.repeat(values, group_size // native, axis=1)[:, :n_groups]
        return rounding.to_float16(values, what, name)

    def native_rows(begin: int, end: int) -> CodedRows:
        if not 0 <= begin <= end <= shape[0]:
            raise ValueError(f"rows [{begin}, {end}) of a weight of shape {shape}")
        codes, scales, zeros = rows(begin, end)
        points = None if zeros is None else scale_like(zeros, "zero point")
        return CodedRows(np.ascontiguousarray(codes), scale_like(scales, "scale"), points)

    return CodedWeight(shape, bits, native, zero, native_rows, bias, perm)
