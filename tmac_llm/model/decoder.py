"""The decoder: token ids to logits. Llama and BitNet differ only by the options visible in `_layer`; knows no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tmac_llm.model.activation import ACTIVATIONS, gated
from tmac_llm.model.attention import Attention
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.embedding import Embedding
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.model.linear import Linear
from tmac_llm.model.norm import RMSNorm
from tmac_llm.model.rope import Rope, Turn, rotate

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one decoder layer; None where the architecture has no such norm."""

    input_norm: RMSNorm
    qkv: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    attn_sub_norm: RMSNorm | None
    o: Linear
    post_norm: RMSNorm
    gate_up: Linear
    ffn_sub_norm: RMSNorm | None
    down: Linear


class Scratch:
    """The arrays of one pass over n tokens; q, k, v and qk are views of qkv by heads."""

    def __init__(self, config: ModelConfig, n: int) -> None:
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.x, self.h = (np.empty((n, config.hidden_size), np.float32) for _ in range(2))
        self.qkv = np.empty((n, (heads + 2 * kv_heads) * dim), np.float32)
        by_head = self.qkv.reshape(n, -1, dim)
        self.q, self.k, self.v = np.split(by_head, [heads, heads + kv_heads], axis=1)
        self.qk = by_head[:, : heads + kv_heads]
        self.attention = np.empty((n, heads * dim), np.float32)
        self.gate_up = np.empty((n, 2 * config.intermediate_size), np.float32)
        self.ffn = np.empty((n, config.intermediate_size), np.float32)


class Decoder:
    """A decoder-only transformer of the Llama family. n_threads: threads of attention over large chunks.

    n_params: weights of all matrices, a tied embedding once. n_bytes: bytes that decoding one token reads of them.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Embedding,
        layers: list[Layer],
        norm: RMSNorm,
        head: Linear,
        n_threads: int = 1,
    ) -> None:
        self.config = config
        self._embedding, self._layers, self._norm, self._head = embedding, layers, norm, head
        self._rope = Rope(config.rope, config.head_dim)
        self._attention = Attention(config, n_threads)
        self._act = ACTIVATIONS[config.hidden_act]
        self._one = Scratch(config, 1)
        self._many = self._one
        self._head_in, self._head_out = self._one.h, np.empty((1, config.vocab_size), np.float32)
        linears = [linear for layer in layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        self.n_bytes = sum(linear.n_bytes for linear in [*linears, head])
        tables = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        self.n_params = sum(linear.m * linear.k for linear in linears) + tables

    def forward(
        self, ids: Ids, cache: KVCache, logits: Literal["last", "all", "none"] = "last"
    ) -> Floats | None:
        """Feed ids (n_tokens,), which continue the cache, and append their keys and values to it.

        Returns float32 (1 or n_tokens, vocab_size) logits after the last or after each id; those of "last" are valid
        until the next call. Raises ContextLengthError where the cache cannot hold n_tokens more; an exception leaves
        the cache as it was.
        """
        n = len(ids)
        cache.reserve(n)
        scratch, turn = self._scratch(n), self._rope.at(cache.length, n)
        self._embedding(ids, scratch.x)
        for index, layer in enumerate(self._layers):
            self._layer(index, layer, scratch, turn, cache)
        cache.advance(n)
        if logits == "none":
            return None
        if logits == "all":
            return self._head(
                self._norm(scratch.x, scratch.h), np.empty((n, self.config.vocab_size), np.float32)
            )
        return self._head(self._norm(scratch.x[-1:], self._head_in), self._head_out)

    def _layer(self, index: int, layer: Layer, s: Scratch, turn: Turn, cache: KVCache) -> None:
        layer.qkv(layer.input_norm(s.x, s.h), s.qkv)
        if layer.q_norm and layer.k_norm:
            layer.q_norm(s.q, s.q)
            layer.k_norm(s.k, s.k)
        rotate(s.qk, turn)
        cache.write(index, s.k, s.v)
        self._attention(s.q, cache, index, s.attention)
        if layer.attn_sub_norm:
            layer.attn_sub_norm(s.attention, s.attention)
        s.x += layer.o(s.attention, s.h)

        layer.gate_up(layer.post_norm(s.x, s.h), s.gate_up)
        gated(self._act, s.gate_up, s.ffn)
        if layer.ffn_sub_norm:
            layer.ffn_sub_norm(s.ffn, s.ffn)
        s.x += layer.down(s.ffn, s.h)

    def _scratch(self, n: int) -> Scratch:
        """Arrays for n tokens: those of one token are kept for good, of longer chunks the last."""
        if n == 1:
            return self._one
        if len(self._many.x) != n:
            self._many = Scratch(self.config, n)
        return self._many
