"""BitNet linears: the packed bit layout, both scale directions, online masters, and damaged files."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised import NAME, write

from tmac_llm.checkpoint import TernaryWeight, open_checkpoint
from tmac_llm.checkpoint.bitnet import PackedBitnet
from tmac_llm.errors import CheckpointError, UnsupportedError

BITNET = {"model_type": "bitnet", "hidden_act": "relu2", "architectures": ["BitNetForCausalLM"]}
SUB_NORMS = {"self_attn.attn_sub_norm": 32, "mlp.ffn_sub_norm": 48}


def pack(ternary: Any) -> Any:
    """Row i*R + r goes to bits 2i of byte row r; missing rows are code 0."""
    quarter = -(-len(ternary) // 4)
    codes = np.zeros((4 * quarter, ternary.shape[1]), np.uint8)
    codes[: len(ternary)] = ternary + 1
    parts = codes.reshape(4, quarter, -1)
    return parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6


def unpack(packed: Any, m: int) -> Any:
    return np.concatenate([(packed >> shift & 3).astype(np.int8) - 1 for shift in (0, 2, 4, 6)])[:m]


@pytest.fixture
def packed_model(tensors: Callable[..., Any], linears: dict[str, tuple[int, int]]) -> tuple[Any, Any]:
    """(tensors of a packed Llama, ternary matrices by linear); every weight_scale is 1.5."""
    rng = np.random.default_rng(1)
    stored, ternary = tensors(ml_dtypes.bfloat16), {}
    for name, shape in linears.items():
        ternary[name] = rng.integers(-1, 2, shape).astype(np.int8)
        stored[f"{name}.weight"] = pack(ternary[name])
        stored[f"{name}.weight_scale"] = np.array([1.5], ml_dtypes.bfloat16)
    return stored, ternary


def quantization(**keys: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "bitnet", **keys}}


def test_the_vector_of_the_format(files: Any, packed_model: Any) -> None:
    stored, _ = packed_model
    rows = np.array([-1, 0, 1, -1, 1, 1, 0, -1], np.int8)
    assert pack(rows[:, None]).ravel().tolist() == [0x68, 0x21]
    name = "model.layers.0.mlp.up_proj"
    stored[f"{name}.weight"][:] = np.resize([0x68, 0x21], (12, 1))
    weight = open_checkpoint(files.write(stored, **quantization())).linear(name)
    # 12 bytes down a column are six copies of the vector, whose rows now lie 12 apart
    expected = unpack(np.resize(np.array([0x68, 0x21], np.uint8), (12, 1)), 48)
    assert expected[[0, 1, 12, 13, 24, 25, 36, 37], 0].tolist() == rows.tolist()
    np.testing.assert_array_equal(weight.rows(0, 48), np.broadcast_to(expected, (48, 32)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 41), st.integers(1, 70), st.booleans(), st.integers(0, 2**32))
def test_round_trips(m: int, k: int, multiply: bool, seed: int) -> None:
    """Rows that are no multiple of 4 leave padding in the last quarter."""
    rng = np.random.default_rng(seed)
    ternary, scale = rng.integers(-1, 2, (m, k)).astype(np.int8), np.float32(rng.uniform(0.1, 4))
    tensors = {"weight": pack(ternary), "weight_scale": np.array([scale])}
    begin, end = sorted(rng.integers(0, m + 1, 2).tolist())
    with tempfile.TemporaryDirectory() as directory:
        encoding = PackedBitnet(write(Path(directory), tensors), multiply)
        encoding.check(NAME, (m, k))
        weight = encoding.linear(NAME, (m, k), None)
        np.testing.assert_array_equal(weight.rows(0, m), ternary)
        np.testing.assert_array_equal(weight.rows(begin, end), ternary[begin:end])
    np.testing.assert_allclose(weight.scales, scale if multiply else 1 / scale, rtol=1e-6)


@pytest.mark.parametrize("linear_class", [None, "bitlinear", "autobitlinear"])
@pytest.mark.parametrize("scale_shape", [(1,), ()])
def test_packed_rows_and_scale_direction(
    files: Any, packed_model: Any, linear_class: str | None, scale_shape: tuple[int, ...]
) -> None:
    stored, ternary = packed_model
    for name in ternary:
        stored[f"{name}.weight_scale"] = stored[f"{name}.weight_scale"].reshape(scale_shape)
    keys = {} if linear_class is None else {"linear_class": linear_class}
    checkpoint = open_checkpoint(files.write(stored, **quantization(**keys)))
    multiply = linear_class == "autobitlinear"
    assert checkpoint.format == f"bitnet offline, {'multiplying' if multiply else 'dividing'} scale"
    for name, expected in ternary.items():
        weight = checkpoint.linear(name)
        assert isinstance(weight, TernaryWeight)
        assert weight.scales.dtype == np.float32
        np.testing.assert_array_equal(weight.scales, np.float32(1.5 if multiply else 1 / 1.5))
        assert weight.scales.shape == (len(expected),)
        for begin, end in [(0, len(expected)), (0, 0), (3, 4), (5, 15), (len(expected) - 3, len(expected))]:
            rows = weight.rows(begin, end)
            assert rows.dtype == np.int8
            np.testing.assert_array_equal(rows, expected[begin:end])
        with pytest.raises(ValueError, match="rows"):
            weight.rows(0, len(expected) + 1)


def test_padding_rows_are_cut_off(files: Any, packed_model: Any) -> None:
    """30 rows of head_dim 10 fill the last quarter of 8 with two rows of padding."""
    stored, _ = packed_model
    rng = np.random.default_rng(2)
    expected = {
        "q": rng.integers(-1, 2, (30, 32)).astype(np.int8),
        "k": rng.integers(-1, 2, (10, 32)).astype(np.int8),
    }
    for name, ternary in {**expected, "v": expected["k"]}.items():
        stored[f"model.layers.0.self_attn.{name}_proj.weight"] = pack(ternary)
    stored["model.layers.0.self_attn.o_proj.weight"] = pack(rng.integers(-1, 2, (32, 30)))
    heads = {"head_dim": 10, "num_attention_heads": 3, "num_key_value_heads": 1}
    checkpoint = open_checkpoint(files.write(stored, **heads, **quantization()))
    for name, ternary in expected.items():
        weight = checkpoint.linear(f"model.layers.0.self_attn.{name}_proj")
        np.testing.assert_array_equal(weight.rows(0, len(ternary)), ternary)


def test_code_3_is_refused_where_it_is_read(files: Any, packed_model: Any) -> None:
    stored, _ = packed_model
    name = "model.layers.0.mlp.up_proj"  # 48 rows, quarters of 12
    stored[f"{name}.weight"][5, 7] |= 0b00110000  # third quarter: row 2 * 12 + 5
    weight = open_checkpoint(files.write(stored, **quantization())).linear(name)
    weight.rows(0, 29)
    weight.rows(30, 48)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight has the ternary code 3 in row 29"):
        weight.rows(20, 40)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_impossible_scale(files: Any, packed_model: Any, value: float, linear_class: str) -> None:
    stored, _ = packed_model
    name = "model.layers.0.mlp.up_proj"
    stored[f"{name}.weight_scale"] = np.array([value], np.float32)
    checkpoint = open_checkpoint(files.write(stored, **quantization(linear_class=linear_class)))
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight_scale is .* expected a positive finite number"
    ):
        checkpoint.linear(name)


@pytest.mark.parametrize(
    ("suffix", "array", "error", "message"),
    [
        (
            "weight_scale",
            np.ones(2, np.float32),
            CheckpointError,
            r"weight_scale has shape \[2\], expected \[1\]",
        ),
        ("weight_scale", np.ones(1, np.int32), UnsupportedError, "weight_scale has dtype I32"),
        ("weight_scale", None, CheckpointError, "weight_scale is missing"),
        ("weight", np.zeros((48, 32), np.uint8), CheckpointError, r"shape \[48, 32\], expected \[12, 32\]"),
        ("weight", np.zeros((12, 32), np.float32), UnsupportedError, "dtype F32"),
        ("weight", None, CheckpointError, "weight is missing"),
    ],
)
def test_misshapen_packed_tensors(
    files: Any, packed_model: Any, suffix: str, array: Any, error: type[Exception], message: str
) -> None:
    stored, _ = packed_model
    stored.pop(f"model.layers.0.mlp.up_proj.{suffix}")
    if array is not None:
        stored[f"model.layers.0.mlp.up_proj.{suffix}"] = array
    with pytest.raises(error, match=message):
        open_checkpoint(files.write(stored, **quantization()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"linear_class": "otherlinear"}, "linear_class is 'otherlinear'"),
        ({"quantization_mode": "lazy"}, "quantization_mode is 'lazy'"),
        (
            {"modules_to_not_convert": ["lm_head", "mlp.up_proj"]},
            r"modules_to_not_convert has 'mlp\.up_proj'",
        ),
    ],
)
def test_unknown_settings(files: Any, packed_model: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        open_checkpoint(files.write(packed_model[0], **quantization(**keys)))


def absmean(masters: Any) -> tuple[Any, Any]:
    """The recipe in plain numpy: (ternary, scale)."""
    scale = np.float32(max(np.abs(masters.astype(np.float64)).mean(), 1e-5))
    return np.clip(np.round(masters.astype(np.float32) * (np.float32(1) / scale)), -1, 1), scale


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_online_masters(files: Any, tensors: Any, linears: Any, dtype: Any) -> None:
    stored = tensors(dtype)
    for name, size in SUB_NORMS.items():
        stored[f"model.layers.0.{name}.weight"] = np.ones(size, dtype)
    config = {**BITNET, **quantization(linear_class="autobitlinear", quantization_mode="online")}
    checkpoint = open_checkpoint(files.write(stored, **config))
    assert checkpoint.format.startswith("bitnet online, ")
    for name, (m, _) in linears.items():
        weight = checkpoint.linear(name)
        expected, scale = absmean(stored[f"{name}.weight"])
        assert set(np.unique(expected)) == {-1, 0, 1}
        np.testing.assert_array_equal(weight.rows(0, m), expected)
        np.testing.assert_array_equal(weight.rows(3, 9), expected[3:9])
        np.testing.assert_array_equal(weight.scales, scale)


def test_the_norm_before_o_proj_spans_the_heads(files: Any, tensors: Any) -> None:
    stored = tensors()
    for name, size in SUB_NORMS.items():
        stored[f"model.layers.0.{name}.weight"] = np.ones(size, np.float32)
    for name in "qkv":
        stored[f"model.layers.0.self_attn.{name}_proj.weight"] = np.ones((8, 32), np.float32)
    stored["model.layers.0.self_attn.o_proj.weight"] = np.ones((32, 8), np.float32)
    heads = {"head_dim": 8, "num_attention_heads": 1}
    with pytest.raises(CheckpointError, match=r"attn_sub_norm\.weight has shape \[32\], expected \[8\]"):
        open_checkpoint(files.write(stored, **BITNET, **heads, **quantization(quantization_mode="online")))


def test_online_masters_that_are_tiny_or_zero(files: Any, tensors: Any) -> None:
    """Dead units: the scale is at least 1e-5, so 1e-34 does not become 1."""
    name = "model.layers.0.mlp.up_proj"
    stored = tensors()
    stored[f"{name}.weight"][:] = 1e-34
    weight = open_checkpoint(files.write(stored, **quantization(quantization_mode="online"))).linear(name)
    assert not weight.rows(0, 48).any()
    np.testing.assert_array_equal(weight.scales, np.float32(1e-5))


def test_1bitllm(files: Any, tensors: Any, linears: Any) -> None:
    """Its own names of the sub-norms, a stray rotary buffer, model_type llama, and no quantization_config."""
    stored = tensors()
    stored["model.layers.0.self_attn.inner_attn_ln.weight"] = np.full(32, 2, np.float32)
    stored["model.layers.0.mlp.ffn_layernorm.weight"] = np.full(48, 3, np.float32)
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    config = {"architectures": ["BitnetForCausalLM"], "weight_bits": 1, "input_bits": 8}
    checkpoint = open_checkpoint(files.write(stored, **config))
    assert checkpoint.format == "1bitLLM, f32 masters ternarised on reading"
    assert checkpoint.config.sub_norms
    assert checkpoint.config.int8_activations
    assert (checkpoint.tensor("model.layers.0.self_attn.attn_sub_norm.weight") == 2).all()
    assert (checkpoint.tensor("model.layers.0.mlp.ffn_sub_norm.weight") == 3).all()
    for name in linears:
        expected, _ = absmean(stored[f"{name}.weight"])
        np.testing.assert_array_equal(checkpoint.linear(name).rows(0, len(expected)), expected)


@pytest.mark.parametrize("name", ["bitnet_offline", "llama_bitlinear"])
def test_golden_packed(golden_dir: Path, name: str) -> None:
    """Against an unpacker of its own over the tensors that the reference library reads."""
    checkpoint = open_checkpoint(golden_dir / name)
    stored = safetensors.numpy.load_file(golden_dir / name / "model.safetensors")
    linears = [n.removesuffix(".weight_scale") for n in stored if n.endswith(".weight_scale")]
    assert len(linears) == 14
    for linear in linears:
        weight = checkpoint.linear(linear)
        expected = unpack(stored[f"{linear}.weight"], weight.shape[0])
        np.testing.assert_array_equal(weight.rows(0, weight.shape[0]), expected)
        scale = stored[f"{linear}.weight_scale"].astype(np.float64)[0]
        expected_scale = scale if name == "bitnet_offline" else 1 / scale
        np.testing.assert_array_equal(weight.scales, np.float32(expected_scale))
        # mean |W| of the masters, 1.7 * 0.8 for a normal distribution: a divisor read as a factor is 0.73
        assert 1.2 < weight.scales[0] < 1.5


def test_golden_offline_and_online_hold_the_same_ternary_values(golden_dir: Path) -> None:
    offline, online = (
        open_checkpoint(golden_dir / "bitnet_offline"),
        open_checkpoint(golden_dir / "bitnet_online"),
    )
    assert json.loads((golden_dir / "bitnet_online" / "config.json").read_text())["quantization_config"]
    for name in offline.names():
        if name == "model.embed_tokens":
            continue
        a, b = offline.linear(name), online.linear(name)
        np.testing.assert_array_equal(a.rows(0, a.shape[0]), b.rows(0, b.shape[0]))
        np.testing.assert_array_equal(a.scales, b.scales.astype(ml_dtypes.bfloat16).astype(np.float32))
