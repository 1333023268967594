"""BitDistiller masters: float weights trained for asymmetric rounding in groups, rounded on reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.coded import Rounding, coded_weight
from tmac_llm.checkpoint.dense import check_float, dense_weight
from tmac_llm.checkpoint.gptq import group_size_of
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.weights import CodedWeight, to_float32
from tmac_llm.model.fields import Fields


class BitDistiller:
    """For each group of a row (BitDistiller, arXiv 2402.10631, asymmetric integers), half to even:

    scale = max(max(w) - min(w), 1e-5) / (2^bits - 1), as float16
    zero  = clamp(-round(min(w) / scale), 0, 2^bits - 1)
    code  = clamp(round(w / scale) + zero, 0, 2^bits - 1)
    """

    quantised_tables = False

    def __init__(self, files: TensorFiles, bits: int, group_size: int) -> None:
        self._files, self._bits, self._group_size = files, bits, group_size
        groups = group_size or "a row"
        self.description = f"BitDistiller, {bits} bits, groups of {groups}, masters rounded on reading"

    def check(self, name: str, shape: tuple[int, int]) -> list[str]:
        check_float(self._files, f"{name}.weight", shape)
        return [f"{name}.weight"]

    def linear(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> CodedWeight:
        masters, k = dense_weight(self._files, f"{name}.weight"), shape[1]
        group_size, top = self._group_size or k, (1 << self._bits) - 1
        starts = np.arange(0, k, group_size)
        lengths = np.diff(starts, append=k)

        def rows(begin: int, end: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
            values = to_float32(masters.rows(begin, end))
            low = np.minimum.reduceat(values, starts, axis=1)
            extent = np.maximum.reduceat(values, starts, axis=1) - low
            scales = (np.maximum(extent, np.float32(1e-5)) / np.float32(top)).astype(np.float16)
            steps = scales.astype(np.float32)
            zeros = np.clip(-np.rint(low / steps), 0, top)
            codes = np.rint(values / np.repeat(steps, lengths, axis=1)) + np.repeat(zeros, lengths, axis=1)
            return np.clip(codes, 0, top).astype(np.uint8), scales, zeros.astype(np.float16)

        return coded_weight(name, shape, self._bits, group_size, None, rows, Rounding([]), bias)


def bitdistiller(quantization: Mapping[str, Any], files: TensorFiles) -> BitDistiller:
    """The encoding of `quant_method: "bitdistiller"`, which only says bits and group_size."""
    fields = Fields(quantization, "quantization_config.")
    return BitDistiller(files, fields.integer("bits", 8), group_size_of(fields))
