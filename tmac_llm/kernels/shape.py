"""What a packed matrix is; knows neither its bytes nor its values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tmac_llm._native import ffi, lib
from tmac_llm.errors import KernelError

Encoding = Literal["planes", "ternary"]
_ENCODINGS: dict[str, int] = {"planes": lib.TMAC_PLANES, "ternary": lib.TMAC_TERNARY}


@dataclass(frozen=True)
class MatrixShape:
    """W[r, c] = (codes[r, c] - zeros[r, group(c)]) * scales[r, group(c)].

    m, k: rows out, columns in. bits: 1 .. 8. group_size: 32, 64 or 128 columns share a float16 scale; 0: one
    float32 scale per row. has_zeros: a zero point is stored beside each scale; otherwise `zero`, in code
    units, holds for all. encoding: "planes", one bit plane per bit of a code; "ternary", five codes 0, 1, 2 in
    a byte, with bits 2, group_size 0, no zeros and zero 1. Raises KernelError for an impossible shape.
    """

    m: int
    k: int
    bits: int
    group_size: int
    has_zeros: bool
    zero: float
    encoding: Encoding = "planes"

    def __post_init__(self) -> None:
        if self.encoding not in _ENCODINGS:
            raise KernelError(f"{self}: encoding: expected {' or '.join(_ENCODINGS)}")
        if not (0 < self.m < 2**31 and 0 < self.k < 2**31) or self._packed_size() < 0:
            raise KernelError(
                f"{self}: expected m >= 1, k 1..{lib.TMAC_MAX_COLUMNS}, bits 1..{lib.TMAC_MAX_BITS}, "
                "group_size 0, 32, 64 or 128, and a finite zero; ternary: bits 2, group_size 0, zero 1"
            )

    @cached_property
    def c(self) -> Any:
        """The C struct, tmac_shape *."""
        encoding = _ENCODINGS[self.encoding]
        return ffi.new(
            "tmac_shape *",
            (self.m, self.k, self.bits, self.group_size, self.has_zeros, self.zero, encoding),
        )

    @cached_property
    def packed_size(self) -> int:
        """Bytes of the tiles."""
        return self._packed_size()

    @property
    def n_groups(self) -> int:
        """Scales per row."""
        return -(-self.k // self.group_size) if self.group_size else 1

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """Shape of scales and zeros: float16 (m, n_groups), or float32 (m,) where group_size is 0."""
        return (self.m, self.n_groups) if self.group_size else (self.m,)

    def _packed_size(self) -> int:
        try:
            return int(lib.tmac_packed_size(self.c))
        except OverflowError:
            return -1
