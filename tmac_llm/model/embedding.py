"""Rows of the embedding, read from packed tiles or from floats; knows neither tokens' meaning nor files."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tmac_llm import kernels
from tmac_llm.kernels import MatrixShape

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.integer[Any]]


class Embedding(Protocol):
    """The vectors of token ids."""

    def __call__(self, token_ids: Ids, out: Floats) -> None:
        """out, float32 (n, hidden_size), of token_ids (n,), each 0 .. vocab_size - 1."""
        ...


class PackedEmbedding:
    """tiles: uint8 (shape.packed_size,), kept as it is: a mapped file costs no memory of its own."""

    def __init__(self, shape: MatrixShape, tiles: npt.NDArray[np.uint8]) -> None:
        self._shape, self._tiles = shape, tiles

    def __call__(self, token_ids: Ids, out: Floats) -> None:
        kernels.dequantize_rows(self._shape, self._tiles, token_ids.astype(np.int32), out)


class DenseEmbedding:
    """weight: (vocab_size, hidden_size) of float32, float16 or bfloat16, kept as it is."""

    def __init__(self, weight: npt.NDArray[Any]) -> None:
        self._weight = weight

    def __call__(self, token_ids: Ids, out: Floats) -> None:
        out[...] = self._weight[token_ids]
