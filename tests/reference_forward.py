"""A plain float64 forward pass of the Llama family and BitNet: the oracle of the decoder tests.

Written from the formulas, one full attention matrix per head, no cache and no tiles. Weights come by the names of a
packed model (fused linears); shares no code with tmac_llm.model but the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tmac_llm.model.config import ModelConfig

Weight = Callable[[str], np.ndarray | None]


def logits(config: ModelConfig, weight: Weight, ids: np.ndarray, *, int8: bool | None = None) -> np.ndarray:
    """float64 (n, vocab). weight(name): the tensor of that full name, or None.

    int8: quantise the inputs of the layers' linears per token as BitNet does; None: as the configuration says.
    """
    int8 = config.int8_activations if int8 is None else int8
    x = get(weight, "model.embed_tokens.weight")[ids].astype(np.float64)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        a = norm(x, get(weight, f"{layer}.input_layernorm.weight"), config.rms_norm_eps)
        qkv = linear(weight, f"{layer}.self_attn.qkv_proj", a, int8)
        mixed = attention(config, qkv, weight, f"{layer}.self_attn")
        sub = weight(f"{layer}.self_attn.attn_sub_norm.weight")
        mixed = mixed if sub is None else norm(mixed, sub, config.rms_norm_eps)
        x = x + linear(weight, f"{layer}.self_attn.o_proj", mixed, int8)
        b = norm(x, get(weight, f"{layer}.post_attention_layernorm.weight"), config.rms_norm_eps)
        gate, up = np.split(linear(weight, f"{layer}.mlp.gate_up_proj", b, int8), 2, axis=1)
        f = activation(config.hidden_act, gate) * up
        sub = weight(f"{layer}.mlp.ffn_sub_norm.weight")
        f = f if sub is None else norm(f, sub, config.rms_norm_eps)
        x = x + linear(weight, f"{layer}.mlp.down_proj", f, int8)
    x = norm(x, get(weight, "model.norm.weight"), config.rms_norm_eps)
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    return linear(weight, head, x, False)


def get(weight: Weight, name: str) -> np.ndarray:
    tensor = weight(name)
    assert tensor is not None, name
    return tensor


def linear(weight: Weight, name: str, x: np.ndarray, int8: bool) -> np.ndarray:
    if int8:
        scale = 127 / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-5)
        x = np.clip(np.round(x * scale), -128, 127) / scale
    y = x @ get(weight, f"{name}.weight").astype(np.float64).T
    bias = weight(f"{name}.bias")
    return y if bias is None else y + bias


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def activation(name: str, x: np.ndarray) -> np.ndarray:
    if name == "silu":
        return x / (1 + np.exp(-x))
    return np.maximum(x, 0) ** (2 if name == "relu2" else 1)


def attention(config: ModelConfig, qkv: np.ndarray, weight: Weight, module: str) -> np.ndarray:
    n, heads, kv, d = len(qkv), config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q, k, v = np.split(qkv.reshape(n, heads + 2 * kv, d), [heads, heads + kv], axis=1)
    if config.qk_norm:
        q = norm(q, get(weight, f"{module}.q_norm.weight"), config.rms_norm_eps)
        k = norm(k, get(weight, f"{module}.k_norm.weight"), config.rms_norm_eps)
    angles, factor = rope_angles(config, n)
    q, k = rotate(q, angles) * factor, rotate(k, angles) * factor
    result = np.empty((n, heads, d))
    for h in range(heads):
        group = h // (heads // kv)
        scores = q[:, h] @ k[:, group].T / math.sqrt(d)
        for i in range(n):
            first = max(0, i - config.sliding_window + 1) if config.sliding_window else 0
            visible = scores[i, first : i + 1]
            p = np.exp(visible - visible.max())
            result[i, h] = p / p.sum() @ v[first : i + 1, group]
    return result.reshape(n, heads * d)


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rope_angles(config: ModelConfig, n: int) -> tuple[np.ndarray, float]:
    """Angles (n, head_dim / 2) and the factor on cos and sin, formula by formula."""
    rope, d = config.rope, config.head_dim
    frequencies, factor = [], 1.0
    for i in range(d // 2):
        f = rope.theta ** (-2 * i / d)
        if rope.rope_type == "linear":
            f /= rope.factor
        elif rope.rope_type == "llama3":
            f = llama3(rope, f)
        elif rope.rope_type == "yarn":
            f = yarn(rope, f, i, d)
        frequencies.append(f)
    if rope.rope_type == "yarn":
        factor = rope.attention_factor or 0.1 * math.log(rope.factor) + 1
    return np.arange(n)[:, None] * np.array(frequencies), factor


def llama3(rope, f: float) -> float:
    wavelength, original = 2 * math.pi / f, rope.original_max_position_embeddings
    if wavelength > original / rope.low_freq_factor:
        return f / rope.factor
    if wavelength < original / rope.high_freq_factor:
        return f
    smooth = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return f * ((1 - smooth) / rope.factor + smooth)


def yarn(rope, f: float, i: int, d: int) -> float:
    original = rope.original_max_position_embeddings

    def corr(rotations: float) -> float:
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = max(math.floor(corr(rope.beta_fast)), 0), min(math.ceil(corr(rope.beta_slow)), d - 1)
    ramp = min(max((i - low) / (high - low if high > low else 0.001), 0), 1)
    return f / rope.factor * ramp + f * (1 - ramp)
