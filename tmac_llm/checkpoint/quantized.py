"""Which reader takes a quantised checkpoint: by its settings, or by its tensors where it has none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmac_llm.checkpoint.awq import Awq, awq
from tmac_llm.checkpoint.bitdistiller import bitdistiller
from tmac_llm.checkpoint.compressed_tensors import CompressedTensors, Scheme, compressed_tensors
from tmac_llm.checkpoint.files import read_json
from tmac_llm.checkpoint.gptq import Gptq, GptqSettings, gptq_settings, group_size_of
from tmac_llm.checkpoint.hqq import hqq
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.weights import Encoding
from tmac_llm.errors import UnsupportedError
from tmac_llm.model.fields import Fields, show

METHODS = ("gptq", "awq", "auto-round", "intel/auto-round", "hqq", "compressed-tensors", "bitdistiller")
# Where older repositories keep the quantisation settings.
_OLD_CONFIGS = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# AutoRound's packing formats: the zero points of GPTQ's version 1 or 2, AWQ, or compressed-tensors.
_AUTO_ROUND = {
    "auto_round:auto_gptq": 1,
    "auto_round:gptq": 1,
    "auto_gptq": 1,
    "auto_round": 2,
    "auto_round:gptqmodel": 2,
    "auto_round:auto_awq": "awq",
    "auto_round:awq": "awq",
    "auto_awq": "awq",
    "auto_round:llm_compressor": "llm_compressor",
}


def old_settings(directory: Path) -> Mapping[str, Any] | None:
    """Settings of a repository without a quantization_config, `quant_method` filled in; None without any."""
    for file_name, method in _OLD_CONFIGS.items():
        if (directory / file_name).exists():
            return {"quant_method": method, **read_json(directory / file_name), "found_in": file_name}
    return None


def quantized(quantization: Mapping[str, Any], files: TensorFiles, notes: list[str]) -> Encoding:
    """The encoding that settings with one of METHODS describe. Raises CheckpointError, UnsupportedError."""
    where = "quantization_config."
    if "found_in" in quantization:
        where = ""
        notes.append(f"quantisation settings from {quantization['found_in']}")
    method = quantization["quant_method"]
    if method == "gptq":
        return Gptq(files, notes, gptq_settings(quantization, where))
    if method == "awq":
        return awq(quantization, where, files, notes)
    if method == "hqq":
        return hqq(quantization, files, notes)
    if method == "compressed-tensors":
        return compressed_tensors(quantization, files, notes)
    if method == "bitdistiller":
        return bitdistiller(quantization, files)
    return _auto_round(quantization, files, notes)


def unlabelled(files: TensorFiles, first: str, notes: list[str]) -> Encoding | None:
    """The encoding of quantised tensors that no settings mention, from the shapes of the linear `first`.

    None where they do not tell. EfficientQAT's own files are such: GPTQ's tensors, zero points of version 2.
    """
    qweight, scales = f"{first}.qweight", f"{first}.scales"
    if qweight not in files or scales not in files:
        return None
    words, groups = files.info(qweight).shape, files.info(scales).shape
    if len(words) != 2 or len(groups) != 2:
        return None
    if words[1] == groups[1]:
        notes.append("no quantisation settings: bits and groups from the shapes, zero points as in version 2")
        return Gptq(files, notes, GptqSettings("EfficientQAT or GPTQ (no settings)", version=2))
    if words[1] * 8 == groups[1]:
        notes.append("no quantisation settings: AWQ gemm by the shapes")
        return Awq(files, notes, None, gemv=False, label="AWQ gemm (no settings)")
    return None


def _auto_round(quantization: Mapping[str, Any], files: TensorFiles, notes: list[str]) -> Encoding:
    fields = Fields(quantization, "quantization_config.")
    key = "packing_format" if fields.has("packing_format") else "backend"
    packing = fields.choice(key, tuple(_AUTO_ROUND))
    kind = _AUTO_ROUND[packing]
    bits, group_size = fields.integer("bits", 8), group_size_of(fields)
    if fields.has("data_type"):
        fields.choice("data_type", ("int", "int_asym", "int_sym"))
    label = f"AutoRound ({packing})"
    mixed = bool(quantization.get("extra_config"))
    if isinstance(kind, int):
        settings = GptqSettings(label, kind, bits, group_size, mixed=mixed)
        return Gptq(files, notes, settings)
    if mixed:
        raise UnsupportedError(
            f"config.json: quantization_config.extra_config with {key} {show(packing)} is not supported;"
            " supported: with the packing formats of GPTQ"
        )
    if kind == "llm_compressor":
        scheme = Scheme(("Linear",), True, bits, group_size, symmetric=fields.boolean("sym", True))
        return CompressedTensors(files, notes, [scheme], label)
    if bits != 4:
        raise fields.unsupported("bits", f"4 with {key} {packing}")
    return Awq(files, notes, group_size, gemv=False, label=label)
