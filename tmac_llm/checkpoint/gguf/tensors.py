"""The tensors of a GGUF file under Hugging Face names, rows in Hugging Face order; knows no metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.container import TensorInfo
from tmac_llm.checkpoint.gguf.container import GgufFile, GgufTensor
from tmac_llm.checkpoint.weights import BFLOAT16
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import show

FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16}

_TABLES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>[0-9]{1,6})\.)?(?P<module>[a-z_0-9]+)\.(?P<kind>weight|bias|scale)")
# Rotation frequencies, which the configuration takes over.
ROPE_FREQS = "rope_freqs.weight"


def hf_name(name: str) -> str | None:
    """The Hugging Face name of a tensor, None where the Llama family has none such."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    module = (_TABLES if match["layer"] is None else _OF_LAYER).get(match["module"])
    if module is None:
        return None
    prefix = "" if match["layer"] is None else f"model.layers.{int(match['layer'])}."
    return f"{prefix}{module}.{match['kind']}"


class GgufTensors:
    """A GGUF file as index.TensorFiles wants files.

    heads: for q_proj and k_proj the number of heads whose rows architecture "llama" interleaves, 0 where rows are in
    order: file row (h, 2 i + s) is row (h, s d / 2 + i) of a head of d rows. Such tensors must be whole heads.
    """

    def __init__(self, file: GgufFile, heads: dict[str, int]) -> None:
        """Raises UnsupportedError for a tensor without a place in the Llama family."""
        self.path: Path = file.path
        self.n_bytes = file.n_bytes
        self._file = file
        self._stored: dict[str, GgufTensor] = {}
        self._heads: dict[str, int] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for tensor in file.tensors.values():
            if tensor.name == ROPE_FREQS:
                continue
            name = hf_name(tensor.name)
            if name is None:
                raise UnsupportedError(
                    f"{file.path.name}: tensor {show(tensor.name)} is not part of a supported architecture, and leaving"
                    " it out would change the model"
                )
            module, kind = tensor.name.split(".")[-2:]
            self._heads[name] = heads.get(module, 0) if kind != "scale" else 0
            if self._heads[name] and (not tensor.shape or tensor.shape[0] % (2 * self._heads[name])):
                raise CheckpointError(
                    f"{file.path.name}: tensor {show(tensor.name)} has shape {list(tensor.shape)}, expected rows of"
                    f" {self._heads[name]} heads; the file is damaged, download it again"
                )
            self._stored[name] = tensor
            self.tensors[name] = TensorInfo(name, tensor.type.name, tensor.shape, tensor.begin, tensor.end)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Rows [begin, end) of an F32, F16 or BF16 tensor, as SafetensorsFile.read."""
        tensor = self._stored[name]
        dtype = FLOATS.get(tensor.type.name)
        if dtype is None:
            raise UnsupportedError(
                f"{self.path.name}: tensor {show(tensor.name)} has type {tensor.type.name}, which is not supported"
                f" here; supported: {', '.join(FLOATS)}"
            )
        end = tensor.shape[0] if end is None and tensor.shape else end or 0
        rows = self.raw(name, begin, end) if tensor.shape else self._file.read(tensor.begin, tensor.end)
        shape = (end - begin, *tensor.shape[1:]) if tensor.shape else ()
        values: NDArray[Any] = rows.reshape(-1).view(dtype).reshape(shape)
        return values

    def raw(self, name: str, begin: int, end: int) -> NDArray[np.uint8]:
        """uint8 (end - begin, bytes of a row): rows of a tensor whose rows are whole blocks."""
        tensor = self._stored[name]
        if not 0 <= begin <= end <= tensor.shape[0]:
            raise ValueError(f"rows [{begin}, {end}) of a tensor of shape {tensor.shape}")
        row = (tensor.end - tensor.begin) // max(tensor.shape[0], 1)
        rows = self.file_rows(name, begin, end)
        first, last = (int(rows.min()), int(rows.max()) + 1) if rows.size else (0, 0)
        data = self._file.read(tensor.begin + first * row, tensor.begin + last * row).reshape(-1, row)
        ordered: NDArray[np.uint8] = data[rows - first] if self._heads[name] else data
        return ordered

    def span(self, name: str, begin: int, end: int) -> NDArray[np.uint8]:
        """Bytes [begin, end) of a tensor in file order. The caller sees to the order of rows."""
        tensor = self._stored[name]
        return self._file.read(tensor.begin + begin, tensor.begin + end)

    def file_rows(self, name: str, begin: int, end: int) -> NDArray[np.intp]:
        """The rows of the file that are rows [begin, end)."""
        rows = np.arange(begin, end)
        if not self._heads[name]:
            return rows
        d = self._stored[name].shape[0] // self._heads[name]
        h, i = np.divmod(rows, d)
        order: NDArray[np.intp] = h * d + i % (d // 2) * 2 + i // (d // 2)
        return order
