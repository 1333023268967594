"""ModelConfig.from_dict: both spellings, every architecture, refusal of what would change the mathematics."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tmac_llm.errors import CheckpointError, TmacError, UnsupportedError
from tmac_llm.model.config import ModelConfig, RopeConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({**LLAMA, **changes})


def test_plain_llama() -> None:
    config = read()
    assert config == ModelConfig(
        model_type="llama",
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        hidden_act="silu",
        max_position_embeddings=256,
        tie_word_embeddings=False,
        rope=RopeConfig(),
        sliding_window=None,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sub_norms=False,
        int8_activations=False,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def test_both_spellings_of_the_golden_configs_are_equal(golden_dir: Path) -> None:
    pairs = [(p, p.with_name("config.v4.json")) for p in sorted(golden_dir.glob("*/config.json"))]
    pairs = [(new, old) for new, old in pairs if old.exists()]
    assert len(pairs) >= 6
    for new, old in pairs:
        a, b = (ModelConfig.from_dict(json.loads(p.read_text())) for p in (new, old))
        assert a == b, new.parent.name


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, {"rope_theta": 5e5}),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            {"rope_theta": 500000, "rope_scaling": None},
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}},
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        ),
    ],
)
def test_rope_is_the_same_in_both_spellings(new: dict[str, Any], old: dict[str, Any]) -> None:
    assert read(**new) == read(**old)


def test_rope_values() -> None:
    assert read(rope_scaling={"rope_type": "llama3", **LLAMA3}).rope == RopeConfig(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    # yarn without an original length is scaled from max_position_embeddings
    yarn = read(
        rope_scaling={"rope_type": "yarn", "factor": 4, "mscale": 0.7, "mscale_all_dim": 1, "truncate": False}
    )
    assert yarn.rope == RopeConfig(
        "yarn", factor=4, original_max_position_embeddings=256, mscale=0.7, mscale_all_dim=1, truncate=False
    )
    assert read(rope_scaling={"type": "dynamic", "factor": 2}).rope.original_max_position_embeddings == 256
    assert read(partial_rotary_factor=0.5).rope.partial_rotary_factor == 0.5
    assert read(rope_parameters={"rope_theta": 7.0, "partial_rotary_factor": 0.25}).rope == RopeConfig(
        theta=7.0, partial_rotary_factor=0.25
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": None}, {"num_key_value_heads": 4}),
        ({"head_dim": 32}, {"head_dim": 32}),
        ({"attention_bias": True}, {"qkv_bias": True, "o_bias": True}),
        ({"mlp_bias": True}, {"mlp_bias": True}),
        ({"model_type": "qwen2"}, {"model_type": "qwen2", "qkv_bias": True}),
        ({"model_type": "qwen2", "attention_bias": True}, {"model_type": "qwen2", "qkv_bias": True}),
        ({"model_type": "qwen3", "head_dim": 32}, {"model_type": "qwen3", "qk_norm": True, "head_dim": 32}),
        ({"model_type": "mistral"}, {"model_type": "mistral", "sliding_window": 4096}),
        ({"model_type": "mistral", "sliding_window": None}, {"model_type": "mistral"}),
        ({"model_type": "mistral", "sliding_window": 8}, {"model_type": "mistral", "sliding_window": 8}),
        ({"model_type": "llama", "sliding_window": 8}, {}),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False},
            {"model_type": "qwen2", "qkv_bias": True},
        ),
        (
            {"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
            {"model_type": "qwen3", "qk_norm": True, "sliding_window": 8},
        ),
        (
            {"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
            {"model_type": "qwen3", "qk_norm": True},
        ),
        ({"eos_token_id": [128001, 128009]}, {"eos_token_ids": (128001, 128009)}),
        ({"eos_token_id": None, "bos_token_id": None}, {"eos_token_ids": (), "bos_token_id": None}),
        ({"hidden_act": "swish"}, {"hidden_act": "silu"}),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
        ({"weight_bits": 1, "input_bits": 8}, {"sub_norms": True, "int8_activations": True}),
        ({"architectures": ["BitnetForCausalLM"]}, {"sub_norms": True, "int8_activations": True}),
        ({"quantization_config": {"quant_method": "bitnet"}}, {"int8_activations": True}),
        (
            {"quantization_config": {"quant_method": "tmac", "int8_activations": True, "sub_norms": False}},
            {"int8_activations": True},
        ),
        (
            {
                "weight_bits": 1,
                "quantization_config": {"quant_method": "tmac", "int8_activations": False, "sub_norms": True},
            },
            {"sub_norms": True},
        ),
    ],
)
def test_options(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(**changes) == replace(read(), **expected)


def test_bitnet() -> None:
    config = read(model_type="bitnet", hidden_act="relu2", quantization_config={"quant_method": "bitnet"})
    assert (config.sub_norms, config.int8_activations, config.hidden_act) == (True, True, "relu2")
    assert config.rope.theta == 500000
    floats = read(model_type="bitnet", hidden_act="relu2", quantization_config={"quant_method": "none"})
    assert floats == replace(config, int8_activations=False)
    assert read(quantization_config={"quant_method": "none"}) == read()


UNSUPPORTED = [
    ({"model_type": "gemma3"}, "model_type", "'gemma3'"),
    ({"model_type": None}, "model_type", "nothing"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures", "Classification"),
    ({"hidden_act": "gelu"}, "hidden_act", "'gelu'"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope_scaling.rope_type", "'longrope'"),
    ({"rope_scaling": {"factor": 2}}, "rope_scaling.rope_type", "nothing"),
    ({"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}}, "mrope_section", "supported"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters", "supported"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config.quant_method", "'fp8'"),
    ({"quantization_config": {"load_in_4bit": True}}, "quantization_config.quant_method", "nothing"),
    ({"model_type": "bitnet"}, "quantization_config", "bitnet"),
    ({"weight_bits": 2}, "weight_bits", "2"),
    ({"weight_bits": 1, "input_bits": 4}, "input_bits", "4"),
    ({"num_local_experts": 8}, "num_local_experts", "8"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping", "50.0"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types", "linear_attention"),
    (
        {"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types",
        "window",
    ),
    (
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
        "max_window_layers",
        "window",
    ),
]


@pytest.mark.parametrize(("changes", "key", "found"), UNSUPPORTED)
def test_unsupported_names_the_key_and_the_value(changes: dict[str, Any], key: str, found: str) -> None:
    with pytest.raises(UnsupportedError) as info:
        read(**changes)
    message = str(info.value)
    assert key in message
    assert found in message
    assert "\n" not in message


BROKEN = [
    {"vocab_size": None},
    {"vocab_size": 0},
    {"vocab_size": 1 << 62},
    {"hidden_size": -64},
    {"hidden_size": 64.0},
    {"hidden_size": True},
    {"hidden_size": "64"},
    {"hidden_size": 10**5000},
    {"hidden_size": 66},
    {"intermediate_size": None},
    {"num_hidden_layers": 10**9},
    {"num_attention_heads": 3},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": 8},
    {"head_dim": 15},
    {"rms_norm_eps": None},
    {"rms_norm_eps": float("nan")},
    {"rms_norm_eps": -1e-5},
    {"rms_norm_eps": 10**400},
    {"rope_theta": 0},
    {"rope_theta": float("inf")},
    {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2}},
    {"rope_scaling": []},
    {"rope_scaling": {"type": "linear"}},
    {"rope_scaling": {"type": "linear", "factor": 0.5}},
    {"rope_scaling": {"type": 3, "factor": 2}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
    {"partial_rotary_factor": 0.1},
    {"partial_rotary_factor": 1.5},
    {"hidden_act": ["silu"]},
    {"tie_word_embeddings": "yes"},
    {"eos_token_id": [1, "2"]},
    {"eos_token_id": -1},
    {"bos_token_id": []},
    {"architectures": "LlamaForCausalLM"},
    {"quantization_config": "bitnet"},
    {"quantization_config": {"quant_method": "tmac", "sub_norms": True}},
    {"model_type": "mistral", "sliding_window": 0},
    {"layer_types": ["full_attention"]},
    {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": -1},
]


@pytest.mark.parametrize("changes", BROKEN, ids=lambda c: "-".join(c))
def test_impossible_values(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as info:
        read(**changes)
    message = str(info.value)
    assert message.startswith("config.json: ")
    assert any(key in message for key in changes)
    assert len(message) < 500
    assert "\n" not in message


ANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(
    sorted(
        {field.name for field in fields(ModelConfig)}
        | {*LLAMA, "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "quantization_config"}
        | {"layer_types", "weight_bits", "input_bits", "use_sliding_window", "max_window_layers"}
    )
)


def config_or_message(d: dict[str, Any]) -> ModelConfig | str:
    try:
        return ModelConfig.from_dict(d)
    except TmacError as error:
        return str(error)


@ANY
@given(st.dictionaries(KEYS, JSON, max_size=5), st.booleans())
def test_any_json_gives_a_config_or_one_line(changes: dict[str, Any], complete: bool) -> None:
    config = config_or_message({**LLAMA, **changes} if complete else changes)
    if isinstance(config, ModelConfig):
        assert config.num_attention_heads % config.num_key_value_heads == 0
        assert config.head_dim % 2 == 0
    else:
        assert config.isprintable()


@ANY
@given(st.dictionaries(st.sampled_from(["type", "rope_type", "factor", *LLAMA3, "mscale"]), JSON, max_size=5))
def test_any_rope_gives_a_config_or_one_line(rope: dict[str, Any]) -> None:
    config = config_or_message({**LLAMA, "rope_scaling": rope})
    assert isinstance(config, ModelConfig) or config.isprintable()


def test_not_an_object() -> None:
    with pytest.raises(CheckpointError, match="expected an object"):
        ModelConfig.from_dict([])  # type: ignore[arg-type]


def test_norms_inside_linears():
    def eps(**quantization):
        return ModelConfig.from_dict({**LLAMA, "quantization_config": quantization}).linear_norm_eps

    assert eps(quant_method="bitnet", use_rms_norm=True) == 1e-6
    assert eps(quant_method="bitnet", use_rms_norm=True, rms_norm_eps=1e-4) == 1e-4
    assert eps(quant_method="bitnet", use_rms_norm=False, rms_norm_eps=1e-4) is None
    assert eps(quant_method="gptq", use_rms_norm=True) is None
    packed = {"quant_method": "tmac", "int8_activations": True, "sub_norms": False}
    assert eps(**packed) is None
    assert eps(**packed, linear_norm_eps=1e-5) == 1e-5
    with pytest.raises(CheckpointError, match="use_rms_norm must be true or false"):
        eps(quant_method="bitnet", use_rms_norm="yes")
