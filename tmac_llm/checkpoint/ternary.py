"""Float matrices whose values are ternary times a scale per row (TriLM, dequantised BitNet)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.dense import DenseEncoding, dense_weight
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.weights import TernaryWeight, Weight, row_blocks, to_float32

_PROBE_ROWS = 4
_MIN_COLUMNS = 16  # fewer columns could look ternary by chance
# TriLM has one scale per model-parallel shard: column blocks of o_proj and down_proj.
_COLUMN_BLOCKS = (2, 3, 4, 6, 8)


class DenseTernary(DenseEncoding):
    """Every linear is a float `.weight`; those with one magnitude per row become TernaryWeight, exactly.

    A matrix with several magnitudes per row (scales per column block) has no such form: it stays dense, and
    `notes` says so.
    """

    def __init__(self, files: TensorFiles, dtype: str, notes: list[str]) -> None:
        super().__init__(files, dtype)
        self._notes = notes
        self.description += " holding ternary values"

    def linear(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> Weight:
        weight = dense_weight(self._files, f"{name}.weight", bias)
        scales = np.empty(shape[0], np.float32)
        for begin, end in row_blocks(shape):
            block = to_float32(weight.rows(begin, end))
            if _blocks_of(block) != 1:
                self._note_dense(name)
                return weight
            np.abs(block).max(axis=1, out=scales[begin:end])

        def rows(begin: int, end: int) -> NDArray[np.int8]:
            return np.sign(to_float32(weight.rows(begin, end))).astype(np.int8)

        return TernaryWeight(shape, rows, scales, bias)

    def _note_dense(self, name: str) -> None:
        """Once for the whole model: TriLM has two such matrices per layer."""
        if not any("one scale per row" in note for note in self._notes):
            self._notes.append(
                f"{name}, maybe not alone, is not ternary with one scale per row: read as float"
            )


def looks_ternary(files: TensorFiles, linears: Iterable[str]) -> bool:
    """Whether the first rows of every linear have one magnitude per row or column block, and none is zero."""
    for name in linears:
        rows = files.info(f"{name}.weight").shape[0]
        block = to_float32(files.read(f"{name}.weight", 0, min(rows, _PROBE_ROWS)))
        if not block.any() or _blocks_of(block) is None:
            return False
    return True


def _blocks_of(block: NDArray[np.float32]) -> int | None:
    """The smallest number of column blocks in which each row has one magnitude (or zero), or None."""
    n, k = block.shape
    magnitude = np.abs(block)
    for count in (1, *_COLUMN_BLOCKS):
        if k % count or k // count < _MIN_COLUMNS:
            continue
        parts = magnitude.reshape(n, count, k // count)
        if ((parts == 0) | (parts == parts.max(axis=2, keepdims=True))).all():
            return count
    return None
