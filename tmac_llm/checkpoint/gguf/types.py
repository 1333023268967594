"""The tensor types of GGUF: how many bytes they take, and how many bits ours should have; no decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockType:
    """A type of ggml: blocks of `n_values` consecutive values of a row take `n_bytes` bytes.

    bits: of a stored code, 0 for plain numbers. trailer: bytes after the last block; then blocks follow each other over
    the ends of rows.
    """

    name: str
    n_values: int
    n_bytes: int
    bits: int = 0
    trailer: int = 0

    @property
    def rows_are_whole(self) -> bool:
        """Whether every row is a number of whole blocks."""
        return not self.trailer

    def n_bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape."""
        return -(-math.prod(shape) // self.n_values) * self.n_bytes + self.trailer


# Sizes as in ggml's type traits (ggml.c), by the number that files use; I2_S as published files of bitnet.cpp have it.
TYPES = {
    number: BlockType(*fields)  # type: ignore[arg-type]
    for number, fields in {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18, 4),
        3: ("Q4_1", 32, 20, 4),
        6: ("Q5_0", 32, 22, 5),
        7: ("Q5_1", 32, 24, 5),
        8: ("Q8_0", 32, 34, 8),
        9: ("Q8_1", 32, 40, 8),
        10: ("Q2_K", 256, 84, 2),
        11: ("Q3_K", 256, 110, 3),
        12: ("Q4_K", 256, 144, 4),
        13: ("Q5_K", 256, 176, 5),
        14: ("Q6_K", 256, 210, 6),
        15: ("Q8_K", 256, 292, 8),
        16: ("IQ2_XXS", 256, 66, 2),
        17: ("IQ2_XS", 256, 74, 2),
        18: ("IQ3_XXS", 256, 98, 3),
        19: ("IQ1_S", 256, 50, 1),
        20: ("IQ4_NL", 32, 18, 4),
        21: ("IQ3_S", 256, 110, 3),
        22: ("IQ2_S", 256, 82, 2),
        23: ("IQ4_XS", 256, 136, 4),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56, 1),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54, 2),
        35: ("TQ2_0", 256, 66, 2),
        36: ("I2_S", 128, 32, 2, 32),
        39: ("MXFP4", 32, 17, 4),
    }.items()
}
