"""An independent forward pass in plain float64 numpy, with a loader of float and BitNet checkpoints.

The oracle of the engine's tests: no cache, no tiles, one token and one head after the other, nothing shared
with tmac_llm but the configuration object.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from tmac_llm.model.config import ModelConfig, RopeConfig

PROJECTIONS = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)
_RENAMED = {"inner_attn_ln": "attn_sub_norm", "ffn_layernorm": "ffn_sub_norm"}


# A small model, for tests that vary its fields.
CONFIG = ModelConfig.from_dict(
    {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 96,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
)


@dataclass
class Model:
    """A configuration, and float64 tensors under Hugging Face names, as the mathematics uses them."""

    config: ModelConfig
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def load(path: Path) -> Model:
    """Read a dense or BitNet checkpoint directory."""
    raw = json.loads((path / "config.json").read_text())
    stored: dict[str, np.ndarray] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            stored.update({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    quantization = raw.get("quantization_config") or {}
    weights = {}
    for name, tensor in stored.items():
        if name.endswith(".weight_scale") or not name.endswith((".weight", ".bias")):
            continue  # parts of quantised weights; `dequantized` fills those in
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        if tensor.dtype == np.uint8:
            scale = float(stored[f"{name}_scale"].astype(np.float64).reshape(-1)[0])
            divides = quantization.get("linear_class", "bitlinear") == "bitlinear"
            weights[name] = _unpack_ternary(tensor) * (1 / scale if divides else scale)
        elif quantization.get("quantization_mode") == "online" and name.endswith("_proj.weight"):
            weights[name] = _ternarise(tensor.astype(np.float64))
        else:
            weights[name] = tensor.astype(np.float64)
    return Model(ModelConfig.from_dict(raw), weights)


def forward(model: Model, token_ids: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(logits (n, vocab_size), residual streams (n, hidden_size) after embedding and each layer)."""
    config, w = model.config, model.weights
    x = w["model.embed_tokens.weight"][token_ids].astype(np.float64)
    residuals = [x.copy()]
    for i in range(config.num_hidden_layers):
        p = f"model.layers.{i}."
        a = _rms(x, w[p + "input_layernorm.weight"], config.rms_norm_eps)
        attended = _attention(model, p + "self_attn.", a)
        if config.sub_norms:
            attended = _rms(attended, w[p + "self_attn.attn_sub_norm.weight"], config.rms_norm_eps)
        x = x + _linear(model, p + "self_attn.o_proj", attended)
        b = _rms(x, w[p + "post_attention_layernorm.weight"], config.rms_norm_eps)
        inner = _act(config.hidden_act, _linear(model, p + "mlp.gate_proj", b)) * _linear(
            model, p + "mlp.up_proj", b
        )
        if config.sub_norms:
            inner = _rms(inner, w[p + "mlp.ffn_sub_norm.weight"], config.rms_norm_eps)
        x = x + _linear(model, p + "mlp.down_proj", inner)
        residuals.append(x.copy())
    head = w["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return _rms(x, w["model.norm.weight"], config.rms_norm_eps) @ head.T, residuals


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    """rms(found - expected) / rms(expected)."""
    difference = found.astype(np.float64) - expected
    return float(np.sqrt((difference**2).mean() / (expected.astype(np.float64) ** 2).mean()))


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None = None, first: int = 0
) -> np.ndarray:
    """float64 (n, heads, d) from q (n, heads, d) at positions first .. and k, v (first + n, kv_heads, d)."""
    n, heads, d = q.shape
    group = heads // k.shape[1]
    out = np.zeros((n, heads, d))
    for t in range(n):
        end = first + t + 1
        begin = 0 if window is None else max(end - window, 0)
        for h in range(heads):
            scores = k[begin:end, h // group].astype(np.float64) @ q[t, h].astype(np.float64) / math.sqrt(d)
            p = np.exp(scores - scores.max())
            out[t, h] = p / p.sum() @ v[begin:end, h // group].astype(np.float64)
    return out


def _attention(model: Model, p: str, a: np.ndarray) -> np.ndarray:
    config, w, n, d = model.config, model.weights, len(a), model.config.head_dim
    q = _linear(model, p + "q_proj", a).reshape(n, -1, d)
    k = _linear(model, p + "k_proj", a).reshape(n, -1, d)
    v = _linear(model, p + "v_proj", a).reshape(n, -1, d)
    if config.qk_norm:
        q = _rms(q, w[p + "q_norm.weight"], config.rms_norm_eps)
        k = _rms(k, w[p + "k_norm.weight"], config.rms_norm_eps)
    q, k = (np.stack([_rotate(x[t], t, config.rope) for t in range(n)]) for x in (q, k))
    return attention(q, k, v, config.sliding_window).reshape(n, -1)


def _linear(model: Model, name: str, x: np.ndarray) -> np.ndarray:
    weight = model.weights[f"{name}.weight"]
    if model.config.linear_norm_eps:
        x = _rms(x, model.weights[f"{name}.rms_norm.weight"], model.config.linear_norm_eps)
    if model.config.int8_activations:
        s = 127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5)
        y = np.clip(np.rint(x * s), -128, 127) @ weight.T / s
    else:
        y = x @ weight.T
    return y + model.weights.get(f"{name}.bias", 0.0)


def _rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def _act(name: str, x: np.ndarray) -> np.ndarray:
    return {"silu": lambda: x / (1 + np.exp(-x)), "relu": lambda: np.maximum(x, 0)}.get(
        name, lambda: np.maximum(x, 0) ** 2
    )()


def _rotate(x: np.ndarray, position: int, rope: RopeConfig) -> np.ndarray:
    """(heads, d) at one position; pairs (i, i + d / 2)."""
    half = x.shape[-1] // 2
    out = x.copy()
    for i in range(half):
        frequency, scaling = frequency_of(rope, i, 2 * half)
        c, s = math.cos(position * frequency) * scaling, math.sin(position * frequency) * scaling
        out[:, i] = x[:, i] * c - x[:, i + half] * s
        out[:, i + half] = x[:, i + half] * c + x[:, i] * s
    return out


def frequency_of(rope: RopeConfig, i: int, d: int) -> tuple[float, float]:
    """(radians per position of pair i of d / 2, factor of cos and sin)."""
    f = rope.theta ** (-2 * i / d)
    original = rope.original_max_position_embeddings or 0
    if rope.rope_type == "linear":
        return f / rope.factor, 1.0
    if rope.rope_type == "llama3":
        length = 2 * math.pi / f
        if length > original / rope.low_freq_factor:
            return f / rope.factor, 1.0
        if length < original / rope.high_freq_factor:
            return f, 1.0
        s = (original / length - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        return (1 - s) * f / rope.factor + s * f, 1.0
    if rope.rope_type == "yarn":
        low, high = (
            d * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
            for turns in (rope.beta_fast, rope.beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), d - 1)
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        scaling = rope.attention_factor or 0.1 * math.log(rope.factor) + 1
        return f / rope.factor * ramp + f * (1 - ramp), scaling
    return f, 1.0


def _unpack_ternary(packed: np.ndarray) -> np.ndarray:
    return np.concatenate([(packed >> shift & 3).astype(np.float64) - 1 for shift in (0, 2, 4, 6)])


def _ternarise(weight: np.ndarray) -> np.ndarray:
    mean = max(float(np.float32(np.abs(weight).mean())), 1e-5)
    return np.clip(np.rint(weight / mean), -1, 1) * mean


def dequantized(source: Any, model: Model) -> Model:
    """The model with every matrix as a packed model gives it: dequantised from its tiles, or its floats."""
    from tmac_llm import kernels
    from tmac_llm.packed import names

    def matrix(name: str) -> np.ndarray:
        shape = source.shape(name)
        if shape is None:
            return source.tensor(f"{name}.weight").astype(np.float64)
        codes, scales, zeros = kernels.unpack(shape, source.tiles(name))
        columns = np.arange(shape.k) // (shape.group_size or shape.k)
        scale = scales.astype(np.float64).reshape(shape.m, -1)[:, columns]
        zero = zeros.astype(np.float64).reshape(shape.m, -1)[:, columns] if zeros is not None else shape.zero
        weight = (codes - zero) * scale
        if source.has(f"{name}.perm"):
            weight[:, source.tensor(f"{name}.perm")] = weight.copy()
        return weight

    weights = dict(model.weights)
    for linear in names.tables(model.config):
        weights[f"{linear.name}.weight"] = matrix(linear.name)
    for group in names.linear_groups(model.config):
        fused = source.shape(group.fused.name) or source.has(f"{group.fused.name}.weight")
        if fused:
            ends = np.cumsum([part.m for part in group.parts])
            parts = np.split(matrix(group.fused.name), ends[:-1])
        else:
            parts = [matrix(part.name) for part in group.parts]
        for part, weight in zip(group.parts, parts, strict=True):
            weights[f"{part.name}.weight"] = weight
    return Model(model.config, weights)
