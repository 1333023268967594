"""The embedding table, packed or float: rows by token id; knows no file."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tmac_llm import kernels
from tmac_llm.kernels import MatrixShape

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Embedding(Protocol):
    """What the decoder needs of an embedding table (vocab_size, hidden_size)."""

    def __call__(self, ids: Ids, out: Floats) -> Floats:
        """ids: (n_tokens,), all below vocab_size; out: float32 (n_tokens, hidden_size). Returns out."""


class PackedEmbedding:
    """Rows of packed tiles, which may be a mapped file: only the rows asked for are read."""

    def __init__(self, shape: MatrixShape, tiles: npt.NDArray[np.uint8]) -> None:
        self._shape, self._tiles = shape, tiles

    def __call__(self, ids: Ids, out: Floats) -> Floats:
        """The rows of `ids`."""
        return kernels.dequantize_rows(self._shape, self._tiles, ids.astype(np.int32), out=out)


class DenseEmbedding:
    """Rows of a float matrix of any float type."""

    def __init__(self, weight: npt.NDArray[Any]) -> None:
        self._weight = weight

    def __call__(self, ids: Ids, out: Floats) -> Floats:
        """The rows of `ids`."""
        out[:] = self._weight[ids]
        return out
