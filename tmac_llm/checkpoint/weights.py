"""The forms in which a checkpoint hands out the weight matrix of a linear; knows no file format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tmac_llm.errors import CheckpointError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# The bits of the exponent: all of them set means infinity or NaN.
_EXPONENT = {np.dtype(np.float32): 0x7F800000, np.dtype(np.float16): 0x7C00, BFLOAT16: 0x7F80}
_SCAN_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """Float weights of shape (m, k) = (out_features, in_features).

    `rows(begin, end)` reads rows as a new (end - begin, k) array of `dtype`: float32, float16 or
    ml_dtypes.bfloat16, as the file has them. It raises CheckpointError for NaN and infinity.
    `bias` is float32 (m,) or None. `stored_bits`: where the file has codes of which these are the values, the bits
    that keep them well; None where it has floats.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    rows: Callable[[int, int], NDArray[Any]]
    bias: NDArray[np.float32] | None = None
    stored_bits: int | None = None


@dataclass(frozen=True, slots=True)
class TernaryWeight:
    """Weights of shape (m, k) that are ternary times a scale: W[r, c] = rows[r, c] * scales[r].

    `rows(begin, end)` gives a new int8 array of -1, 0, 1; `scales` is float32 (m,), always a factor.
    """

    shape: tuple[int, int]
    rows: Callable[[int, int], NDArray[np.int8]]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class CodedRows:
    """Some rows of a CodedWeight.

    codes: uint8 (n, k). scales, and zeros where each group has its own: float16 (n, ceil(k / group_size)), or
    float32 (n,) where group_size is 0. power: the sum of squares of the weights in the file, and error: of their
    differences to these; both 0 where there is none.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    zeros: NDArray[Any] | None
    power: float = 0.0
    error: float = 0.0

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def size(self) -> int:
        return self.codes.size


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """Weights of shape (m, k) quantised in groups along k: W[r, perm[j]] = (code[r, j] - zero) * scale.

    group_size: 32, 64 or 128 columns, or 0: one group per row. zero: the zero point of all groups, None where
    each has its own. `rows(begin, end)` reads rows. `perm`: int32 (k,), None for the identity.
    """

    shape: tuple[int, int]
    bits: int
    group_size: int
    zero: float | None
    rows: Callable[[int, int], CodedRows]
    bias: NDArray[np.float32] | None = None
    perm: NDArray[np.int32] | None = None


Weight = DenseWeight | TernaryWeight | CodedWeight


class Encoding(Protocol):
    """How one checkpoint stores its linears."""

    # Whether embedding and output head may be codes too.
    quantised_tables: bool

    @property
    def description(self) -> str:
        """What was found; valid once every linear was checked."""

    def check(self, name: str, shape: tuple[int, int]) -> list[str]:
        """Check the header entries of the linear `name`; the names of its tensors. Raises CheckpointError."""

    def linear(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> Weight:
        """The weights of a linear that `check` accepted."""


def row_blocks(shape: tuple[int, int], elements: int = _SCAN_ELEMENTS) -> Iterator[tuple[int, int]]:
    """[begin, end) row ranges of at most `elements` elements (at least one row) that cover a matrix."""
    step = max(1, elements // max(shape[1], 1))
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """float32 values of a float32, float16 or bfloat16 array, exactly."""
    if array.dtype == BFLOAT16:  # the upper half of a float32; several times faster than the ml_dtypes cast
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def check_finite(array: NDArray[Any], where: str, first_row: int = 0) -> None:
    """Raise CheckpointError, naming the first row concerned, when `array` holds NaN or infinity."""
    mask = _EXPONENT[array.dtype]
    bits: NDArray[Any] = array.reshape(-1).view(np.uint32 if array.itemsize == 4 else np.uint16)
    for begin in range(0, bits.size, 1 << 16):  # blocks that stay in the cache
        exponents = bits[begin : begin + (1 << 16)] & mask
        if exponents.max(initial=0) == mask:
            element = begin + int(np.argmax(exponents == mask))
            value = float(array.reshape(-1)[element])
            row = first_row + element // max(array.size // max(len(array), 1), 1)
            raise CheckpointError(
                f"{where} has a {value} in row {row}; the weights are broken, download them again"
            )
