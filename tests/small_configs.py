"""Configurations of small models, for synthetic weights: two layers, every head and width small."""

from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
BITNET: dict[str, Any] = {
    **LLAMA,
    "model_type": "bitnet",
    "hidden_act": "relu2",
    "quantization_config": {"quant_method": "bitnet"},
}
QWEN3: dict[str, Any] = {**LLAMA, "model_type": "qwen3", "head_dim": 32}
