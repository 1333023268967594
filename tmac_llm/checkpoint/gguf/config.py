"""The metadata of a GGUF file as a Hugging Face config.json; knows names of tensors, not their contents."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import show

# general.architecture -> the fields of config.json that it stands for.
_BITNET = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_act": "relu2",
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"},
    "bitnet": {  # 1bitLLM's models
        "architectures": ["BitnetForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "weight_bits": 1,
        "input_bits": 8,
    },
    "bitnet-b1.58": _BITNET,
    "bitnet-25": _BITNET,
}
# Keys, after the architecture's name, that change the result and are not computed, with the values that do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "logit_scale": (1.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "attention.scale": (),
    "attention.clamp_kqv": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "use_parallel_residual": (False,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
}


class _Metadata:
    """Typed access to the keys of one architecture."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.where, self._d = where, metadata
        self.architecture = self._required("general.architecture", str)
        if self.architecture not in ARCHITECTURES:
            raise UnsupportedError(
                f"{where}: general.architecture is {show(self.architecture)}, which is not supported; supported:"
                f" {', '.join(ARCHITECTURES)}"
            )

    def get(self, key: str) -> Any:
        return self._d.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A number, or a list of equal ones: newer files give heads and widths layer by layer."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, list) and value:
            if len(set(value)) > 1:
                raise UnsupportedError(
                    f"{self.where}: {self.architecture}.{key} differs from layer to layer, which is not supported"
                )
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._bad(key, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._bad(key, "a finite number")
        # Files hold float32: 1e-05 rather than 9.999999747378752e-06.
        return float(f"{value:.7g}") if isinstance(value, float) else float(value)

    def text(self, key: str, default: str) -> str:
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, str):
            raise self._bad(key, "a text")
        return value

    def _required(self, key: str, kind: type) -> Any:
        value = self._d.get(key)
        if not isinstance(value, kind):
            found = "nothing" if value is None else show(value)
            raise CheckpointError(f"{self.where}: metadata {key} must be a {kind.__name__}, found {found}")
        return value

    def _bad(self, key: str, expected: str) -> CheckpointError:
        found = "nothing" if self.get(key) is None else show(self.get(key))
        return CheckpointError(
            f"{self.where}: metadata {self.architecture}.{key} must be {expected}, found {found}"
        )


def to_config(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    frequencies: list[float] | None,
    types: Collection[str],
    where: str,
) -> dict[str, Any]:
    """The config.json that describes the same model.

    tensors: name in the file -> shape. frequencies: what each rotation frequency is divided by (rope_freqs.weight).
    types: tensor types of the linears. Raises CheckpointError, UnsupportedError.
    """
    m = _Metadata(metadata, where)
    for key, neutral in _NEUTRAL.items():
        if m.get(key) is not None and m.get(key) not in neutral:
            raise UnsupportedError(
                f"{where}: {m.architecture}.{key} is {show(m.get(key))}, which is not computed"
            )
    hidden, heads = m.integer("embedding_length"), m.integer("attention.head_count")
    head_dim = m.integer("attention.key_length", hidden // max(heads, 1))
    if m.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{where}: keys and values of different lengths are not supported")
    if m.integer("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedError(
            f"{where}: {m.architecture}.rope.dimension_count is not the head's {head_dim}: a partial rotation is not"
            " supported"
        )
    embedding = tensors.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise CheckpointError(f"{where}: tensor token_embd.weight is missing; download it again")
    config = {
        **ARCHITECTURES[m.architecture],
        "vocab_size": embedding[0],
        "hidden_size": hidden,
        "intermediate_size": m.integer("feed_forward_length"),
        "num_hidden_layers": m.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": m.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": m.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": m.integer("context_length"),
        "rope_theta": m.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(m, frequencies),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        **_special_tokens(metadata),
    }
    if m.architecture == "llama" and "I2_S" in types:
        config["quantization_config"] = {"quant_method": "bitnet"}
    if m.get("attention.sliding_window"):
        config |= _sliding_window(m)
    return config


def permuted_heads(config: Mapping[str, Any], architecture: Any) -> dict[str, int]:
    """module -> heads whose rows llama.cpp interleaves: those of architecture "llama"."""
    if architecture != "llama":
        return {}
    return {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}


def _sliding_window(m: _Metadata) -> dict[str, Any]:
    window = m.integer("attention.sliding_window")
    if m.architecture == "llama":
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": window,
        }
    if m.architecture in ("qwen2", "qwen3"):
        return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    raise UnsupportedError(f"{m.where}: a sliding window in {m.architecture} is not supported")


def _rope_scaling(m: _Metadata, frequencies: list[float] | None) -> dict[str, Any] | None:
    kind = m.text("rope.scaling.type", "none")
    factor = m.number("rope.scaling.factor", 0.0)
    if frequencies is not None:
        if kind not in ("none", "linear", "llama3") or (kind == "linear" and factor not in (0.0, 1.0)):
            raise UnsupportedError(f"{m.where}: rope_freqs.weight beside {kind} scaling is not supported")
        return {"rope_type": "divided", "divisors": frequencies}
    if m.get("rope.scale_linear") is not None and kind == "none":
        kind, factor = "linear", m.number("rope.scale_linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedError(
            f"{m.where}: rope.scaling.type {show(kind)} is not supported; supported: none, linear, yarn"
        )
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    scaling["original_max_position_embeddings"] = m.integer("rope.scaling.original_context_length")
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if m.get(f"rope.scaling.{key}") is not None:
            scaling[name] = m.number(f"rope.scaling.{key}")
    attention = m.number("rope.scaling.attn_factor", m.number("rope.scaling.yarn_attn_factor", 1.0))
    if attention != 1.0 and factor > 0:  # llama.cpp multiplies what YaRN derives from the factor
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1)
    return scaling


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """bos_token_id and eos_token_id, as far as they are ids."""
    found = {}
    for key in ("bos", "eos"):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31:
            found[f"{key}_token_id"] = value
    return found
