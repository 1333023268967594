"""Builds a decoder from packed weights: the one module that knows tensor names and the decoder's parts."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tmac_llm import kernels, machine, tuning
from tmac_llm.errors import PackedModelError, UsageError
from tmac_llm.kernels import Matrix, MatrixShape, Tables
from tmac_llm.mapped import MappedWeights
from tmac_llm.model import parallel
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.decoder import Decoder, Layer
from tmac_llm.model.embedding import DenseEmbedding, Embedding, PackedEmbedding
from tmac_llm.model.linear import DenseLinear, Linear, LutLinear, NormedLinear, PermutedLinear, SplitLinear
from tmac_llm.model.norm import RMSNorm
from tmac_llm.packed import names
from tmac_llm.packed.container import PackedModel
from tmac_llm.packed.names import LinearGroup

# Memory left for scratch, a first part of the KV cache and the interpreter.
_RESERVE = 256 << 20


class Source(Protocol):
    """What is read of packed.container.PackedModel and synthetic.SyntheticModel, which check every shape."""

    @property
    def config(self) -> ModelConfig: ...
    def has(self, name: str) -> bool: ...
    def shape(self, matrix: str) -> MatrixShape | None: ...
    def tiles(self, matrix: str) -> npt.NDArray[np.uint8]: ...
    def tensor(self, name: str) -> npt.NDArray[Any]: ...


def load_decoder(source: Source, tables: Tables | None = None, *, mmap: bool = False) -> Decoder:
    """Copy the weights into memory in the running instruction set's order, and build the decoder.

    tables: how activations of the layers become tables; None: "exact" for models trained with int8
    activations, "int8" for others; matrices of encoding "ternary" are always exact. "fast": entries are
    averaged instead of added (fast aggregation). mmap: multiply packed matrices straight from mapped files, as
    mapped.MappedWeights says, instead of copying them. numpy's BLAS has one thread from here on, in the whole process.
    Raises PackedModelError where the weights do not fit into memory, UsageError for "exact" on a model with
    float activations, for "fast" where model or instruction set rule it out and for mmap without files, StoreError
    where the cache of mmap cannot be written or that of `tune` is damaged, KernelError where the native library
    refuses.
    """
    if tables not in (None, "int8", "exact", "fast"):
        raise UsageError(f'tables: expected "int8", "exact" or "fast", found {tables!r}')
    if tables == "exact" and not source.config.int8_activations:
        raise UsageError('tables "exact" needs a model trained with int8 activations (BitNet); take "int8"')
    if tables == "fast":
        _check_fast_aggregation(source)
    parallel.limit_blas()
    kernels.n_threads()  # starts the library: its errors come before the work
    if mmap and not isinstance(source, PackedModel):
        raise UsageError("mmap needs the files of a packed model")
    _check_memory(source, mmap)
    mapped = MappedWeights(source, mapped_names(source)) if mmap and isinstance(source, PackedModel) else None
    return _Loader(source, tables, mapped).decoder()


def layer_tables(source: Source, tables: Tables | None) -> Tables:
    """How activations become tables in the layers; the output head's are "int8" even in BitNet."""
    return tables or ("exact" if source.config.int8_activations else "int8")


def mapped_names(source: Source) -> list[str]:
    """The packed matrices that mmap maps: those that `load_decoder` would otherwise copy."""
    return [linear.name for linear in _held(source) if source.shape(linear.name)]


def _check_fast_aggregation(source: Source) -> None:
    """Raises UsageError where it would have no effect, or no kernel."""
    if source.config.int8_activations:
        raise UsageError("fast aggregation: this model's products are exact (BitNet); leave it out")
    if not kernels.has_fast_aggregation():
        raise UsageError(
            f"fast aggregation: {kernels.isa_selected()} has no kernel for it, avx2 and neon have; leave it out"
        )


