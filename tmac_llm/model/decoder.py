"""The forward pass of the Llama family and of BitNet b1.58; knows no files, no tensor names and no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tmac_llm.kernels import Matrix
from tmac_llm.model.activation import GatedActivation
from tmac_llm.model.attention import Attention
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.embedding import Embedding
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.model.linear import Linear
from tmac_llm.model.norm import RMSNorm
from tmac_llm.model.rope import RotaryEmbedding, Rotation

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. qkv_proj and gate_up_proj give their parts side by side; linears hold biases."""

    input_norm: RMSNorm
    qkv_proj: Linear
    o_proj: Linear
    post_attention_norm: RMSNorm
    gate_up_proj: Linear
    down_proj: Linear
    q_norm: RMSNorm | None = None  # Qwen3: over head_dim, before the rotation
    k_norm: RMSNorm | None = None
    attn_sub_norm: RMSNorm | None = None  # BitNet: before o_proj
    ffn_sub_norm: RMSNorm | None = None  # BitNet: before down_proj


class Decoder:
    """A decoder. Weights are read only; scratch arrays make it usable by one thread at a time."""

    def __init__(
        self,
        config: ModelConfig,
        embed_tokens: Embedding,
        layers: Sequence[Layer],
        norm: RMSNorm,
        lm_head: Linear,
        matrices: Sequence[Matrix] = (),
    ) -> None:
        self.config = config
        self.matrices = tuple(matrices)  # all packed ones: what one token reads
        self._embed_tokens, self._layers, self._norm, self._lm_head = embed_tokens, layers, norm, lm_head
        heads = config.num_attention_heads + config.num_key_value_heads
        # q and k scaled alike: the scores of attention are divided by sqrt(head_dim).
        self._rope = RotaryEmbedding(config.rope, config.head_dim, heads, scale=config.head_dim**-0.25)
        self._attention = Attention(config)  # grouped heads; a sliding window for Mistral
        self._activation = GatedActivation(config.hidden_act)  # silu, or relu2 for BitNet
        self._scratch = {1: _Scratch(config, 1)}

    def forward(
        self,
        token_ids: npt.NDArray[np.integer[Any]],
        cache: KVCache,
        logits: Literal["last", "all", "none"] = "last",
        observe: Callable[[Floats], None] | None = None,
    ) -> Floats | None:
        """Run the tokens that follow those in `cache` and add them to it.

        token_ids: (n,), n >= 1. Returns float32 logits: (1, vocab_size) after the last token, overwritten by
        the next call; (n, vocab_size); or None. observe: gets the residual stream, float32 (n, hidden_size),
        after the embedding and after every layer. Raises ContextLengthError where the cache is full,
        KernelError for activations that are not finite; the cache then keeps its length.
        """
        n = len(token_ids)
        cache.reserve(n)
        s = self._scratch_for(n)
        rotation = self._rope.rotation(cache.length, n)
        self._embed_tokens(token_ids, s.x)
        for i, layer in enumerate(self._layers):
            if observe:
                observe(s.x)
            self._attend(layer, i, s, rotation, cache)
            self._feed_forward(layer, s)
        if observe:
            observe(s.x)
        cache.advance(n)
        if logits == "none":
            return None
        x, h, out = (s.x, s.h, None) if logits == "all" else (s.last_x, s.last_h, s.logits)
        self._norm(x, h)
        return self._lm_head(h, out)

    def _attend(self, layer: Layer, i: int, s: _Scratch, rotation: Rotation, cache: KVCache) -> None:
        """x += o_proj(attention(rotated q, k, v of norm(x)))."""
        layer.input_norm(s.x, s.h)
        layer.qkv_proj(s.h, s.qkv)
        if layer.q_norm and layer.k_norm:
            layer.q_norm(s.q, s.q)
            layer.k_norm(s.k, s.k)
        self._rope.rotate(s.qk, rotation, s.rotated)
        self._attention(s.q, cache.append(i, s.k, s.v), cache.length, s.heads)
        if layer.attn_sub_norm:
            layer.attn_sub_norm(s.attended, s.attended)
        layer.o_proj(s.attended, s.h)
        np.add(s.x, s.h, out=s.x)

    def _feed_forward(self, layer: Layer, s: _Scratch) -> None:
        """x += down_proj(act(gate) * up), gate and up of norm(x)."""
        layer.post_attention_norm(s.x, s.h)
        layer.gate_up_proj(s.h, s.gate_up)
        self._activation(s.gate, s.up, s.inner)
        if layer.ffn_sub_norm:
            layer.ffn_sub_norm(s.inner, s.inner)
        layer.down_proj(s.inner, s.h)
        np.add(s.x, s.h, out=s.x)

    def _scratch_for(self, n: int) -> _Scratch:
        """Arrays for passes of n tokens: those of one token stay, of others the latest."""
        if n not in self._scratch:
            self._scratch = {1: self._scratch[1], n: _Scratch(self.config, n)}
        return self._scratch[n]


class _Scratch:
    """The float32 arrays of a pass over n tokens; the indented names are views of those above them."""

    def __init__(self, config: ModelConfig, n: int) -> None:
        heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        self.x = np.empty((n, hidden), np.float32)  # the residual stream
        self.last_x = self.x[-1:]
        self.h = np.empty((n, hidden), np.float32)
        self.last_h = self.h[-1:]
        self.qkv = np.empty((n, (heads + 2 * kv_heads) * d), np.float32)
        by_head = self.qkv.reshape(n, -1, d)
        self.qk = by_head[:, : heads + kv_heads]
        self.q, self.k, self.v = np.split(by_head, [heads, heads + kv_heads], axis=1)
        self.rotated = np.empty((n, heads + kv_heads, d), np.float32)
        self.attended = np.empty((n, heads * d), np.float32)
        self.heads = self.attended.reshape(n, heads, d)
        self.gate_up = np.empty((n, 2 * inner), np.float32)
        self.gate, self.up = np.split(self.gate_up, 2, axis=1)
        self.inner = np.empty((n, inner), np.float32)
        self.logits = np.empty((1, config.vocab_size), np.float32)
