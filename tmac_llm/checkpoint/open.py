"""Opens a checkpoint: finds its encoding and checks every header entry against its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint import names
from tmac_llm.checkpoint.bitnet import OnlineBitnet, PackedBitnet
from tmac_llm.checkpoint.dense import FLOATS, DenseEncoding, check_float, dense_weight
from tmac_llm.checkpoint.files import read_json
from tmac_llm.checkpoint.gguf import source as gguf
from tmac_llm.checkpoint.index import TensorFiles, open_tensor_files
from tmac_llm.checkpoint.quantized import METHODS, old_settings, quantized, unlabelled
from tmac_llm.checkpoint.ternary import DenseTernary, looks_ternary
from tmac_llm.checkpoint.weights import (
    CodedRows,
    CodedWeight,
    DenseWeight,
    Encoding,
    Weight,
    check_finite,
    row_blocks,
    to_float32,
)
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.config import ModelConfig, is_1bitllm, quantization_config
from tmac_llm.model.fields import show

# What a quantised linear of another format is recognised by, where no configuration names it.
_FOREIGN_SUFFIXES = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".W_q": "HQQ",
    ".weight_scale": "bitnet",
    ".weight_scale_inv": "FP8",
    ".absmax": "bitsandbytes",
}


class Checkpoint:
    """A checkpoint whose header entries were all checked; weights are read on demand.

    `config` and `raw_config` (the config.json) have tie_word_embeddings set to what the tensors say. `format`
    names the encoding found, `notes` what was decided that a user should know; reading a linear may add some.
    `metadata`: of a GGUF file, where tokenizer and chat template are; None for other checkpoints.
    """

    def __init__(
        self,
        path: Path,
        files: TensorFiles,
        raw_config: dict[str, Any],
        encoding: Callable[[dict[str, tuple[int, int]], list[str]], Encoding],
    ) -> None:
        """encoding: makes that of the linears, from their shapes and the notes. Use `open_checkpoint`."""
        self.path = path
        self.notes: list[str] = []
        self.metadata: dict[str, Any] | None = None
        self._files = files
        self.n_bytes = files.n_bytes
        config = ModelConfig.from_dict(raw_config)
        self._linears = names.linear_shapes(config)
        self._encoding = encoding(self._linears, self.notes)
        self._vectors = self._check_vectors(config)
        used = set(self._vectors.values())
        for name, shape in self._linears.items():
            used.update(self._encoding.check(name, shape))
        self._embedding, self._head = self._find_tables(config, used)
        _refuse_unknown(
            [n for n in files.names() if n not in used and not n.endswith(names.IGNORED_SUFFIXES)]
        )
        tied = self._head is None
        self.config = replace(config, tie_word_embeddings=tied)
        self.raw_config = {**raw_config, "tie_word_embeddings": tied}
        self.format = self._encoding.description

    def names(self) -> list[str]:
        """The modules with a weight matrix, in order: embedding, linears, lm_head unless tied."""
        head = [] if self._head is None else [names.LM_HEAD]
        return [names.EMBEDDING, *self._linears, *head]

    def linear(self, name: str) -> Weight:
        """The weights of a linear by module name, such as "model.layers.0.mlp.up_proj".

        Raises CheckpointError for NaN, infinity or invalid codes, here or while its rows are read.
        """
        if name == "lm_head" and self._head is not None:
            return self._head
        if name not in self._linears:
            raise CheckpointError(f"{self.path}: no linear named {show(name)}")
        bias = self.tensor(f"{name}.bias") if self.has(f"{name}.bias") else None
        return self._encoding.linear(name, self._linears[name], bias)

    def has(self, name: str) -> bool:
        """Whether `tensor(name)` exists."""
        return name in self._vectors

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A norm weight or bias by its full name, such as "model.norm.weight": a new float32 vector.

        The sub-norms are called attn_sub_norm and ffn_sub_norm in every checkpoint. Raises CheckpointError.
        """
        if name not in self._vectors:
            raise CheckpointError(f"{self.path}: no tensor named {show(name)}")
        stored = self._vectors[name]
        vector = self._files.read(stored)
        check_finite(vector, f"{self._files.file_name(stored)}: tensor {stored}")
        return to_float32(vector)

    def embedding(self) -> Weight:
        """The token embedding, shape (vocab_size, hidden_size)."""
        return self._embedding

    def lm_head(self) -> Weight | None:
        """The output matrix, shape (vocab_size, hidden_size), or None when it is the embedding."""
        return self._head

    def _check_vectors(self, config: ModelConfig) -> dict[str, str]:
        """Tensor name -> name in the file of every norm and bias."""
        stored = {}
        for name, shape in names.vector_shapes(config).items():
            other = names.alias(name)
            stored[name] = other if other and other in self._files and name not in self._files else name
            check_float(self._files, stored[name], shape)
        return stored

    def _find_tables(self, config: ModelConfig, used: set[str]) -> tuple[Weight, Weight | None]:
        """(embedding, lm_head or None when tied); adds the names of their tensors to `used`.

        One matrix alone serves as both. Where both are stored although the configuration ties them, differing
        contents win over the flag, as in transformers 5.
        """
        shape = (config.vocab_size, config.hidden_size)
        found = {
            name: self._table(name, shape, used)
            for name in (names.EMBEDDING, names.LM_HEAD)
            if any(tensor.startswith(f"{name}.") for tensor in self._files.names())
        }
        if not found:
            check_float(self._files, f"{names.EMBEDDING}.weight", shape)
        weights = list(found.values())
        if len(weights) == 1:
            if not config.tie_word_embeddings:
                self.notes.append(
                    f"config.json does not tie the embedding but only {next(iter(found))}.weight is stored: tied"
                )
            return weights[0], None
        embedding, head = weights
        if config.tie_word_embeddings:
            if _equal(embedding, head):
                return embedding, None
            self.notes.append(
                "config.json ties the embedding but a different lm_head.weight is stored: not tied"
            )
        return embedding, head

    def _table(self, name: str, shape: tuple[int, int], used: set[str]) -> Weight:
        """Embedding or output head: float, or of the encoding of the linears where that has such tables."""
        tensor = f"{name}.weight"
        if tensor in self._files and self._files.info(tensor).dtype in FLOATS:
            check_float(self._files, tensor, shape)
            used.add(tensor)
            return dense_weight(self._files, tensor)
        if not self._encoding.quantised_tables:
            _refuse_quantised_table(name, self._files)
            check_float(self._files, tensor, shape)
        used.update(self._encoding.check(name, shape))
        return self._encoding.linear(name, shape, None)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a directory with config.json and safetensors, one safetensors file with config.json beside it, or a GGUF
    file, or a directory with the GGUF files of one model.

    Reads headers, a few rows and GPTQ's zero points. Raises CheckpointError for damaged or contradictory files and
    UnsupportedError for formats and architectures outside this package, each naming what was found.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    if path.suffix == gguf.SUFFIX and not path.is_dir():
        return _open_gguf(path)
    if path.is_file() and path.suffix != ".safetensors":
        raise UnsupportedError(
            f"{path}: neither a safetensors nor a GGUF file; give a Hugging Face directory,"
            " a .safetensors file with its config.json beside it, or a .gguf file"
        )
    if path.is_dir() and (chosen := gguf.only_model(path)):
        return _open_gguf(chosen)
    directory = path if path.is_dir() else path.parent
    if not (directory / "config.json").exists():
        raise CheckpointError(f"{directory}: no config.json; expected a Hugging Face checkpoint")
    raw_config = read_json(directory / "config.json")
    quantization, files = _quantization(raw_config, directory), open_tensor_files(path)
    return Checkpoint(path, files, raw_config, partial(_encoding, raw_config, quantization, files))


