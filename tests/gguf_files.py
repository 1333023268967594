"""GGUF files for tests, written by the `gguf` package from Hugging Face checkpoints.

The names and the order of q and k are told here once more, as the oracle of the reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open

TYPES = {t.name: t for t in Type}
LLAMA_PRE = "llama-bpe"


def gguf_name(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight."""
    table = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.attn_sub_norm": "attn_sub_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "mlp.ffn_sub_norm": "ffn_sub_norm",
    }
    module, _, kind = name.rpartition(".")
    if module in table:
        return f"{table[module]}.{kind}"
    layer, _, inner = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{table[inner]}.{kind}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order of architecture "llama": the two halves of a head alternate."""
    d = len(weight) // heads
    out = np.empty_like(weight)
    for h in range(heads):
        for i in range(d // 2):
            out[h * d + 2 * i] = weight[h * d + i]
            out[h * d + 2 * i + 1] = weight[h * d + d // 2 + i]
    return out


def pack_i2_s(ternary: np.ndarray, scale: float) -> np.ndarray:
    """bitnet.cpp's I2_S for x86: blocks of 128 values over the whole matrix, then 32 bytes with the scale."""
    codes = (ternary + 1).astype(np.uint8).reshape(-1, 4, 32)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return np.concatenate(
        [packed.reshape(-1), np.array([scale], "<f4").view(np.uint8), np.zeros(28, np.uint8)]
    )


def random_blocks(kind: str, shape: tuple[int, int], rng: np.random.Generator, scale: float) -> np.ndarray:
    """uint8 rows of any block type with random codes; the float16 scales in them are small and finite."""
    n_values, n_bytes = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // n_values, n_bytes)).astype(np.uint8)
    at = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,)}[
        kind
    ]
    for i in at:
        d = (scale * (0.5 + rng.random(blocks.shape[:2]))).astype(np.float16)
        blocks[..., i : i + 2] = d[..., None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config.json, tensors as float32) of a safetensors directory."""
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "np") as stored:
            tensors |= {name: stored.get_tensor(name).astype(np.float32) for name in stored.keys()}  # noqa: SIM118
    return json.loads((path / "config.json").read_text()), tensors


def write_metadata(
    writer: gguf.GGUFWriter, config: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> None:
    """The keys that llama.cpp's converter writes, from a config.json of transformers 4 or 5."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    for key, value in (changes or {}).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(key, value)


def llama3_divisors(rope: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """What rope_freqs.weight holds for llama3 scaling."""
    frequency = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = (turns - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    return np.where(turns < low, factor, np.where(turns > high, 1.0, blended)).astype(np.float32)


def write_vocabulary(writer: gguf.GGUFWriter, vocab_size: int, template: str | None = None) -> None:
    """Byte-level BPE: the 256 bytes, two merges' results where there is room, then control tokens."""
    from tokenizers import pre_tokenizers

    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab_size - 4]
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    for special in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"):
        tokens.append(special)
        kinds.append(gguf.TokenType.CONTROL)
    tokens.append("<think>")
    kinds.append(gguf.TokenType.USER_DEFINED)
    while len(tokens) < vocab_size:
        kinds.append(gguf.TokenType.UNUSED)
        tokens.append(f"[PAD{len(tokens)}]")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(LLAMA_PRE)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([])
    writer.add_bos_token_id(tokens.index("<|begin_of_text|>"))
    writer.add_eos_token_id(tokens.index("<|end_of_text|>"))
    writer.add_eot_token_id(tokens.index("<|eot_id|>"))
    if template:
        writer.add_chat_template(template)


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    architecture: str = "llama",
    kind: str | Callable[[str], str] = "F32",
    changes: Mapping[str, Any] | None = None,
    vocabulary: Callable[[gguf.GGUFWriter, int], None] | None = write_vocabulary,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Write a file with `tensors` (float32, Hugging Face names), matrices as `kind`, which may depend on the name.

    Returns what the file holds, dequantised by the gguf package, under Hugging Face names and in that order.
    """
    writer = gguf.GGUFWriter(path, architecture, **options)
    write_metadata(writer, config, changes)
    if vocabulary:
        vocabulary(writer, config["vocab_size"])
    held = {}
    for name, tensor in tensors.items():
        of = (kind if isinstance(kind, str) else kind(name)) if tensor.ndim == 2 else "F32"
        stored, heads = tensor, None
        if architecture != "llama" or name.endswith(".scale"):
            heads = None
        elif "q_proj" in name:
            heads = config["num_attention_heads"]
        elif "k_proj" in name:
            heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        if heads:
            stored = interleaved(tensor, heads)
        held[name] = add_tensor(writer, gguf_name(name), stored, of)
        if heads:
            order = interleaved(np.arange(len(tensor)), heads)
            held[name] = held[name][np.argsort(order)]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, config["head_dim"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray, kind: str) -> np.ndarray:
    """Quantise with llama.cpp's functions, as the package has them; the values that the result stands for."""
    if kind == "F32":
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
        return tensor
    stored = gguf.quants.quantize(np.ascontiguousarray(tensor, np.float32), TYPES[kind])
    writer.add_tensor(name, stored, raw_dtype=TYPES[kind])
    return gguf.quants.dequantize(stored, TYPES[kind])
