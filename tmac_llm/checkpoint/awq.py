"""AWQ linears of 4 bits, versions gemm and gemv (AutoAWQ): packed codes exactly as they are stored.

W[n, k] = scales[g, n] * (code - zero), g = k // group_size; zero points are stored as they are. K inputs, N
outputs, G = K / group_size:

    gemm   qweight I32 (K, N / 8), qzeros I32 (G, N / 8), packed across N:
           bits of a word   31:28 27:24 23:20 19:16 15:12 11:8  7:4   3:0
           column 8 c +       7     5     3     1     6     4     2     0
           scales (G, N)
    gemv   qweight I32 (N, K / 8), qzeros I32 (N, Z), in natural order along K and G, scales (N, 8 Z);
           Z is G / 8 rounded up, to 2 words for groups of 64 and 4 for groups of 32
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.coded import CodedEncoding, coded_weight
from tmac_llm.checkpoint.dense import check_dtype, check_float, check_shape
from tmac_llm.checkpoint.gptq import group_size_of
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.unpack import transposed, unpack, unpack_awq
from tmac_llm.checkpoint.weights import CodedWeight
from tmac_llm.errors import CheckpointError
from tmac_llm.model.fields import Fields

BITS = 4
_VERSIONS = ("gemm", "gemv")


class Awq(CodedEncoding):
    """group_size None: the shapes say it; 0: one group per row. gemv: rows are packed along K."""

    def __init__(
        self, files: TensorFiles, notes: list[str], group_size: int | None, gemv: bool, label: str
    ) -> None:
        super().__init__(files, notes)
        self._said, self._gemv, self._label = group_size, gemv, label
        self._groups: dict[str, int] = {}

    @property
    def description(self) -> str:
        groups = "/".join(str(g) for g in sorted(set(self._groups.values())))
        return f"{self._label}, {BITS} bits, groups of {groups}"

    def _check_codes(self, name: str, shape: tuple[int, int]) -> list[str]:
        (n, k), files = shape, self._files
        qweight, qzeros, scales = (f"{name}.{part}" for part in ("qweight", "qzeros", "scales"))
        if (k if self._gemv else n) % 8:
            raise CheckpointError(f"{name}: {n} x {k} weights cannot be packed by eights as AWQ does")
        if scales not in files:
            raise CheckpointError(f"tensor {scales} is missing; download it again")
        n_groups = (files.info(scales).shape or (0,))[0]
        group_size = self._said or k if self._said is not None else k // max(n_groups, 1) or k
        n_groups = -(-k // group_size)
        if self._gemv:
            multiple = {32: 4, 64: 2}.get(group_size, 1)
            n_zeros = -(-n_groups // (8 * multiple)) * multiple
            shapes = ((n, k // 8), (n, n_zeros), (n, 8 * n_zeros))
        else:
            shapes = ((k, n // 8), (n_groups, n // 8), (n_groups, n))
        for tensor, expected in zip((qweight, qzeros), shapes[:2], strict=True):
            check_shape(files, tensor, expected)
            check_dtype(files, tensor, ("I32",))
        check_float(files, scales, shapes[2])
        self._groups[name] = group_size
        return [qweight, qzeros, scales]

    def _codes(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> CodedWeight:
        rows = self._gemv_rows(name, shape[1]) if self._gemv else self._gemm_rows(name)
        return coded_weight(name, shape, BITS, self._groups[name], None, rows, self._rounding, bias)

    def _gemm_rows(self, name: str) -> Any:
        def read() -> tuple[Any, ...]:
            zeros = unpack_awq(transposed(self._words(f"{name}.qzeros")))
            return self._words(f"{name}.qweight"), self._floats(f"{name}.scales"), zeros

        def rows(begin: int, end: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
            words, scales, zeros = self._once(name, read)
            first = begin // 8
            codes = unpack_awq(transposed(words[:, first : -(-end // 8)]))
            return codes[begin - 8 * first : end - 8 * first], scales[:, begin:end].T, zeros[begin:end]

        return rows

    def _gemv_rows(self, name: str, k: int) -> Any:
        n_groups = -(-k // self._groups[name])

        def rows(begin: int, end: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
            codes = unpack(self._words(f"{name}.qweight", begin, end), BITS, k)
            zeros = unpack(self._words(f"{name}.qzeros", begin, end), BITS, n_groups)
            return codes, self._floats(f"{name}.scales", begin, end)[:, :n_groups], zeros

        return rows


def awq(quantization: Mapping[str, Any], where: str, files: TensorFiles, notes: list[str]) -> Awq:
    """The encoding of `quant_method: "awq"`. Raises CheckpointError, UnsupportedError."""
    fields = Fields(quantization, where)
    width = "bits" if fields.has("bits") else "w_bit"
    if fields.integer(width, 16) != BITS:
        raise fields.unsupported(width, "4")
    version = "gemm"
    if fields.has("version"):
        choice = Fields({**quantization, "version": str(quantization["version"]).lower()}, where)
        if choice.d["version"] not in _VERSIONS:
            raise choice.unsupported(
                "version",
                f"{', '.join(_VERSIONS)}; save it again as one of them, or convert the unquantised original",
            )
        version = choice.choice("version", _VERSIONS)
    group_size = group_size_of(fields, "group_size" if fields.has("group_size") else "q_group_size")
    said = f"version {version}" if fields.has("version") else "no version: gemm"
    return Awq(files, notes, group_size, version == "gemv", f"AWQ ({said})")
