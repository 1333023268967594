"""The dimensions and options of a model, as a Hugging Face config.json gives them; knows no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import Fields, show

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "bitnet")
HIDDEN_ACTS = ("silu", "relu2", "relu")
# "divided" is our own: `divisors` holds what each frequency is divided by, as GGUF files do.
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "divided")
# BitNet is a way to compute, "tmac" says in its own fields whether it is one, "none" that the weights of the
# BitNet architecture are float ones; the others store Llamas.
QUANT_METHODS = (
    "bitnet",
    "tmac",
    "none",
    "gptq",
    "awq",
    "auto-round",
    "intel/auto-round",
    "hqq",
    "compressed-tensors",
    "bitdistiller",
)

_ARCHITECTURES = {
    "LlamaForCausalLM",
    "LLaMAForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "BitNetForCausalLM",
    "BitnetForCausalLM",
}

# Defaults of the transformers configuration classes, for the fields that old files leave out.
_DEFAULT_THETA = {"bitnet": 500000.0}
_DEFAULT_CONTEXT = {"llama": 2048, "bitnet": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_DEFAULT_WINDOW = {"mistral": 4096}

# Options of related architectures that change the result, with the values that do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attention_multiplier": (),
    "no_rope_layers": ([],),
    "clip_qkv": (),
}

_ROPE_KEYS = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "partial_rotary_factor",
    "finetuned",
    "divisors",
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding; the formulas of each `rope_type` are those of transformers' rope utilities.

    `original_max_position_embeddings` is set for dynamic, llama3 and yarn (dynamic: the model's
    max_position_embeddings). `attention_factor` None means: derive it from factor, mscale, mscale_all_dim.
    `divisors`, for divided: one of each rotated pair.
    """

    rope_type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial_rotary_factor: float = 1.0
    divisors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder of the Llama family; Llama, Mistral, Qwen2, Qwen3 and BitNet differ by these fields.

    `int8_activations`: the input of every linear inside the layers is quantised to int8 per token (BitNet).
    `sub_norms`: an RMSNorm before o_proj (hidden_size) and one before down_proj (intermediate_size).
    `linear_norm_eps`: where every linear normalises its own input by an RMSNorm of its own, the eps of those.
    `qk_norm`: an RMSNorm of shape (head_dim,) on each head of q and k, before the rotation.
    `o_bias` and `qkv_bias` are separate because Qwen2 has biases on q, k, v only.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeConfig
    sliding_window: int | None
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sub_norms: bool
    int8_activations: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    linear_norm_eps: float | None = None

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> ModelConfig:
        """Read a config.json as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) spells it.

        Raises CheckpointError for a missing or impossible value and UnsupportedError, naming the key, for
        every model_type, rope type, activation or option that this decoder does not compute.
        """
        fields = Fields(d)
        model_type = fields.choice("model_type", MODEL_TYPES)
        _check_architecture(fields)
        int8_activations, sub_norms = _bitnet_flags(fields, model_type)
        layers = fields.integer("num_hidden_layers", maximum=1 << 12)
        hidden = fields.integer("hidden_size", maximum=1 << 20)
        heads = fields.integer("num_attention_heads", maximum=1 << 14)
        kv_heads = fields.integer("num_key_value_heads", maximum=1 << 14, default=heads)
        if heads % kv_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads ({heads}) must be a multiple of"
                f" num_key_value_heads ({kv_heads})"
            )
        context = fields.integer(
            "max_position_embeddings", maximum=1 << 31, default=_DEFAULT_CONTEXT[model_type]
        )
        head_dim = _head_dim(fields, hidden, heads)
        # transformers reads attention_bias for these three types only; Qwen2 always has q, k, v biases.
        attention_bias = model_type in ("llama", "qwen3", "bitnet") and fields.boolean("attention_bias")
        act = fields.choice("hidden_act", HIDDEN_ACTS, aliases={"swish": "silu"})
        return ModelConfig(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size", maximum=1 << 24),
            hidden_size=hidden,
            intermediate_size=fields.integer("intermediate_size", maximum=1 << 22),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=fields.number("rms_norm_eps"),
            hidden_act=act,
            max_position_embeddings=context,
            tie_word_embeddings=fields.boolean("tie_word_embeddings"),
            rope=_rope(fields, model_type, context, head_dim),
            sliding_window=_sliding_window(fields, model_type, layers),
            qkv_bias=attention_bias or model_type == "qwen2",
            o_bias=attention_bias,
            mlp_bias=model_type == "llama" and fields.boolean("mlp_bias"),
            qk_norm=model_type == "qwen3",
            sub_norms=sub_norms,
            int8_activations=int8_activations,
            bos_token_id=fields.token_ids("bos_token_id")[0] if fields.has("bos_token_id") else None,
            eos_token_ids=fields.token_ids("eos_token_id") if fields.has("eos_token_id") else (),
            linear_norm_eps=_linear_norm_eps(fields),
        )


