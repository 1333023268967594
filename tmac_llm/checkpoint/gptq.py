"""GPTQ linears (AutoGPTQ, GPTQModel, AutoRound, EfficientQAT): packed codes exactly as they are stored.

W[n, k] = scales[g, n] * (code[k, n] - zero[g, n]) with g = g_idx[k]. K inputs, N outputs, G groups:

    qweight  I32 (K * bits / 32, N)   codes packed down K
    qzeros   I32 (G, N * bits / 32)   zero points packed across N; version 1 stores zero - 1, modulo 2^bits
    scales   F16, BF16 or F32 (G, N)
    g_idx    I32 (K,)                 the group of each input; may be missing: k // group_size

With activation order (desc_act) a group's inputs lie scattered: stored columns are sorted by group here, and
the permutation goes along with the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.coded import CodedEncoding, coded_weight, group_permutation
from tmac_llm.checkpoint.dense import check_dtype, check_float, check_shape
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.unpack import n_words, transposed, unpack
from tmac_llm.checkpoint.weights import CodedWeight
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import Fields

WIDTHS = (2, 3, 4, 8, 5, 6, 7)
_FORMATS = ("gptq", "gptq_v2", "gptq_p")


@dataclass(frozen=True, slots=True)
class GptqSettings:
    """What the configuration says. bits, group_size None: it does not, the shapes do; group_size 0: per row.

    version 1 stores zero points minus one. mixed: single layers may differ. label: the format's name, and
    where it is said.
    """

    label: str
    version: int
    bits: int | None = None
    group_size: int | None = None
    desc_act: bool = False
    planar: bool = False
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class _Layout:
    bits: int
    order: str
    group_size: int


def gptq_settings(quantization: Mapping[str, Any], where: str) -> GptqSettings:
    """Settings of `quant_method: "gptq"`. Raises CheckpointError, UnsupportedError."""
    fields = Fields(quantization, where)
    key = "checkpoint_format" if fields.has("checkpoint_format") else "format"
    found = fields.choice(key, _FORMATS) if fields.has(key) else "gptq"
    if fields.boolean("is_marlin_format"):
        raise fields.unsupported("is_marlin_format", "the original order; take the repository without marlin")
    if fields.has("pack_dtype"):
        fields.choice("pack_dtype", ("int32",))
    bits = fields.integer("bits", 8)
    if bits == 1 or (bits in (5, 6, 7) and found != "gptq_p"):
        raise fields.unsupported("bits", "2, 3, 4, 8, and with checkpoint_format gptq_p 5, 6, 7")
    said = f"{key} {found}" if fields.has(key) else "no checkpoint_format"
    return GptqSettings(
        label=f"GPTQ ({said})",
        version=1 if found == "gptq" else 2,
        bits=bits,
        group_size=group_size_of(fields),
        desc_act=fields.boolean("desc_act"),
        planar=found == "gptq_p",
        mixed=bool(quantization.get("dynamic")),
    )


def group_size_of(fields: Fields, key: str = "group_size") -> int:
    """`group_size`, 0 for one group per row."""
    value = fields.d.get(key)
    if value == -1 and not isinstance(value, bool):
        return 0
    return fields.integer(key, 1 << 16)


class Gptq(CodedEncoding):
    """Linears in GPTQ's tensors; the packing of each is found by its shapes and checked against `settings`."""

    def __init__(self, files: TensorFiles, notes: list[str], settings: GptqSettings) -> None:
        super().__init__(files, notes)
        self._settings = settings
        self._layouts: dict[str, _Layout] = {}

    @property
    def description(self) -> str:
        layouts = self._layouts.values()
        bits = "/".join(str(b) for b in sorted({layout.bits for layout in layouts})) or "no"
        groups = "/".join(str(g) for g in sorted({layout.group_size for layout in layouts}))
        order = (
            ", 10 codes per word"
            if any(layout.order == "fields" and 32 % layout.bits for layout in layouts)
            else ""
        )
        version, zero = self._zeros
        kind = "zero points per group" if zero is None else "symmetric" if zero == 0.5 else "one zero point"
        return f"{self._settings.label}, zeros v{version}, {bits} bits{order}, groups of {groups}, {kind}"

    def _check_codes(self, name: str, shape: tuple[int, int]) -> list[str]:
        n, k = shape
        qweight, qzeros, scales, g_idx = (
            f"{name}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")
        )
        for tensor in (qweight, qzeros, scales):
            if tensor not in self._files:
                raise CheckpointError(f"tensor {tensor} is missing; download it again")
        check_dtype(self._files, qweight, ("I32",))
        check_dtype(self._files, qzeros, ("I32",))
        n_groups = (self._files.info(scales).shape or (0,))[0]
        check_float(self._files, scales, (n_groups, n))
        group_size = self._group_size(name, k, n_groups)
        bits, order = self._packing(name, shape, n_groups)
        self._layouts[name] = _Layout(bits, order, group_size)
        if g_idx not in self._files:
            return [qweight, qzeros, scales]
        check_shape(self._files, g_idx, (k,))
        check_dtype(self._files, g_idx, ("I32",))
        return [qweight, qzeros, scales, g_idx]

    def _group_size(self, name: str, k: int, n_groups: int) -> int:
        said = self._settings.group_size
        if said is not None and -(-k // (said or k)) == n_groups:
            return said or k
        if n_groups and (said is None or self._settings.mixed) and k % n_groups == 0:
            return k // n_groups
        raise CheckpointError(
            f"{name}.scales has {n_groups} groups for {k} inputs, expected {-(-k // (said or k))} from"
            f" group_size {said or -1} of the quantisation settings; one of the two belongs to another model"
        )

    def _packing(self, name: str, shape: tuple[int, int], n_groups: int) -> tuple[int, str]:
        """(bits, order) for which both packed tensors have their shapes; see unpack.py for the orders."""
        n, k = shape
        settings = self._settings
        sure = settings.bits is not None and not settings.mixed
        widths = (settings.bits,) if sure else WIDTHS
        words, zeros = self._files.info(f"{name}.qweight").shape, self._files.info(f"{name}.qzeros").shape
        found = [
            (bits, order)
            for bits in widths
            for order in (
                ("planar",) if settings.planar else ("stream", "fields") if bits == 3 else ("stream",)
            )
            if bits and words == (n_words(k, bits, order), n) and zeros == (n_groups, n_words(n, bits, order))
        ]
        if not found:
            expected = f"{settings.bits} bits" if sure else "2 to 8 bits"
            raise CheckpointError(
                f"{self._files.file_name(f'{name}.qweight')}: {name}.qweight has shape {list(words)} and qzeros"
                f" {list(zeros)}, expected those of {n} x {k} weights of {expected} in {n_groups} groups; a"
                " damaged file, or a packing that is not supported"
            )
        if len(found) > 1 and settings.bits is None:
            raise UnsupportedError(
                f"{name}.qweight: its shape {list(words)} fits more than one packing and no settings say which;"
                " add a quantization_config with bits, group_size and checkpoint_format to config.json"
            )
        return found[0]

    @cached_property
    def _zeros(self) -> tuple[int, float | None]:
        """(version, zero point of all groups as a share of 2^bits, or None where they differ).

        Where all stored zero points are one and the same the data decides: the middle of the range is a
        symmetric model of version 2, one less of version 1, whatever checkpoint_format says.
        """
        said = self._settings.version
        found: set[tuple[int, int]] = set()
        for name, layout in self._layouts.items():
            codes = self._stored_zeros(name, layout)
            found |= {(layout.bits, int(codes.min())), (layout.bits, int(codes.max()))}
            if len(found) > len({bits for bits, _ in found}):
                return said, None
        for version in () if self._settings.planar else (1, 2):
            if found and all(code == (1 << bits - 1) - (version == 1) for bits, code in found):
                if version != said:
                    self._notes.append(
                        f"the settings say that zero points are stored as in version {said}, but all are"
                        f" {min(found)[1]}, the middle in version {version}: read as version {version}"
                    )
                return version, 0.5
        shares = {_decoded(code, bits, said) / (1 << bits) for bits, code in found}
        return said, shares.pop() if len(shares) == 1 else None

    def _stored_zeros(self, name: str, layout: _Layout) -> NDArray[np.uint8]:
        n = self._files.info(f"{name}.scales").shape[1]
        return unpack(self._words(f"{name}.qzeros"), layout.bits, n, layout.order)

    def _codes(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> CodedWeight:
        k, layout = shape[1], self._layouts[name]
        version, share = self._zeros
        perm = self._permutation(name, k, layout.group_size)

        def read() -> tuple[Any, ...]:
            zeros = None
            if share is None:
                stored = self._stored_zeros(name, layout)
                zeros = _decoded(stored, layout.bits, version).astype(np.float16)
            return self._words(f"{name}.qweight"), self._floats(f"{name}.scales"), zeros

        def rows(begin: int, end: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any] | None]:
            words, scales, zeros = self._once(name, read)
            codes = unpack(transposed(words[:, begin:end]), layout.bits, k, layout.order)
            if perm is not None:
                codes = codes.take(perm, axis=1)
            return codes, scales[:, begin:end].T, None if zeros is None else zeros[:, begin:end].T

        zero = None if share is None else share * (1 << layout.bits)
        return coded_weight(
            name, shape, layout.bits, layout.group_size, zero, rows, self._rounding, bias, perm
        )

    def _permutation(self, name: str, k: int, group_size: int) -> NDArray[np.int32] | None:
        """Columns sorted by group, stable; None where they are already. Raises CheckpointError."""
        tensor = f"{name}.g_idx"
        if tensor not in self._files:
            if self._settings.desc_act:
                raise CheckpointError(
                    f"tensor {tensor} is missing, which desc_act needs to know the groups; download it again"
                )
            return None
        group = self._files.read(tensor)
        group = np.where(group < 0, group + -(-k // group_size), group)
        try:
            perm = group_permutation(group, group_size, f"{self._files.file_name(tensor)}: tensor {tensor}")
        except CheckpointError:
            if self._settings.desc_act:
                raise
            self._say(
                f"{tensor}, maybe not alone, holds no groups; left out, as desc_act is false",
                "holds no groups",
            )
            return None
        if perm is not None and not self._settings.desc_act:
            self._say(f"{tensor} permutes groups although desc_act is false: followed", "permutes groups")
        return perm


def _decoded(stored: Any, bits: int, version: int) -> Any:
    """Zero points from stored ones. Version 1 adds one per field, modulo 2^bits, without a carry."""
    return stored + 1 & (1 << bits) - 1 if version == 1 else stored
