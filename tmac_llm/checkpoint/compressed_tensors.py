"""compressed-tensors linears (llm-compressor, vLLM): pack-quantized and int-quantized weights as stored.

W = (u - zero) * scale with stored code u = q + 2^(bits - 1), N outputs, K inputs, G groups:

    pack-quantized   weight_packed I32 (N, words)   packed along K; before version 0.11 codes of 3, 5, 6, 7 bits
                                                    did not cross words, since then they are one stream
                     weight_scale (N, G)            one group per row: (N, 1); per tensor: (1)
                     weight_shape I64 or I32 (2)    N, K
                     weight_zero_point I32 (words, G), packed along N; absent where symmetric: 2^(bits - 1)
                     weight_g_idx I32 (K)           the group of each input, with activation order
    int-quantized    weight I8 (N, K): q; weight_scale and weight_zero_point (I8) as above
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.coded import CodedEncoding, coded_weight, group_permutation
from tmac_llm.checkpoint.dense import check_dtype, check_float, check_shape
from tmac_llm.checkpoint.gptq import group_size_of
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.unpack import n_words, transposed, unpack
from tmac_llm.checkpoint.weights import CodedWeight
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import Fields, show

PACKED, INTEGER = "pack-quantized", "int-quantized"
_FORMATS = (PACKED, INTEGER, "naive-quantized")
_ORDERS = ("stream", "fields")


@dataclass(frozen=True, slots=True)
class Scheme:
    """One of config_groups. targets: names, "Linear", or "re:" and an expression. group_size 0: per row."""

    targets: tuple[str, ...]
    packed: bool
    bits: int
    group_size: int
    per_tensor: bool = False
    symmetric: bool = True

    def matches(self, name: str) -> bool:
        return any(
            bool(re.match(target[3:], name))
            if target.startswith("re:")
            else target == name or name.endswith(f".{target}")
            for target in self.targets
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    scheme: Scheme
    order: str
    zero_order: str  # "" where symmetric, "plain" for one int8 per group

    @property
    def text(self) -> str:
        bits = f"{self.scheme.bits} bits{' (no codes across words)' if self.order == 'fields' else ''}"
        zeros = "zero points per group" if self.zero_order else "symmetric"
        return f"{bits}, groups of {self.scheme.group_size or 'a row'}, {zeros}"


class CompressedTensors(CodedEncoding):
    """Every linear follows the first of `schemes` that names it, else the one for all of class Linear."""

    def __init__(self, files: TensorFiles, notes: list[str], schemes: list[Scheme], label: str) -> None:
        super().__init__(files, notes)
        self._schemes, self._label = schemes, label
        self._layouts: dict[str, _Layout] = {}

    @property
    def description(self) -> str:
        return f"{self._label}, {' / '.join(sorted({layout.text for layout in self._layouts.values()}))}"

    def _check_codes(self, name: str, shape: tuple[int, int]) -> list[str]:
        (n, k), files = shape, self._files
        scheme = self._scheme(name)
        weight = f"{name}.weight_packed" if scheme.packed else f"{name}.weight"
        n_groups = -(-k // scheme.group_size) if scheme.group_size else 1
        order = "stream"
        if scheme.packed:
            order = self._order(weight, scheme.bits, shape)
            self._check_stored_shape(name, shape)
        else:
            check_shape(files, weight, shape)
        check_dtype(files, weight, ("I32" if scheme.packed else "I8",))
        scale = f"{name}.weight_scale"
        per_tensor = scheme.per_tensor and scale in files and files.info(scale).shape in ((), (1,))
        check_float(files, scale, files.info(scale).shape if per_tensor else (n, n_groups))
        self._layouts[name] = _Layout(scheme, order, self._zero_order(name, scheme, (n, n_groups), order))
        if f"{name}.weight_g_idx" in files:
            check_shape(files, f"{name}.weight_g_idx", (k,))
            check_dtype(files, f"{name}.weight_g_idx", ("I32",))
        parts = ("weight_shape", "weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point")
        return [weight, scale, *(f"{name}.{part}" for part in parts if f"{name}.{part}" in files)]

    def _scheme(self, name: str) -> Scheme:
        for scheme in self._schemes:
            if scheme.matches(name):
                return scheme
        for scheme in self._schemes:
            if "Linear" in scheme.targets:
                return scheme
        raise CheckpointError(
            f"{name}: no group of config_groups has it as a target and no float {name}.weight is stored;"
            " config.json belongs to another model"
        )

    def _order(self, tensor: str, bits: int, shape: tuple[int, int]) -> str:
        n, k = shape
        shapes = {order: (n, n_words(k, bits, order)) for order in _ORDERS}
        if tensor not in self._files:
            check_shape(self._files, tensor, shapes["stream"])
        found = self._files.info(tensor).shape
        for order in _ORDERS:
            if found == shapes[order]:
                return order
        raise CheckpointError(
            f"{self._files.file_name(tensor)}: tensor {tensor} has shape {list(found)}, expected"
            f" {' or '.join(str(list(s)) for s in dict.fromkeys(shapes.values()))} for {n} x {k} weights of {bits}"
            " bits; one of config.json and this file belongs to another model"
        )

    def _check_stored_shape(self, name: str, shape: tuple[int, int]) -> None:
        tensor = f"{name}.weight_shape"
        check_shape(self._files, tensor, (2,))
        check_dtype(self._files, tensor, ("I64", "I32"))
        found = self._files.read(tensor).tolist()
        if tuple(found) != shape:
            raise CheckpointError(
                f"{self._files.file_name(tensor)}: tensor {tensor} is {found}, expected {list(shape)} from"
                " config.json; one of the two files belongs to another model"
            )

    def _zero_order(self, name: str, scheme: Scheme, shape: tuple[int, int], order: str) -> str:
        """How zero points are packed: as the weights (`order`) where the shape allows it."""
        tensor = f"{name}.weight_zero_point"
        if tensor not in self._files:
            if not scheme.symmetric:
                raise CheckpointError(
                    f"tensor {tensor} is missing, which weights that are not symmetric need; download it again"
                )
            return ""
        info, (n, n_groups) = self._files.info(tensor), shape
        if info.dtype == "I8" and info.shape in (shape, (1,) if scheme.per_tensor else shape):
            return "plain"
        for other in (order, *_ORDERS):
            if info.dtype == "I32" and info.shape == (n_words(n, scheme.bits, other), n_groups):
                return other
        raise CheckpointError(
            f"{self._files.file_name(tensor)}: tensor {tensor} is {info.dtype} {list(info.shape)}, expected I32"
            f" {[n_words(n, scheme.bits, 'stream'), n_groups]} or I8 {list(shape)}; download it again"
        )

    def _codes(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> CodedWeight:
        (n, k), layout = shape, self._layouts[name]
        scheme, perm = layout.scheme, self._permutation(name, k, layout.scheme.group_size or k)

        def rows(begin: int, end: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any] | None]:
            codes = self._stored_codes(name, layout, k, begin, end)
            if perm is not None:
                codes = codes.take(perm, axis=1)
            scales = self._floats(f"{name}.weight_scale")
            scales = np.repeat(scales.reshape(1, 1), n, axis=0) if scales.size == 1 else scales
            zeros = self._once(name, lambda: self._zeros(name, layout, n)) if layout.zero_order else None
            return codes, scales[begin:end], None if zeros is None else zeros[begin:end]

        zero = None if layout.zero_order else float(1 << scheme.bits - 1)
        group_size = scheme.group_size or k
        return coded_weight(name, shape, scheme.bits, group_size, zero, rows, self._rounding, bias, perm)

    def _stored_codes(self, name: str, layout: _Layout, k: int, begin: int, end: int) -> NDArray[np.uint8]:
        bits = layout.scheme.bits
        if layout.scheme.packed:
            return unpack(self._words(f"{name}.weight_packed", begin, end), bits, k, layout.order)
        codes = self._files.read(f"{name}.weight", begin, end).view(np.uint8) + np.uint8(1 << bits - 1)
        if codes.max(initial=0) >= 1 << bits:
            raise CheckpointError(
                f"{self._files.file_name(f'{name}.weight')}: tensor {name}.weight has values beyond {bits} bits in"
                f" rows {begin} to {end - 1}; the file is damaged, download it again"
            )
        return codes

    def _zeros(self, name: str, layout: _Layout, n: int) -> NDArray[np.uint8]:
        """Zero codes (n, groups)."""
        tensor, bits = f"{name}.weight_zero_point", layout.scheme.bits
        if layout.zero_order == "plain":
            zeros = self._files.read(tensor).view(np.uint8) + np.uint8(1 << bits - 1)
            return np.repeat(zeros.reshape(1, 1), n, axis=0) if zeros.size == 1 else zeros
        return unpack(transposed(self._words(tensor)), bits, n, layout.zero_order).T

    def _permutation(self, name: str, k: int, group_size: int) -> NDArray[np.int32] | None:
        tensor = f"{name}.weight_g_idx"
        if tensor not in self._files:
            return None
        group = self._files.read(tensor)
        if (group == -1).all():  # announced and never filled in: the groups lie in order
            return None
        return group_permutation(group, group_size, f"{self._files.file_name(tensor)}: tensor {tensor}")


def compressed_tensors(
    quantization: Mapping[str, Any], files: TensorFiles, notes: list[str]
) -> CompressedTensors:
    """The encoding of `quant_method: "compressed-tensors"`. Raises CheckpointError, UnsupportedError."""
    fields = Fields(quantization, "quantization_config.")
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise fields.bad("config_groups", "an object of groups")
    schemes = []
    for key, group in groups.items():
        inner = Fields(group, f"quantization_config.config_groups.{key}.")
        kind = inner if inner.has("format") else fields
        schemes.append(_scheme(inner, kind.choice("format", _FORMATS)))
        if inner.has("input_activations"):
            note = "the original quantises activations too: here they stay float, which is more exact"
            notes += [] if note in notes else [note]
    kinds = "/".join(dict.fromkeys(PACKED if scheme.packed else INTEGER for scheme in schemes))
    return CompressedTensors(files, notes, schemes, f"compressed-tensors {kinds}")


def _scheme(group: Fields, found: str) -> Scheme:
    targets = group.d.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise group.bad("targets", "a list of names")
    for target in targets:
        try:
            re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise UnsupportedError(f"config.json: {group.where}targets: {show(target)}: {error}") from None
    weights = Fields(group.d.get("weights") or {}, f"{group.where}weights.")
    weights.choice("type", ("int",))
    strategy = weights.choice("strategy", ("group", "channel", "tensor"))
    return Scheme(
        targets=tuple(targets),
        packed=found == PACKED,
        bits=weights.integer("num_bits", 8),
        group_size=group_size_of(weights) if strategy == "group" else 0,
        per_tensor=strategy == "tensor",
        symmetric=weights.boolean("symmetric", True),
    )