class _Loader:
    """Reads one source."""

    def __init__(self, source: Source, tables: Tables | None, mapped: MappedWeights | None) -> None:
        self._source, self._config, self._mapped = source, source.config, mapped
        self._tables, self._tuned = layer_tables(source, tables), tuning.load()
        self._matrices: list[Matrix] = []

    def decoder(self) -> Decoder:
        groups = names.linear_groups(self._config)
        layers = [
            self._layer(i, *(self._group(next(groups)) for _ in range(4)))
            for i in range(self._config.num_hidden_layers)
        ]
        head = names.EMBEDDING if self._config.tie_word_embeddings else names.LM_HEAD
        lm_head = self._linear(head, in_layer=False)
        norm = self._norm("model.norm")
        for matrix, following in zip(self._matrices, self._matrices[1:] + self._matrices[:1], strict=True):
            matrix.precede(following)
        return Decoder(self._config, self._embedding(), layers, norm, lm_head, matrices=self._matrices)

    def _layer(self, i: int, qkv: Linear, o: Linear, gate_up: Linear, down: Linear) -> Layer:
        config, name = self._config, f"model.layers.{i}"
        return Layer(
            input_norm=self._norm(f"{name}.input_layernorm"),
            qkv_proj=qkv,
            o_proj=o,
            post_attention_norm=self._norm(f"{name}.post_attention_layernorm"),
            gate_up_proj=gate_up,
            down_proj=down,
            qk_norm=self._qk_norm(f"{name}.self_attn") if config.qk_norm else None,
            attn_sub_norm=self._norm(f"{name}.self_attn.attn_sub_norm") if config.sub_norms else None,
            ffn_sub_norm=self._norm(f"{name}.mlp.ffn_sub_norm") if config.sub_norms else None,
        )

    def _group(self, group: LinearGroup) -> Linear:
        fused = group.fused.name
        if len(group.parts) == 1 or self._source.shape(fused) or self._source.has(f"{fused}.weight"):
            return self._in_layer(fused)
        return SplitLinear([self._in_layer(part.name) for part in group.parts])

    def _linear(self, name: str, in_layer: bool = True) -> Linear:
        source, shape = self._source, self._source.shape(name)
        bias = np.array(source.tensor(f"{name}.bias")) if source.has(f"{name}.bias") else None
        if shape is None:
            int8_activations = in_layer and self._config.int8_activations
            return DenseLinear(source.tensor(f"{name}.weight"), bias, int8_activations)
        tables: Tables = self._tables if in_layer else "int8"
        linear = LutLinear(self._matrix(name, shape, tables), bias, tables)
        if source.has(f"{name}.perm"):
            return PermutedLinear(linear, np.array(source.tensor(f"{name}.perm")))
        return linear

    def _in_layer(self, name: str) -> Linear:
        """A linear inside a layer, with the norm of its own where it has one."""
        linear, eps = self._linear(name), self._config.linear_norm_eps
        if eps is None:
            return linear
        return NormedLinear(RMSNorm(np.array(self._source.tensor(f"{name}.rms_norm.weight")), eps), linear)

    def _matrix(self, name: str, shape: MatrixShape, tables: Tables) -> Matrix:
        matrix = self._mapped.matrix(name) if self._mapped else Matrix(shape, self._source.tiles(name))
        if choice := self._tuned.get(tuning.key(shape, tables)):
            matrix.tune(choice)
        self._matrices.append(matrix)
        return matrix

    def _embedding(self) -> Embedding:
        shape = self._source.shape(names.EMBEDDING)
        if shape is None:
            return DenseEmbedding(self._source.tensor(f"{names.EMBEDDING}.weight"))
        return PackedEmbedding(shape, self._source.tiles(names.EMBEDDING))

    def _qk_norm(self, name: str) -> RMSNorm:
        config, tensor = self._config, self._source.tensor
        q = (tensor(f"{name}.q_norm.weight"), config.num_attention_heads)
        k = (tensor(f"{name}.k_norm.weight"), config.num_key_value_heads)
        return RMSNorm.of_heads([q, k], config.rms_norm_eps)

    def _norm(self, name: str) -> RMSNorm:
        return RMSNorm(np.array(self._source.tensor(f"{name}.weight")), self._config.rms_norm_eps)


def _check_memory(source: Source, mmap: bool) -> None:
    """Raises PackedModelError where the weights exceed the memory that can be had. They count as the running
    instruction set holds them, mapped ones not at all, dense ones as float32."""
    needed = 0
    for linear in _held(source):
        if shape := source.shape(linear.name):
            needed += 0 if mmap else kernels.memory_size(shape)
        else:
            needed += 4 * linear.m * linear.k
    available = machine.available_memory()
    if needed + _RESERVE > available:
        raise PackedModelError(
            f"the weights need {needed / 1e9:.1f} GB of memory and {_RESERVE / 1e9:.1f} GB beside them, only"
            f" {available / 1e9:.1f} GB are left; close other programs, or convert with fewer bits"
        )


def _held(source: Source) -> list[names.Linear]:
    """Linears whose weights are copied into memory: all in the layers, and the output head."""
    linears = [names.tables(source.config)[-1]]
    for group in names.linear_groups(source.config):
        fused = group.fused.name
        is_fused = source.shape(fused) or source.has(f"{fused}.weight") or len(group.parts) == 1
        linears += (group.fused,) if is_fused else group.parts
    return linears