def quantization_config(d: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `quantization_config` of a config.json, or None. Raises CheckpointError unless it is an object."""
    for key in ("quantization_config", "compression_config"):
        value = d.get(key)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise CheckpointError(f"config.json: {key} must be an object, found {show(value)}")
        return value
    return None


def is_1bitllm(d: Mapping[str, Any]) -> bool:
    """True for the 1bitLLM checkpoints, which say model_type llama but hold BitNet masters with sub-norms."""
    architectures = d.get("architectures")
    return d.get("weight_bits") is not None or (
        isinstance(architectures, list) and "BitnetForCausalLM" in architectures
    )


def _check_architecture(fields: Fields) -> None:
    architectures = fields.d.get("architectures")
    if architectures is not None:
        if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
            raise fields.bad("architectures", "a list of class names")
        if architectures and not _ARCHITECTURES.intersection(architectures):
            raise fields.unsupported("architectures", ", ".join(sorted(_ARCHITECTURES)))
    for key, neutral in _NEUTRAL.items():
        if fields.has(key) and fields.d[key] not in neutral:
            raise fields.unsupported(key, "models without it")


def _bitnet_flags(fields: Fields, model_type: str) -> tuple[bool, bool]:
    """(int8_activations, sub_norms) from quantization_config, or from the 1bitLLM keys."""
    quantization = quantization_config(fields.d)
    if quantization is not None:
        quant = Fields(quantization, "quantization_config.")
        method = quant.choice("quant_method", QUANT_METHODS)
        if method == "tmac":
            return quant.boolean("int8_activations", None), quant.boolean("sub_norms", None)
        if method == "none":
            return False, model_type == "bitnet"
        if method != "bitnet":
            if model_type == "bitnet":
                raise quant.unsupported("quant_method", "bitnet for model_type bitnet")
            return False, False
        return True, model_type == "bitnet"
    if is_1bitllm(fields.d):
        for key, bits in (("weight_bits", 1), ("input_bits", 8)):
            if fields.has(key) and fields.d[key] != bits:
                raise fields.unsupported(key, str(bits))
        return True, True
    if model_type == "bitnet":
        raise UnsupportedError(
            "config.json: model_type is bitnet, but no quantization_config says how its weights are stored;"
            " take the config.json of the original repository"
        )
    return False, False


def _linear_norm_eps(fields: Fields) -> float | None:
    """Of the norms inside the linears (transformers' BitLinear with use_rms_norm), None where there are none."""
    quant = Fields(quantization_config(fields.d) or {}, "quantization_config.")
    if quant.d.get("quant_method") == "tmac":
        return quant.optional_number("linear_norm_eps")
    if quant.d.get("quant_method") != "bitnet" or not quant.boolean("use_rms_norm"):
        return None
    return quant.number("rms_norm_eps", default=1e-6)


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if not fields.has("head_dim") and hidden % heads:
        raise CheckpointError(
            f"config.json: without head_dim, hidden_size ({hidden}) must be a multiple of"
            f" num_attention_heads ({heads})"
        )
    head_dim = fields.integer("head_dim", maximum=1 << 14, default=max(hidden // heads, 1))
    if head_dim % 2:
        raise CheckpointError(
            f"config.json: head_dim must be even for the rotary embedding, found {head_dim}"
        )
    return head_dim


def _sliding_window(fields: Fields, model_type: str, layers: int) -> int | None:
    """The one window of all layers, or None; only Mistral has one, and Qwen with use_sliding_window."""
    window: int | None = None
    if model_type == "mistral":
        # An explicit null means none; a file without the key means the class default.
        explicit = "sliding_window" in fields.d
        if not explicit or fields.has("sliding_window"):
            window = fields.integer("sliding_window", maximum=1 << 31, default=_DEFAULT_WINDOW[model_type])
    elif model_type in ("qwen2", "qwen3") and fields.boolean("use_sliding_window"):
        window = fields.integer("sliding_window", maximum=1 << 31, default=4096)
    kinds = _layer_kinds(fields, model_type, layers, window)
    if kinds == {"full_attention"}:
        return None
    if kinds == {"sliding_attention"} and window is not None:
        return window
    raise UnsupportedError(
        "config.json: layer_types or max_window_layers give only some layers a sliding window,"
        " which is not supported; supported: the same window in every layer, or none"
    )


def _layer_kinds(fields: Fields, model_type: str, layers: int, window: int | None) -> set[str]:
    types = fields.d.get("layer_types")
    if types is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers:
            raise fields.bad("layer_types", f"a list of num_hidden_layers ({layers}) names")
        if any(not isinstance(t, str) or t not in known for t in types):
            raise fields.unsupported("layer_types", ", ".join(known))
        return set(types)
    if window is None:
        return {"full_attention"}
    if model_type == "mistral":
        return {"sliding_attention"}
    first = fields.d.get("max_window_layers", 28)  # Qwen: the layers from this one on have the window
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise fields.bad("max_window_layers", "a layer number")
    return {"sliding_attention" if i >= first else "full_attention" for i in range(layers)}


def _rope(fields: Fields, model_type: str, context: int, head_dim: int) -> RopeConfig:
    rope = _rope_fields(fields)
    unknown = sorted(str(k) for k in rope.d if k not in _ROPE_KEYS)
    kind = _rope_type(rope)
    if unknown:
        raise UnsupportedError(
            f"config.json: {rope.where}{show(unknown[0])} is not supported;"
            f" supported: {', '.join(sorted(_ROPE_KEYS))}"
        )
    theta = _rope_theta(fields, rope, model_type)
    rotary = rope if rope.has("partial_rotary_factor") else fields
    partial = rotary.number("partial_rotary_factor", default=1.0)
    if partial > 1 or int(head_dim * partial) < 2 or int(head_dim * partial) % 2:
        raise rotary.bad(
            "partial_rotary_factor", f"at most 1 and rotate an even part of head_dim ({head_dim})"
        )
    if kind == "default":
        return RopeConfig(theta=theta, partial_rotary_factor=partial)
    if kind == "divided":
        return RopeConfig(
            kind, theta, partial_rotary_factor=partial, divisors=_divisors(rope, head_dim, partial)
        )
    original: int | None = None
    if kind == "dynamic":
        original = context
    elif kind in ("llama3", "yarn"):
        default = context if kind == "yarn" else None
        original = rope.integer("original_max_position_embeddings", maximum=1 << 31, default=default)
    config = RopeConfig(
        rope_type=kind,
        theta=theta,
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor", default=None if kind == "llama3" else 1.0),
        high_freq_factor=rope.number("high_freq_factor", default=None if kind == "llama3" else 4.0),
        original_max_position_embeddings=original,
        beta_fast=rope.number("beta_fast", default=32.0),
        beta_slow=rope.number("beta_slow", default=1.0),
        attention_factor=rope.optional_number("attention_factor"),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.boolean("truncate", True),
        partial_rotary_factor=partial,
    )
    if config.factor < 1:
        raise rope.bad("factor", "a number of at least 1")
    if kind == "llama3" and config.high_freq_factor <= config.low_freq_factor:
        raise rope.bad("high_freq_factor", f"greater than low_freq_factor ({config.low_freq_factor:g})")
    return config


def _divisors(rope: Fields, head_dim: int, partial: float) -> tuple[float, ...]:
    value, n_pairs = rope.d.get("divisors"), int(head_dim * partial) // 2
    if (
        not isinstance(value, list)
        or len(value) != n_pairs
        or not all(isinstance(v, int | float) and not isinstance(v, bool) and 1e-6 < v < 1e6 for v in value)
    ):
        raise rope.bad("divisors", f"a list of {n_pairs} positive numbers")
    return tuple(float(v) for v in value)


def _rope_fields(fields: Fields) -> Fields:
    """The object that describes the rotation: rope_parameters (transformers 5), rope_scaling (4), or none."""
    given = [key for key in ("rope_parameters", "rope_scaling") if fields.has(key)]
    if len(given) == 2 and fields.d[given[0]] != fields.d[given[1]]:
        raise CheckpointError(
            "config.json: rope_parameters and rope_scaling are both given and differ; remove one"
        )
    if not given:
        return Fields({}, "rope_scaling.")
    value = fields.d[given[0]]
    if not isinstance(value, Mapping):
        raise fields.bad(given[0], "an object")
    return Fields(value, f"{given[0]}.")


def _rope_type(rope: Fields) -> str:
    key = "rope_type" if rope.has("rope_type") else "type"
    if not rope.has(key):
        if set(rope.d) - {"rope_theta", "partial_rotary_factor"}:
            raise rope.unsupported("rope_type", ", ".join(ROPE_TYPES))
        return "default"
    return rope.choice(key, ROPE_TYPES)


def _rope_theta(fields: Fields, rope: Fields, model_type: str) -> float:
    outer = fields.number("rope_theta", default=_DEFAULT_THETA.get(model_type, 10000.0), minimum=1.0)
    inner = rope.number("rope_theta", default=outer, minimum=1.0)
    if fields.has("rope_theta") and inner != outer:
        raise CheckpointError(
            f"config.json: rope_theta is {outer:g} but {rope.where}rope_theta is {inner:g};"
            " remove the wrong one"
        )
    return inner
