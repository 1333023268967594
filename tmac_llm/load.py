"""Builds a decoder from a packed model, or from anything that reads like one; the one module that does.

Knows tensor names and the memory of the machine; does no arithmetic and reads no file itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt
from threadpoolctl import threadpool_limits

from tmac_llm import kernels, machine
from tmac_llm.errors import PackedModelError, UsageError
from tmac_llm.kernels import Matrix, MatrixShape, Tables
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.decoder import Decoder, Layer
from tmac_llm.model.embedding import DenseEmbedding, Embedding, PackedEmbedding
from tmac_llm.model.linear import DenseLinear, Linear, LutLinear, SplitLinear
from tmac_llm.model.norm import RMSNorm
from tmac_llm.packed import names
from tmac_llm.packed.names import LinearGroup


class Source(Protocol):
    """What a decoder is built from; PackedModel and SyntheticModel have it. Contents were checked when it was opened."""

    @property
    def config(self) -> ModelConfig:
        """Dimensions and options."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this full name."""

    def shape(self, matrix: str) -> MatrixShape | None:
        """Shape of a packed matrix, None for a float one."""

    def tiles(self, matrix: str) -> npt.NDArray[Any]:
        """uint8 bytes of a packed matrix."""

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A float tensor by its full name."""


def load_decoder(source: Source, tables: str | None = None) -> Decoder:
    """Copy the weights into memory in the order that the running instruction set reads, and build the decoder.

    tables: "exact" or "int8" for the layers' linears; None: exact where the model quantises its activations to int8.
    Raises PackedModelError where the weights do not fit into memory, UsageError for tables that the model cannot use.
    """
    config = source.config
    _check_memory(source)
    builder = _Builder(source, _tables(config, tables))
    embedding: Embedding = builder.embedding()
    groups = list(names.linear_groups(config))
    layers = [builder.layer(i, groups[4 * i : 4 * i + 4]) for i in range(config.num_hidden_layers)]
    head_name = names.EMBEDDING if config.tie_word_embeddings else names.LM_HEAD
    head = builder.linear(head_name, "int8", int8_activations=False)
    n_threads = kernels.n_threads()
    # Packed linears use our own threads, and numpy's BLAS gets small products only, where its threads would just fight
    # them; attention over large chunks brings threads of its own.
    threadpool_limits(1 if builder.n_packed else n_threads, user_api="blas")
    norm = RMSNorm(source.tensor("model.norm.weight"), config.rms_norm_eps)
    return Decoder(config, embedding, layers, norm, head, n_threads if builder.n_packed else 1)


class _Builder:
    """Turns names into layers. n_packed: matrices loaded as tables so far."""

    def __init__(self, source: Source, tables: Tables) -> None:
        self._source, self._tables = source, tables
        self.n_packed = 0

    def embedding(self) -> Embedding:
        shape = self._source.shape(names.EMBEDDING)
        if shape is None:
            return DenseEmbedding(self._source.tensor(f"{names.EMBEDDING}.weight"))
        return PackedEmbedding(shape, self._source.tiles(names.EMBEDDING))

    def layer(self, index: int, groups: list[LinearGroup]) -> Layer:
        qkv, o, gate_up, down = (self._group(group) for group in groups)
        norm = f"model.layers.{index}"
        input_norm, post_norm = (
            self._norm(f"{norm}.input_layernorm"),
            self._norm(f"{norm}.post_attention_layernorm"),
        )
        assert input_norm is not None and post_norm is not None
        return Layer(
            input_norm=input_norm,
            qkv=qkv,
            q_norm=self._norm(f"{norm}.self_attn.q_norm"),
            k_norm=self._norm(f"{norm}.self_attn.k_norm"),
            attn_sub_norm=self._norm(f"{norm}.self_attn.attn_sub_norm"),
            o=o,
            post_norm=post_norm,
            gate_up=gate_up,
            ffn_sub_norm=self._norm(f"{norm}.mlp.ffn_sub_norm"),
            down=down,
        )

    def linear(self, name: str, tables: Tables, int8_activations: bool) -> Linear:
        source, shape = self._source, self._source.shape(name)
        bias = source.tensor(f"{name}.bias") if source.has(f"{name}.bias") else None
        if shape is None:
            return DenseLinear(source.tensor(f"{name}.weight"), bias, int8_activations)
        self.n_packed += 1
        return LutLinear(Matrix(shape, source.tiles(name)), bias, tables)

    def _group(self, group: LinearGroup) -> Linear:
        exact = self._source.config.int8_activations
        parts = (group.fused,) if self._has_matrix(group.fused.name) else group.parts
        linears = [self.linear(part.name, self._tables, exact) for part in parts]
        return linears[0] if len(linears) == 1 else SplitLinear(linears)

    def _has_matrix(self, name: str) -> bool:
        return self._source.shape(name) is not None or self._source.has(f"{name}.weight")

    def _norm(self, name: str) -> RMSNorm | None:
        if not self._source.has(f"{name}.weight"):
            return None
        return RMSNorm(self._source.tensor(f"{name}.weight"), self._source.config.rms_norm_eps)


def _tables(config: ModelConfig, asked: str | None) -> Tables:
    if asked in (None, "exact") and config.int8_activations:
        return "exact"
    if asked in (None, "int8"):
        return "int8"
    if asked == "exact":
        raise UsageError(
            "tables exact: only for models with int8 activations (BitNet); this one has float activations"
        )
    raise UsageError(f"tables {asked}: expected int8 or exact")


def _check_memory(source: Source) -> None:
    config = source.config
    linears = [part for group in names.linear_groups(config) for part in (group.fused, *group.parts)]
    matrices = [*(linear.name for linear in linears), *(table.name for table in names.tables(config))]
    shapes = [source.shape(name) for name in matrices]
    needed = sum(shape.packed_size for shape in shapes if shape)
    needed += sum(
        4 * source.tensor(f"{name}.weight").size for name in matrices if source.has(f"{name}.weight")
    )
    free = machine.available_memory()
    if needed > free:
        raise PackedModelError(
            f"the weights need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; convert with fewer --bits, "
            "take a smaller model or close other programs"
        )
