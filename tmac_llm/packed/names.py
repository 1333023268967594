"""The matrices and vectors that a model of a given configuration consists of; knows no files and no bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tmac_llm.model.config import ModelConfig

EMBEDDING = "model.embed_tokens"
LM_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer: m outputs, k inputs; `bias`: a float32 (m,) is added."""

    name: str
    m: int
    k: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linear layers of one input: stored as one matrix of their stacked rows, `fused`, or each by itself.

    Those with norms of their own are always stored each by itself: their inputs differ.
    """

    fused: Linear
    parts: tuple[Linear, ...]


def tables(config: ModelConfig) -> tuple[Linear, ...]:
    """The embedding and, unless it is tied to the embedding, the output head: (vocab_size, hidden_size)."""
    names = (EMBEDDING,) if config.tie_word_embeddings else (EMBEDDING, LM_HEAD)
    return tuple(Linear(name, config.vocab_size, config.hidden_size) for name in names)


def linear_groups(config: ModelConfig) -> Iterator[LinearGroup]:
    """All linear layers inside the decoder layers, in the order in which a forward pass uses them."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    for i in range(config.num_hidden_layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        yield _group(
            attention, "qkv_proj", {"q_proj": q, "k_proj": kv, "v_proj": kv}, hidden, config.qkv_bias
        )
        yield _group(attention, "o_proj", {"o_proj": hidden}, q, config.o_bias)
        yield _group(mlp, "gate_up_proj", {"gate_proj": inner, "up_proj": inner}, hidden, config.mlp_bias)
        yield _group(mlp, "down_proj", {"down_proj": hidden}, inner, config.mlp_bias)


def norms(config: ModelConfig) -> dict[str, int]:
    """Tensor name -> length of every RMSNorm weight."""
    heads = config.num_attention_heads * config.head_dim
    lengths = {}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        lengths[f"{layer}.input_layernorm.weight"] = config.hidden_size
        lengths[f"{layer}.post_attention_layernorm.weight"] = config.hidden_size
        if config.qk_norm:
            lengths[f"{layer}.self_attn.q_norm.weight"] = config.head_dim
            lengths[f"{layer}.self_attn.k_norm.weight"] = config.head_dim
        if config.sub_norms:
            lengths[f"{layer}.self_attn.attn_sub_norm.weight"] = heads
            lengths[f"{layer}.mlp.ffn_sub_norm.weight"] = config.intermediate_size
    if config.linear_norm_eps is not None:
        for group in linear_groups(config):
            lengths |= {f"{part.name}.rms_norm.weight": part.k for part in group.parts}
    lengths["model.norm.weight"] = config.hidden_size
    return lengths


def _group(module: str, fused: str, parts: dict[str, int], k: int, bias: bool) -> LinearGroup:
    return LinearGroup(
        Linear(f"{module}.{fused}", sum(parts.values()), k, bias),
        tuple(Linear(f"{module}.{name}", m, k, bias) for name, m in parts.items()),
    )
