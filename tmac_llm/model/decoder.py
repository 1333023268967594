"""The forward pass of the Llama family and of BitNet b1.58; knows no files, no tensor names and no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

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
Operation = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. qkv_proj and gate_up_proj give their parts side by side; linears hold biases."""

    input_norm: RMSNorm
    qkv_proj: Linear
    o_proj: Linear
    post_attention_norm: RMSNorm
    gate_up_proj: Linear
    down_proj: Linear
    qk_norm: RMSNorm | None = None  # Qwen3: over head_dim of all heads of q and k, before the rotation
    attn_sub_norm: RMSNorm | None = None  # BitNet: before o_proj
    ffn_sub_norm: RMSNorm | None = None  # BitNet: before down_proj


class Decoder:
    """A decoder. Weights are read only; scratch arrays make it usable by one thread at a time.

    Every part is bound to these arrays before the first pass: a call between two linears costs little more than
    numpy itself. What depends on the position is bound once per pass, for all layers.
    """

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
        self._passes: dict[int, _Pass] = {}

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
        bound = self._bound(n)
        s = bound.scratch
        self._rope.fill(s.rotation, cache.length)
        append = cache.bind_append(s.k, s.v)
        attend = self._attention.bind(s.q, cache.layers[0], cache.length, s.heads)
        self._embed_tokens(token_ids, s.x)
        for (before, after), layer_cache in zip(bound.layers, cache.layers, strict=True):
            if observe:
                observe(s.x)
            for operation in before:
                operation()
            append(layer_cache)
            attend(layer_cache)
            for operation in after:
                operation()
        if observe:
            observe(s.x)
        cache.advance(n)
        if logits == "none":
            return None
        if logits == "all":
            self._norm.bind(s.x, s.h)()
            return self._lm_head(s.h)
        for operation in bound.head:
            operation()
        return s.logits

    def _bound(self, n: int) -> _Pass:
        """The operations of passes over n tokens: those of one token stay, of others the latest."""
        if n not in self._passes:
            for other in self._passes.keys() - {1}:
                del self._passes[other]
            s = _Scratch(self.config, n, self._rope.rotation(n))
            # The same for all layers: fewer objects come back into the caches after each linear.
            rotate = self._rope.bind(s.qk, s.rotation, s.rotated)
            activate = self._activation.bind(s.gate, s.up, s.inner)
            layers = [
                (_before_attention(layer, s, rotate), _after_attention(layer, s, activate))
                for layer in self._layers
            ]
            head: list[Operation] = [
                self._norm.bind(s.last_x, s.last_h),
                self._lm_head.bind(s.last_h, s.logits),
            ]
            self._passes[n] = _Pass(s, layers, head)
        return self._passes[n]


def _before_attention(layer: Layer, s: _Scratch, rotate: Operation) -> list[Operation]:
    """Rotated q, k, v of norm(x)."""
    operations: list[Operation] = [layer.input_norm.bind(s.x, s.h), layer.qkv_proj.bind(s.h, s.qkv)]
    if layer.qk_norm:
        operations.append(layer.qk_norm.bind(s.qk, s.qk))
    return [*operations, rotate]


def _after_attention(layer: Layer, s: _Scratch, activate: Operation) -> list[Operation]:
    """x += o_proj(attended); x += down_proj(act(gate) * up), gate and up of norm(x)."""
    operations: list[Operation] = []
    if layer.attn_sub_norm:
        operations.append(layer.attn_sub_norm.bind(s.attended, s.attended))
    operations += [layer.o_proj.bind(s.attended, s.h), s.add_h_to_x]
    operations += [
        layer.post_attention_norm.bind(s.x, s.h),
        layer.gate_up_proj.bind(s.h, s.gate_up),
        activate,
    ]
    if layer.ffn_sub_norm:
        operations.append(layer.ffn_sub_norm.bind(s.inner, s.inner))
    return [*operations, layer.down_proj.bind(s.inner, s.h), s.add_h_to_x]


class _Pass(NamedTuple):
    """What a pass over n tokens calls, bound to its arrays once. Holds no decoder and no cache: no memory outlives
    its last user."""

    scratch: _Scratch
    layers: list[tuple[list[Operation], list[Operation]]]  # before and after attention
    head: list[Operation]  # logits of the last token


class _Scratch:
    """The float32 arrays of a pass over n tokens; the indented names are views of those above them."""

    def __init__(self, config: ModelConfig, n: int, rotation: Rotation) -> None:
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
        self.rotation = rotation  # of the positions of these tokens
        x, h = self.x.reshape(-1), self.h.reshape(-1)  # numpy is fastest with one axis
        self.add_h_to_x = partial(np.add, x, h, x)
