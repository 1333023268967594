"""Small random Hugging Face checkpoints of every supported kind, with a tokenizer, for tests.

checkpoint = write_checkpoint(tmp_path / "model", "qwen3", layers=2)
checkpoint.weights["model.layers.0.mlp.up_proj"]        # float32 (m, k): what the linear multiplies by
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

KINDS = ("llama", "mistral", "qwen2", "qwen3", "bitnet-offline", "bitnet-online", "llama-bitnet", "1bitllm")
TERNARY = ("bitnet-offline", "bitnet-online", "llama-bitnet", "1bitllm")
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
VOCAB_SIZE = 256 + len(SPECIAL) + 2  # the last two ids have no token

_DTYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass
class Checkpoint:
    """A checkpoint on disk, and what it means.

    config: its config.json. weights: float32 (m, k) of every linear, embedding and lm_head, as a decoder
    should use them. vectors: float32 norms and biases by the tensor names of a packed model.
    """

    path: Path
    config: dict[str, Any]
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)


def write_checkpoint(
    path: Path,
    kind: str = "llama",
    *,
    dtype: str = "bf16",
    shards: int = 1,
    tokenizer: bool = True,
    seed: int = 0,
    **config: Any,
) -> Checkpoint:
    """Write a checkpoint of one of KINDS into a new directory; `config` overrides fields of config.json."""
    path.mkdir(parents=True)
    made = Checkpoint(path, {**_CONFIG, **_kind_config(kind), **config})
    stored = _Tensors(kind, made, _DTYPES[dtype], np.random.default_rng(seed)).stored
    _write_weights(path, stored, shards)
    (path / "config.json").write_text(json.dumps(made.config, indent=2))
    if tokenizer:
        write_tokenizer(path)
    return made


def write_tokenizer(path: Path) -> None:
    """A byte-level tokenizer without merges: ids 0 .. 255 are bytes, then SPECIAL; with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": _TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 256, "eos_token_id": [257, 261]})
    )


def pack_bitnet(ternary: np.ndarray) -> np.ndarray:
    """int8 (m, k) of -1, 0, 1 as uint8 (R, k), R = ceil(m / 4): rows r, r+R, r+2R, r+3R share a byte."""
    quarter = -(-len(ternary) // 4)
    codes = np.zeros((4 * quarter, ternary.shape[1]), np.uint8)
    codes[: len(ternary)] = ternary + 1
    first, second, third, fourth = codes.reshape(4, quarter, -1)
    return first | second << 2 | third << 4 | fourth << 6


_CONFIG = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def _kind_config(kind: str) -> dict[str, Any]:
    """The fields of config.json that make a kind."""
    if kind in ("bitnet-offline", "bitnet-online"):
        mode = kind.removeprefix("bitnet-")
        quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}
        model = {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2"}
        return {**model, "quantization_config": quantization}
    if kind == "llama-bitnet":
        quantization = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
        return {**_kind_config("llama"), "quantization_config": quantization}
    if kind == "1bitllm":
        architectures = ["BitnetForCausalLM"]
        return {"architectures": architectures, "model_type": "llama", "weight_bits": 1, "input_bits": 8}
    window = {"sliding_window": 128} if kind == "mistral" else {}
    return {"architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind, **window}


class _Tensors:
    """The tensors of a checkpoint file, `stored`, filled in together with what they mean."""

    def __init__(self, kind: str, made: Checkpoint, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
        self.kind, self.made, self.dtype, self.rng = kind, made, dtype, rng
        self.stored: dict[str, np.ndarray] = {}
        config = made.config
        self._add_table("model.embed_tokens")
        for i in range(config["num_hidden_layers"]):
            self._add_layer(f"model.layers.{i}")
        self._add_vector("model.norm.weight", config["hidden_size"], 1.0)
        if not config["tie_word_embeddings"]:
            self._add_table("lm_head")

    def _add_layer(self, layer: str) -> None:
        config = self.made.config
        hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        for name, m, k in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
            bias = config.get("attention_bias", self.kind == "qwen2" and name != "o")
            self._add_linear(f"{attention}.{name}_proj", m, k, bias)
        for name, m, k in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            self._add_linear(f"{mlp}.{name}_proj", m, k, config.get("mlp_bias", False))
        for name in ("input", "post_attention"):
            self._add_vector(f"{layer}.{name}_layernorm.weight", hidden, 1.0)
        if self.kind == "qwen3":
            self._add_vector(f"{attention}.q_norm.weight", head_dim, 1.0)
            self._add_vector(f"{attention}.k_norm.weight", head_dim, 1.0)
        if self.kind in ("bitnet-offline", "bitnet-online", "1bitllm"):
            names = ("inner_attn_ln", "ffn_layernorm") if self.kind == "1bitllm" else (None, None)
            self._add_vector(f"{attention}.attn_sub_norm.weight", q, 1.0, names[0])
            self._add_vector(f"{mlp}.ffn_sub_norm.weight", inner, 1.0, names[1])

    def _add_table(self, name: str) -> None:
        config = self.made.config
        shape = (config["vocab_size"], config["hidden_size"])
        table = (0.5 * self.rng.standard_normal(shape)).astype(self.dtype)
        self.stored[f"{name}.weight"] = table
        self.made.weights[name] = table.astype(np.float32)

    def _add_vector(self, name: str, length: int, mean: float, other: str | None = None) -> None:
        """other: how the file calls the module, where it differs."""
        vector = (mean + 0.1 * self.rng.standard_normal(length)).astype(self.dtype)
        module = name.split(".")[-2]
        self.stored[name.replace(module, other) if other else name] = vector
        self.made.vectors[name] = vector.astype(np.float32)

    def _add_linear(self, name: str, m: int, k: int, bias: bool) -> None:
        master = (self.rng.standard_normal((m, k)) / np.sqrt(k)).astype(self.dtype)
        if bias:
            self._add_vector(f"{name}.bias", m, 0.0)
        if (self.made.config.get("quantization_config") or {}).get("use_rms_norm"):
            self._add_vector(f"{name}.rms_norm.weight", k, 1.0)
        self.stored[f"{name}.weight"] = master
        values = master.astype(np.float32)
        if self.kind not in TERNARY:
            self.made.weights[name] = values
            return
        scale = np.float32(max(np.abs(values).mean(dtype=np.float64), 1e-5))
        ternary = np.clip(np.rint(values * (np.float32(1) / scale)), -1, 1).astype(np.int8)
        if self.kind in ("bitnet-offline", "llama-bitnet"):
            divides = self.kind == "llama-bitnet"
            stored_scale = np.array([1 / scale if divides else scale], ml_dtypes.bfloat16)
            self.stored[f"{name}.weight"] = pack_bitnet(ternary)
            self.stored[f"{name}.weight_scale"] = stored_scale
            scale = np.float32(1 / float(stored_scale[0]) if divides else float(stored_scale[0]))
        self.made.weights[name] = ternary * scale


def _write_weights(path: Path, stored: dict[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        save_file(stored, path / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        file_name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(stored.items())[i::shards])
        save_file(part, path / file_name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
