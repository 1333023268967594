"""The weights of GGUF tensors: codes as they are stored where our groups express them, floats otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.coded import Rounding, coded_weight
from tmac_llm.checkpoint.dense import check_shape
from tmac_llm.checkpoint.gguf.blocks import (
    GROUPED,
    TERNARY,
    i2_s_codes,
    ternary_codes,
    ternary_scales,
    to_zero_points,
)
from tmac_llm.checkpoint.gguf.tensors import FLOATS, GgufTensors
from tmac_llm.checkpoint.gguf.types import TYPES
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.names import EMBEDDING, LM_HEAD
from tmac_llm.checkpoint.weights import (
    CodedRows,
    CodedWeight,
    DenseWeight,
    Encoding,
    TernaryWeight,
    Weight,
    check_finite,
    row_blocks,
    to_float32,
)
from tmac_llm.errors import CheckpointError, UnsupportedError

_BY_NAME = {block.name: block for block in TYPES.values()}
GROUP_SIZE = 32
# Codes of other types are given two bits more: their rounding adds about a sixteenth of the noise that is there.
EXTRA_BITS = 2
MAX_BITS = 8
INSTALL = "pip install 'tmac-llm[gguf]'"


class GgufEncoding:
    """Each tensor has a type of its own; `floats` takes those that are plain numbers."""

    quantised_tables = True

    def __init__(
        self, files: TensorFiles, parts: list[GgufTensors], floats: Encoding, notes: list[str]
    ) -> None:
        self._files, self._floats, self._notes = files, floats, notes
        self._parts = {name: part for part in parts for name in part.tensors}
        self._types: Counter[str] = Counter()

    @property
    def description(self) -> str:
        counted = ", ".join(f"{n} of {kind}" for kind, n in self._types.most_common() if n)
        kinds = [
            f"{what} {self._files.info(f'{name}.weight').dtype}"
            for what, name in (("embedding", EMBEDDING), ("output head", LM_HEAD))
            if f"{name}.weight" in self._files
        ]
        return f"GGUF, linears: {counted}; {', '.join(kinds)}"

    def check(self, name: str, shape: tuple[int, int]) -> list[str]:
        tensor = f"{name}.weight"
        check_shape(self._files, tensor, shape)
        kind = self._files.info(tensor).dtype
        self._types[kind] += name not in (EMBEDDING, LM_HEAD)
        scale = [f"{name}.scale"] if f"{name}.scale" in self._files else []
        if scale:
            check_shape(self._files, scale[0], (1,))
        if scale and kind not in (*TERNARY, "I2_S"):
            raise UnsupportedError(
                f"{self._files.file_name(tensor)}: {scale[0]} beside weights of {kind} is not supported; supported:"
                " beside ternary ones"
            )
        if kind in FLOATS:
            return [*self._floats.check(name, shape), *scale]
        if kind not in (*GROUPED, *TERNARY, "I2_S"):
            _dequantise(kind)  # the package is asked for before any work
        return [tensor, *scale]

    def linear(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> Weight:
        kind = self._files.info(f"{name}.weight").dtype
        if kind in FLOATS:
            return self._floats.linear(name, shape, bias)
        if kind in GROUPED:
            return self._grouped(name, shape, kind, bias)
        if kind == "I2_S":
            return self._i2_s(name, shape, bias)
        if kind in TERNARY:
            return self._ternary(name, shape, kind, bias)
        return self._dequantised(name, shape, kind, bias)

    def _raw(self, name: str, begin: int, end: int) -> NDArray[np.uint8]:
        return self._parts[f"{name}.weight"].raw(f"{name}.weight", begin, end)

    def _where(self, name: str) -> str:
        return f"{self._files.file_name(f'{name}.weight')}: tensor {name}.weight"

    def _grouped(
        self, name: str, shape: tuple[int, int], kind: str, bias: NDArray[np.float32] | None
    ) -> CodedWeight:
        """Codes as stored; float16 scales too, but for Q4_K and Q5_K, and zero points are rounded to float16."""
        decode, zero = GROUPED[kind]
        if zero is None:
            self._say(
                f"{kind} has minima: kept codes, zero points"
                f"{' and scales' if kind.endswith('_K') else ''} rounded to float16"
            )

        def rows(begin: int, end: int) -> CodedRows:
            grouped = decode(self._raw(name, begin, end))
            for values in (grouped.scales, grouped.minima):
                if values is not None:
                    check_finite(values, self._where(name), begin)
            if grouped.minima is None:
                return CodedRows(grouped.codes, grouped.scales.astype(np.float16), None)
            codes, scales, zeros, error = to_zero_points(grouped)
            check_finite(scales, self._where(name), begin)
            exact = codes_power(grouped.codes, grouped.scales, grouped.minima)
            return CodedRows(codes, scales, zeros, exact, float(np.vdot(error, error)))

        return CodedWeight(shape, _BY_NAME[kind].bits, GROUP_SIZE, zero, rows, bias)

    def _ternary(
        self, name: str, shape: tuple[int, int], kind: str, bias: NDArray[np.float32] | None
    ) -> TernaryWeight | CodedWeight:
        """One scale per row where all its blocks have the same, as BitNet's; else codes in groups of 128."""
        factor = self._factor(name)
        scales = np.empty((shape[0], shape[1] // 256), np.float16)
        for begin, end in row_blocks(shape):
            raw = self._raw(name, begin, end)
            scales[begin:end] = ternary_scales(kind, raw)
            check_finite(scales[begin:end], self._where(name), begin)
            if (scales[begin:end] == 0).any():  # a block of zeros: any scale will do, and its row's is best
                blank = (ternary_codes(kind, raw).reshape(end - begin, -1, 256) == 1).all(axis=2)
                common = np.abs(scales[begin:end]).max(axis=1, keepdims=True)
                scales[begin:end] = np.where(blank, common, scales[begin:end])

        def codes_of(begin: int, end: int) -> NDArray[np.uint8]:
            codes = ternary_codes(kind, self._raw(name, begin, end))
            return self._checked(codes, name, begin)

        if (scales == scales[:, :1]).all():
            per_row = scales[:, 0].astype(np.float32) * factor
            return TernaryWeight(
                shape, lambda begin, end: codes_of(begin, end).view(np.int8) - np.int8(1), per_row, bias
            )
        if factor != 1:
            raise UnsupportedError(
                f"{self._where(name)}: blocks of different scales with a scale of the tensor are not supported"
            )
        self._say(f"{kind} with scales that differ within a row: kept, in groups of 128")
        return coded_weight(
            name,
            shape,
            2,
            256,
            1.0,
            lambda begin, end: (codes_of(begin, end), scales[begin:end], None),
            Rounding(self._notes),
            bias,
        )

    def _i2_s(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> TernaryWeight:
        part, tensor, (m, k) = self._parts[f"{name}.weight"], f"{name}.weight", shape
        end_of_codes = m * k // 4
        scale = float(part.span(tensor, end_of_codes, end_of_codes + 4).view("<f4")[0]) * self._factor(name)
        if not (0 < abs(scale) < np.finfo(np.float32).max):
            raise CheckpointError(f"{self._where(name)} has the scale {scale}, expected a finite number")
        self._say("I2_S: read in the order of x86 and of published files (other builds wrote others)")

        def rows(begin: int, end: int) -> NDArray[np.int8]:
            file_rows = part.file_rows(tensor, begin, end)
            first, last = int(file_rows.min()) * k, (int(file_rows.max()) + 1) * k
            start = first // 128 * 32
            codes = i2_s_codes(part.span(tensor, start, -(-last // 128) * 32))
            values = codes[first - start * 4 : last - start * 4].reshape(-1, k)[file_rows - first // k]
            return self._checked(values, name, begin).view(np.int8) - np.int8(1)

        return TernaryWeight(shape, rows, np.full(m, scale, np.float32), bias)

    def _dequantised(
        self, name: str, shape: tuple[int, int], kind: str, bias: NDArray[np.float32] | None
    ) -> DenseWeight:
        dequantise, bits = _dequantise(kind), min(_BY_NAME[kind].bits + EXTRA_BITS, MAX_BITS)
        self._say(f"{kind} has no exact form here: dequantised, and quantised again with {bits} bits")

        def rows(begin: int, end: int) -> NDArray[np.float32]:
            values = dequantise(self._raw(name, begin, end))
            check_finite(values, self._where(name), begin)
            return values

        return DenseWeight(shape, np.dtype(np.float32), rows, bias, bits)

    def _checked(self, codes: NDArray[np.uint8], name: str, begin: int) -> NDArray[np.uint8]:
        if codes.max(initial=0) == 3:
            row = begin + int(np.argmax((codes == 3).any(axis=1)))
            raise CheckpointError(
                f"{self._where(name)} has the ternary code 3 in row {row}, expected 0, 1 or 2; the file is damaged or"
                " in the order of another machine"
            )
        return codes

    def _factor(self, name: str) -> float:
        """The scale that old files keep in a tensor of its own, beside ternary weights."""
        if f"{name}.scale" not in self._files:
            return 1.0
        return float(to_float32(self._files.read(f"{name}.scale"))[0])

    def _say(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)


def codes_power(codes: NDArray[np.uint8], scales: NDArray[np.float32], minima: NDArray[np.float32]) -> float:
    """The sum of squares of scale * code + minimum."""
    values = codes.reshape(*scales.shape, -1) * scales[..., None] + minima[..., None]
    return float(np.vdot(values, values))


def _dequantise(kind: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The function of the `gguf` package that gives float32 (n, k) from uint8 (n, bytes) rows."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise UnsupportedError(
            f"tensors of type {kind} need the gguf package to be read; install it with: {INSTALL}"
        ) from None
    try:
        number = GGMLQuantizationType[kind]
        quants.dequantize(np.zeros((1, _BY_NAME[kind].n_bytes), np.uint8), number)
    except (NotImplementedError, KeyError):
        raise UnsupportedError(
            f"tensors of type {kind} are not supported, the gguf package cannot read them; take a file of another type,"
            " such as Q4_0 or Q8_0"
        ) from None

    def dequantise(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = quants.dequantize(rows, number)
        return values

    return dequantise
