"""HQQ linears: codes with float zero points, exactly as stored where groups lie along the inputs (axis 1).

W = (code - zero) * scale. The (N, K) weights are seen as (R, group_size) grouped rows, flat order kept, with
one scale and zero each (axis 1), or as (group_size, R) with one for each column (axis 0). Packing splits the
grouped rows into as many parts of P rows as a word holds codes, the first part in the highest bits:

    bits   W_q                                     word (p, c) holds the codes (p + i P, c), i = 0, 1, ...
    8      U8  (P, C)
    4      U8  (P, C)    i=0 7:4, i=1 3:0
    3      I32 (P, C)    i=0 29:27, ..., i=9 2:0   rows are padded to ten parts
    2      U8  (P, C)    i=0 7:6, ..., i=3 1:0
    1      U8  (P, C)    i=0 bit 7, ..., i=7 bit 0

Metadata are tensors too, so that a file describes itself. Source: hqq 0.2, core/quantize.py and bitpack.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.coded import CodedEncoding, coded_weight
from tmac_llm.checkpoint.dense import check_float
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.weights import DenseWeight, Weight, to_float32
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import show

_FIELDS_PER_WORD = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}
_METADATA = (
    "shape",
    "nbits",
    "group_size",
    "axis",
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
    "quant_scale",
    "quant_zero",
)


@dataclass(frozen=True, slots=True)
class _Layout:
    """bits: of a field. group_size: K for one group per row. n_rows, n_columns: of the grouped matrix."""

    bits: int
    axis: int
    group_size: int
    n_rows: int
    n_columns: int
    as_float: bool

    @property
    def n_packed(self) -> int:
        return -(-self.n_rows // _FIELDS_PER_WORD[self.bits])


class Hqq(CodedEncoding):
    """Each linear is described by its own metadata tensors; `settings` (weight_quant_params) fill gaps."""

    def __init__(self, files: TensorFiles, notes: list[str], settings: Mapping[str, Any]) -> None:
        super().__init__(files, notes)
        self._settings = settings
        self._layouts: dict[str, _Layout] = {}

    @property
    def description(self) -> str:
        layouts = self._layouts.values()
        bits, axes, groups = (
            "/".join(str(v) for v in sorted({getattr(layout, key) for layout in layouts}))
            for key in ("bits", "axis", "group_size")
        )
        return f"HQQ, axis {axes}, {bits} bits, groups of {groups}, float zero points"

    def _check_codes(self, name: str, shape: tuple[int, int]) -> list[str]:
        (n, k), files = shape, self._files
        if f"{name}.W_q" not in files:
            raise CheckpointError(f"tensor {name}.W_q is missing; download it again")
        stored = self._metadata(name, "shape")
        if stored is not None and tuple(np.ravel(stored).tolist()) != shape:
            raise CheckpointError(
                f"{files.file_name(f'{name}.shape')}: tensor {name}.shape is {show(np.ravel(stored).tolist())},"
                f" expected {list(shape)} from config.json; one of the two belongs to another model"
            )
        for key in ("quant_scale", "quant_zero"):
            if self._number(name, key, 0) or f"{name}.{key[6:]}_q" in files:
                raise UnsupportedError(
                    f"{name}: HQQ with quantised {key[6:]}s is not supported; supported: {key[6:]}s in float"
                )
        bits, axis = self._number(name, "nbits"), self._number(name, "axis", 1)
        width = {1.58: 2, 5: 8, 6: 8}.get(bits, bits)
        if width not in _FIELDS_PER_WORD or axis not in (0, 1):
            raise UnsupportedError(
                f"{name}: HQQ with nbits {show(bits)}, axis {show(axis)} is not supported;"
                " supported: 1, 1.58, 2, 3, 4, 5, 6, 8 bits, axis 0 or 1"
            )
        group_size = int(self._number(name, "group_size", -1))
        group_size = (k if axis == 1 else n) if group_size < 1 else group_size
        if n * k % group_size:
            raise CheckpointError(f"{name}: {n} x {k} weights do not divide into groups of {group_size}")
        grouped = (n * k // group_size, group_size)
        layout = _Layout(
            int(width),
            int(axis),
            group_size,
            *(grouped if axis == 1 else grouped[::-1]),
            as_float=bool(self._number(name, "view_as_float", 0)),
        )
        self._check_words(name, layout)
        scales = (grouped[0], 1) if axis == 1 else (1, grouped[0])
        check_float(files, f"{name}.scale", scales)
        check_float(files, f"{name}.zero", scales)
        self._layouts[name] = layout
        known = [f"{name}.{key}" for key in _METADATA]
        return [f"{name}.W_q", f"{name}.scale", f"{name}.zero", *(key for key in known if key in files)]

    def _check_words(self, name: str, layout: _Layout) -> None:
        """Shape and dtype of W_q; view_as_float keeps the bytes under a float dtype."""
        info = self._files.info(f"{name}.W_q")
        word = 4 if layout.bits == 3 else 1
        n_bytes = layout.n_packed * layout.n_columns * word
        dtypes = ("F32", "F16", "BF16") if layout.as_float else (("I32",) if word == 4 else ("U8",))
        shape_fits = len(info.shape) == 2 and (layout.as_float or info.shape[0] == layout.n_packed)
        if info.dtype not in dtypes or not shape_fits or info.end - info.begin != n_bytes:
            raise CheckpointError(
                f"{self._files.file_name(f'{name}.W_q')}: tensor {name}.W_q is {info.dtype} {list(info.shape)},"
                f" expected {' or '.join(dtypes)} of {n_bytes} bytes in {layout.n_packed} rows for"
                f" {layout.bits} bits and groups of {layout.group_size}; the file is damaged, download it again"
            )

    def _metadata(self, name: str, key: str) -> Any:
        return self._files.read(f"{name}.{key}") if f"{name}.{key}" in self._files else None

    def _number(self, name: str, key: str, default: float | None = None) -> float:
        value: Any = self._metadata(name, key)
        if value is None:
            value = self._settings.get(key)
        elif value.size != 1:
            raise CheckpointError(f"tensor {name}.{key} has shape {list(value.shape)}, expected one number")
        else:
            value = value.reshape(())[()].item()
        value = default if value is None else value
        if not isinstance(value, int | float) or value != value:
            raise CheckpointError(f"{name}: HQQ's {key} is {show(value)}, expected a number")
        return round(value, 2)

    def _codes(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> Weight:
        (_, k), layout = shape, self._layouts[name]
        if layout.axis == 0 or k % layout.group_size:
            why = "axis 0" if layout.axis == 0 else "groups that cross rows"
            self._say(
                f"HQQ with {why} has no groups along the inputs: read as float, not kept as codes",
                "read as float",
            )
            return self._dense_weight(name, shape, bias)
        per_row = k // layout.group_size

        def rows(begin: int, end: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
            first, last = begin * per_row, end * per_row
            codes = self._grouped_rows(name, layout, first, last).reshape(end - begin, k)
            scales, zeros = (
                self._floats(f"{name}.{part}", first, last).reshape(end - begin, per_row)
                for part in ("scale", "zero")
            )
            return codes, scales, zeros

        return coded_weight(name, shape, layout.bits, layout.group_size, None, rows, self._rounding, bias)

    def _grouped_rows(self, name: str, layout: _Layout, begin: int, end: int) -> NDArray[np.uint8]:
        """Codes of rows [begin, end) of the grouped matrix, uint8 (end - begin, n_columns)."""
        out = np.empty((end - begin, layout.n_columns), np.uint8)
        n_fields, n_packed = _FIELDS_PER_WORD[layout.bits], layout.n_packed
        for i in range(n_fields):
            first, last = max(begin, i * n_packed), min(end, (i + 1) * n_packed)
            if first >= last:
                continue
            words = self._packed_rows(name, layout, first - i * n_packed, last - i * n_packed)
            field = words >> words.dtype.type(layout.bits * (n_fields - 1 - i))
            mask = words.dtype.type((1 << layout.bits) - 1)
            np.bitwise_and(field, mask, out=out[first - begin : last - begin], casting="unsafe")
        return out

    def _packed_rows(self, name: str, layout: _Layout, begin: int, end: int) -> NDArray[Any]:
        dtype = np.uint32 if layout.bits == 3 else np.uint8
        if not layout.as_float:
            return self._files.read(f"{name}.W_q", begin, end).view(dtype)
        words: NDArray[Any] = self._once(
            name, lambda: self._files.read(f"{name}.W_q").reshape(-1).view(dtype)
        )
        return words.reshape(layout.n_packed, layout.n_columns)[begin:end]

    def _dense_weight(
        self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None
    ) -> DenseWeight:
        """Dequantised float32 rows, for groups that are no part of a row."""
        layout, k = self._layouts[name], shape[1]
        columns = layout.n_columns

        def rows(begin: int, end: int) -> NDArray[np.float32]:
            first, last = begin * k // columns, -(-end * k // columns)
            part = slice(None) if layout.axis == 0 else slice(first, last)
            scales, zeros = (to_float32(self._floats(f"{name}.{key}"))[part] for key in ("scale", "zero"))
            values = (self._grouped_rows(name, layout, first, last) - zeros) * scales
            return values.reshape(-1)[begin * k - first * columns :][: (end - begin) * k].reshape(-1, k)

        return DenseWeight(shape, np.dtype(np.float32), rows, bias)


def hqq(quantization: Mapping[str, Any], files: TensorFiles, notes: list[str]) -> Hqq:
    """The encoding of `quant_method: "hqq"`."""
    config = quantization.get("quant_config")
    settings = config.get("weight_quant_params") if isinstance(config, Mapping) else None
    return Hqq(files, notes, settings if isinstance(settings, Mapping) else {})
