"""BitNet-b1.58 linears: packed ternary values with a scale, and float masters ternarised on reading."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.dense import check_dtype, check_float, check_shape, dense_weight
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.weights import TernaryWeight, row_blocks, to_float32
from tmac_llm.errors import CheckpointError


class PackedBitnet:
    """Packed offline: uint8 `.weight` (R, k), R = ceil(m / 4), and a `.weight_scale` of one element.

    Four rows that lie R apart share a byte; codes 0, 1, 2 are -1, 0, 1:

        byte P[r, c]:  bits 7:6        5:4        3:2        1:0
                       W[r+3R, c]+1   W[r+2R, c]+1   W[r+R, c]+1   W[r, c]+1

    When m is not a multiple of 4 the last rows of the last quarter are padding. Transformers' AutoBitLinear
    multiplies by weight_scale, its BitLinear divides.
    """

    quantised_tables = False

    def __init__(self, files: TensorFiles, multiply: bool) -> None:
        self._files = files
        self._multiply = multiply
        self.description = f"bitnet offline, {'multiplying' if multiply else 'dividing'} scale"

    def check(self, name: str, shape: tuple[int, int]) -> list[str]:
        weight, scale = f"{name}.weight", f"{name}.weight_scale"
        check_shape(self._files, weight, (-(-shape[0] // 4), shape[1]))
        check_dtype(self._files, weight, ("U8",))
        one = () if scale in self._files and self._files.info(scale).shape == () else (1,)
        check_float(self._files, scale, one)
        return [weight, scale]

    def linear(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> TernaryWeight:
        m, k = shape
        quarter = -(-m // 4)

        def rows(begin: int, end: int) -> NDArray[np.int8]:
            if not 0 <= begin <= end <= m:
                raise ValueError(f"rows [{begin}, {end}) of a weight of shape {shape}")
            out = np.empty((end - begin, k), np.int8)
            for i in range(4):
                first, last = max(begin, i * quarter), min(end, (i + 1) * quarter)
                if first < last:
                    packed = self._files.read(f"{name}.weight", first - i * quarter, last - i * quarter)
                    out[first - begin : last - begin] = self._decode(packed, i, name, first)
            return out

        return TernaryWeight(shape, rows, np.full(m, self._scale(name), np.float32), bias)

    def _decode(self, packed: NDArray[np.uint8], quarter: int, name: str, first_row: int) -> NDArray[np.int8]:
        codes = (packed >> np.uint8(2 * quarter)) & np.uint8(3)
        if codes.max(initial=0) == 3:
            row = first_row + int(np.argmax((codes == 3).any(axis=1)))
            raise CheckpointError(
                f"{self._files.file_name(f'{name}.weight')}: tensor {name}.weight has the ternary code 3"
                f" in row {row}, expected 0, 1 or 2; the file is damaged, download it again"
            )
        return codes.view(np.int8) - np.int8(1)

    def _scale(self, name: str) -> float:
        stored = float(to_float32(self._files.read(f"{name}.weight_scale")).reshape(())[()])
        scale = stored if self._multiply else 1 / stored if stored else math.inf
        if not (0 < scale < math.inf and np.float32(scale) > 0 and np.isfinite(np.float32(scale))):
            raise CheckpointError(
                f"{self._files.file_name(f'{name}.weight_scale')}: tensor {name}.weight_scale is {stored},"
                " expected a positive finite number; the file is damaged, download it again"
            )
        return scale


class OnlineBitnet:
    """Float masters `.weight` (m, k), ternarised by their mean magnitude (absmean, BitNet b1.58, section 2):

        scale = max(mean(|W|), 1e-5) over the whole matrix;  t = clamp(round_half_even(W / scale), -1, 1)

    The mean is accumulated in double, the rest is float32 as in transformers' AutoBitLinear.
    """

    quantised_tables = False

    def __init__(self, files: TensorFiles, description: str) -> None:
        self._files = files
        self.description = description

    def check(self, name: str, shape: tuple[int, int]) -> list[str]:
        check_float(self._files, f"{name}.weight", shape)
        return [f"{name}.weight"]

    def linear(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> TernaryWeight:
        masters = dense_weight(self._files, f"{name}.weight")
        total = 0.0
        for begin, end in row_blocks(shape):
            total += float(np.abs(to_float32(masters.rows(begin, end))).sum(dtype=np.float64))
        scale = np.float32(max(total / (shape[0] * shape[1]), 1e-5))
        if not np.isfinite(scale):
            raise CheckpointError(f"tensor {name}.weight: the mean magnitude {total:g} overflows float32")
        inverse = np.float32(1) / scale

        def rows(begin: int, end: int) -> NDArray[np.int8]:
            scaled = to_float32(masters.rows(begin, end)) * inverse
            return np.clip(np.rint(scaled, out=scaled), -1, 1, out=scaled).astype(np.int8)

        return TernaryWeight(shape, rows, np.full(shape[0], scale, np.float32), bias)