def _open_gguf(path: Path) -> Checkpoint:
    """A GGUF file; what it lacks of a config.json is told as lacking in its metadata."""
    source = gguf.open_source(path)
    try:
        checkpoint = Checkpoint(path, source.files, source.raw_config, source.encoding)
    except CheckpointError as error:
        text = str(error).replace("config.json", "the metadata")
        raise type(error)(text if path.name in text else f"{path.name}: {text}") from None
    checkpoint.metadata = source.metadata
    return checkpoint


def _quantization(raw_config: Mapping[str, Any], directory: Path) -> Mapping[str, Any] | None:
    """The quantisation settings, None without any. Raises UnsupportedError for methods without a reader."""
    quantization = quantization_config(raw_config)
    where = "config.json: quantization_config.quant_method"
    if quantization is None:
        quantization = old_settings(directory)
        if quantization is None:
            return None
        where = f"{quantization['found_in']}: the quantisation"
    method = quantization.get("quant_method") or quantization.get("quant_library")
    if method == "tmac":
        raise UnsupportedError(f"{directory}: already a packed tmac-llm model; load it directly")
    if method == "none":
        return None
    if method is None:
        raise UnsupportedError(
            "config.json: quantization_config has no quant_method; expected one such as bitnet"
        )
    if method not in ("bitnet", *METHODS):
        raise UnsupportedError(
            f"{where} is {show(method)}, which is not supported; supported: bitnet, {', '.join(METHODS)}, or none;"
            " convert the unquantised original of this model instead"
        )
    return quantization


def _encoding(
    raw_config: Mapping[str, Any],
    quantization: Mapping[str, Any] | None,
    files: TensorFiles,
    linears: dict[str, tuple[int, int]],
    notes: list[str],
) -> Encoding:
    if quantization is not None:
        if quantization.get("quant_method") == "bitnet":
            return _bitnet_encoding(quantization, files, linears)
        return quantized(quantization, files, notes)
    found = unlabelled(files, next(iter(linears)), notes)
    if found is not None:
        return found
    _refuse_foreign(files.names())
    dtype = _main_dtype(files, linears)
    if is_1bitllm(raw_config):
        return OnlineBitnet(files, f"1bitLLM, {dtype} masters ternarised on reading")
    dense = DenseEncoding(files, dtype)
    for name, shape in linears.items():
        dense.check(name, shape)
    return DenseTernary(files, dtype, notes) if looks_ternary(files, linears) else dense


def _bitnet_encoding(
    quantization: Mapping[str, Any], files: TensorFiles, linears: dict[str, tuple[int, int]]
) -> Encoding:
    linear_class = quantization.get("linear_class") or "bitlinear"
    mode = quantization.get("quantization_mode") or "offline"
    for key, value, known in (
        ("linear_class", linear_class, ("bitlinear", "autobitlinear")),
        ("quantization_mode", mode, ("offline", "online")),
    ):
        if value not in known:
            raise UnsupportedError(
                f"config.json: quantization_config.{key} is {show(value)}, which is not supported;"
                f" supported: {', '.join(known)}"
            )
    _check_all_converted(quantization.get("modules_to_not_convert"), linears)
    if mode == "offline":
        return PackedBitnet(files, multiply=linear_class == "autobitlinear")
    return OnlineBitnet(files, f"bitnet online, {_main_dtype(files, linears)} masters ternarised on reading")


def _check_all_converted(exceptions: object, linears: dict[str, tuple[int, int]]) -> None:
    """A layer with some linears in float would need float activations for them alone."""
    if exceptions is None:
        return
    if not isinstance(exceptions, list) or not all(isinstance(e, str) for e in exceptions):
        raise CheckpointError(
            "config.json: quantization_config.modules_to_not_convert must be a list of names,"
            f" found {show(exceptions)}"
        )
    for exception in exceptions:
        if exception and any(exception in name for name in linears):
            raise UnsupportedError(
                f"config.json: quantization_config.modules_to_not_convert has {show(exception)}, which is not"
                " supported; supported: lm_head only"
            )


def _main_dtype(files: TensorFiles, linears: dict[str, tuple[int, int]]) -> str:
    """The dtype of the first linear, for the description."""
    first = f"{next(iter(linears))}.weight"
    return files.info(first).dtype.lower() if first in files else "float"


def _refuse_foreign(tensors: list[str]) -> None:
    """Quantised tensors under a config.json that does not mention them."""
    for suffix, kind in _FOREIGN_SUFFIXES.items():
        for name in tensors:
            if name.endswith(suffix):
                raise UnsupportedError(
                    f"tensor {show(name)} is part of the {kind} format, but config.json has no"
                    " quantization_config; take the config.json of the original repository"
                )


def _refuse_unknown(tensors: list[str]) -> None:
    """A tensor that this architecture does not use: without it the model would be another one."""
    if tensors:
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        raise UnsupportedError(
            f"tensor {show(tensors[0])}{more} is not part of this architecture, and leaving it out would"
            " change the model; check model_type and architectures in config.json"
        )


def _refuse_quantised_table(name: str, files: TensorFiles) -> None:
    for suffix, kind in _FOREIGN_SUFFIXES.items():
        if f"{name}{suffix}" in files:
            raise UnsupportedError(
                f"tensor {name}{suffix}: a table quantised as {kind} beside linears of another kind is not supported;"
                f" supported: {name} in float; convert the unquantised original of this model instead"
            )


def _equal(a: Weight, b: Weight) -> bool:
    """Whether two matrices of one shape have the same stored values."""
    if type(a) is not type(b) or _stored_form(a) != _stored_form(b):
        return False
    return all(_same_bytes(a.rows(i, j), b.rows(i, j)) for i, j in row_blocks(a.shape))


def _stored_form(weight: Weight) -> object:
    if isinstance(weight, DenseWeight):
        return weight.dtype
    return (weight.bits, weight.group_size, weight.zero) if isinstance(weight, CodedWeight) else None


def _same_bytes(a: Any, b: Any) -> bool:
    if isinstance(a, CodedRows):
        pairs = ((a.codes, b.codes), (a.scales, b.scales), (a.zeros, b.zeros))
        return all(np.array_equal(x, y) for x, y in pairs if x is not None)
    return np.array_equal(a.view(np.uint8), b.view(np.uint8))
