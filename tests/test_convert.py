"""convert: what each kind of checkpoint becomes, and what the options and the report say."""

import json
import shutil
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import KINDS, TERNARY, write_checkpoint
from packed_models import everything, nmse, stored_linear
from reference_forward import forward, relative_rms
from reference_forward import load as load_reference

from tmac_llm import kernels
from tmac_llm.checkpoint import open_checkpoint
from tmac_llm.convert import convert
from tmac_llm.errors import CheckpointError, ConvertError, UsageError
from tmac_llm.load import load_decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.packed.container import PackedModel

DENSE = tuple(kind for kind in KINDS if kind not in TERNARY)


# ---- what becomes of each kind --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", DENSE)
def test_sixteen_bits_keep_every_float_as_it_is(tmp_path, kind, dtype):
    made = write_checkpoint(tmp_path / "source", kind, dtype=dtype)
    report = convert(made.path, tmp_path / "out", bits=16)
    model = PackedModel.open(report.path, verify=True)
    for name, expected in made.weights.items():
        assert np.array_equal(stored_linear(model, name), expected)
    assert model.quantization["matrices"] == {}
    expected_type = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    assert model.tensor("model.embed_tokens.weight").dtype == expected_type
    assert report.bits_per_weight == 8 * np.dtype(expected_type).itemsize
    assert (report.gain, report.nmse) == (None, None)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", DENSE)
def test_dense_checkpoints_are_quantised(tmp_path, kind, bits):
    made = write_checkpoint(tmp_path / "source", kind)
    report = convert(made.path, tmp_path / "out", bits=bits, group_size=32, force=True)
    model = PackedModel.open(report.path, verify=True)
    # Of the best uniform quantiser of the whole (Max 1960); groups of 32 with zero points are finer.
    bound = {2: 0.1188, 3: 0.03744, 4: 0.01154, 8: 1e-4}
    linears = [name for name in made.weights if name.startswith("model.layers")]
    assert len(linears) == 14
    for name in linears:
        assert nmse(stored_linear(model, name), made.weights[name]) < bound[bits]
    for name in ("model.embed_tokens", "lm_head"):
        assert nmse(stored_linear(model, name), made.weights[name]) < bound[8]
    assert report.nmse == pytest.approx(
        sum(((stored_linear(model, n) - made.weights[n]) ** 2).sum() for n in linears)
        / sum((made.weights[n] ** 2).sum() for n in linears),
        rel=1e-3,
    )
    assert report.gain > 0
    assert (report.bits, report.head_bits) == (bits, 8)
    assert (model.quantization["bits"], model.quantization["head_bits"]) == (bits, 8)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", TERNARY)
def test_ternary_checkpoints_stay_exact(tmp_path, kind, tied):
    made = write_checkpoint(tmp_path / "source", kind, tie_word_embeddings=tied)
    report = convert(made.path, tmp_path / "out", head_bits=16)
    model = PackedModel.open(report.path, verify=True)
    for name, expected in made.weights.items():
        assert np.array_equal(stored_linear(model, name), expected), name
    shape = model.shape("model.layers.0.self_attn.qkv_proj")
    assert (shape.bits, shape.group_size, shape.has_zeros, shape.zero) == (2, 0, False, 1.0)
    assert model.config.int8_activations
    assert model.config.sub_norms == (kind != "llama-bitnet")
    assert (report.bits, report.gain) == (2, None)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_biases_and_config_survive(tmp_path, kind):
    made = write_checkpoint(tmp_path / "source", kind, shards=3)
    model = PackedModel.open(convert(made.path, tmp_path / "out").path)
    biases = {}
    for name, expected in made.vectors.items():
        if name.endswith(".bias"):
            biases[name] = expected
        else:
            assert np.array_equal(model.tensor(name), expected)
    if biases:
        parts = [biases[f"model.layers.1.self_attn.{part}_proj.bias"] for part in "qkv"]
        assert np.array_equal(model.tensor("model.layers.1.self_attn.qkv_proj.bias"), np.concatenate(parts))
    assert bool(biases) == (kind == "qwen2")
    assert model.config == open_checkpoint(made.path).config


def test_the_config_keeps_all_fields_but_those_about_the_files_of_the_source(tmp_path):
    made = write_checkpoint(
        tmp_path / "source", auto_map={"AutoModel": "code.Model"}, torch_dtype="bfloat16", note="ü"
    )
    config = json.loads((convert(made.path, tmp_path / "out").path / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == {key: value for key, value in made.config.items() if key != "auto_map"}
    assert quantization["source"] == str(made.path)
    assert quantization["source_format"] == "dense bf16"


def test_biases_of_every_linear(tmp_path):
    made = write_checkpoint(tmp_path / "source", "llama", attention_bias=True, mlp_bias=True)
    model = PackedModel.open(convert(made.path, tmp_path / "out").path)
    layer = "model.layers.0"
    gate_up = [made.vectors[f"{layer}.mlp.{part}_proj.bias"] for part in ("gate", "up")]
    assert np.array_equal(model.tensor(f"{layer}.mlp.gate_up_proj.bias"), np.concatenate(gate_up))
    for name in (f"{layer}.self_attn.o_proj.bias", f"{layer}.mlp.down_proj.bias"):
        assert np.array_equal(model.tensor(name), made.vectors[name])


def test_a_tied_head_is_stored_once(tmp_path):
    made = write_checkpoint(tmp_path / "source", tie_word_embeddings=True)
    model = PackedModel.open(convert(made.path, tmp_path / "out").path)
    assert model.config.tie_word_embeddings
    assert model.shape("model.embed_tokens") is not None
    assert model.shape("lm_head") is None
    assert not [name for name in model.names() if name.startswith("lm_head")]


def test_parts_of_different_encodings_are_not_fused(tmp_path):
    """k_proj in another float type cannot be stacked on the others; gate and up still are."""
    made = write_checkpoint(tmp_path / "source", dtype="f32")
    stored = safetensors.numpy.load_file(made.path / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj"
    stored[f"{name}.weight"] = stored[f"{name}.weight"].astype(np.float16)
    safetensors.numpy.save_file(stored, made.path / "model.safetensors")
    model = PackedModel.open(convert(made.path, tmp_path / "out", bits=16).path)
    found = sorted(
        n.removeprefix("model.layers.0.")
        for n in model.names()
        if n.startswith("model.layers.0.") and "proj" in n
    )
    assert found == [
        "mlp.down_proj.weight",
        "mlp.gate_up_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.o_proj.weight",
        "self_attn.q_proj.weight",
        "self_attn.v_proj.weight",
    ]
    assert model.tensor(f"{name}.weight").dtype == np.float16
    assert np.array_equal(model.tensor(f"{name}.weight"), stored[f"{name}.weight"])


def test_ternary_values_with_scales_per_column_block_stay_exact(tmp_path):
    """TriLM's o_proj and down_proj have scales per block of columns: not per row, but 2 bits hold them."""
    made = write_checkpoint(
        tmp_path / "source",
        "llama",
        dtype="f16",
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
    )
    stored = safetensors.numpy.load_file(made.path / "model.safetensors")
    rng = np.random.default_rng(1)
    for name, tensor in stored.items():
        if name.endswith("_proj.weight"):
            m, k = tensor.shape
            blocks = 2 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            scales = np.repeat(np.array([[0.5, 0.25]])[:, :blocks], k // blocks, axis=1)
            stored[name] = (rng.integers(-1, 2, (m, k)) * scales).astype(np.float16)
    safetensors.numpy.save_file(stored, made.path / "model.safetensors")
    report = convert(made.path, tmp_path / "out", group_size=32)
    model = PackedModel.open(report.path)
    assert report.notes
    assert model.shape("model.layers.0.self_attn.qkv_proj").group_size == 0
    assert model.shape("model.layers.0.mlp.down_proj").group_size == 32
    for name, expected in stored.items():
        if name.endswith("_proj.weight"):
            assert np.array_equal(
                stored_linear(model, name.removesuffix(".weight")), expected.astype(np.float32)
            )


@pytest.mark.parametrize("bits", [None, 16, 8, 4, 3, 2])
def test_golden_checkpoints(golden_dir, tmp_path, bits):
    """Every dense and BitNet fixture, its own reading as the reference."""
    index = json.loads((golden_dir / "index.json").read_text())
    fixtures = [golden_dir / entry["name"] for entry in index if entry["quant_method"] in (None, "bitnet")]
    bound = {2: 0.1188, 3: 0.03744, 4: 0.01154, 8: 1e-4}
    converted = 0
    for source in fixtures:
        checkpoint = open_checkpoint(source)
        ternary = "bitnet" in checkpoint.format
        if ternary and bits not in (None, 2):
            with pytest.raises(ConvertError, match="ternary"):
                convert(source, tmp_path / source.name, bits=bits)
            continue
        report = convert(source, tmp_path / source.name, bits=bits, head_bits=16, force=True)
        model = PackedModel.open(report.path, verify=True)
        assert model.config == checkpoint.config
        for name in checkpoint.names():
            if not name.startswith("model.layers"):
                continue
            weight = checkpoint.linear(name)
            expected = weight.rows(0, weight.shape[0]).astype(np.float32)
            if ternary:
                assert np.array_equal(stored_linear(model, name), expected * weight.scales[:, None])
            elif bits == 16:
                assert np.array_equal(stored_linear(model, name), expected)
            else:
                assert nmse(stored_linear(model, name), expected) < bound[bits or 4]
        converted += 1
    assert converted >= (9 if bits not in (None, 2) else 12)


def test_both_spellings_of_the_config_convert_alike(golden_dir, tmp_path):
    for name in ("llama3_rope", "yarn_rope", "qwen3", "mistral_sliding"):
        source = tmp_path / name / "old"
        shutil.copytree(golden_dir / name, source)
        for path in (source, source / "config.json"):
            path.chmod(0o755)
        shutil.copyfile(golden_dir / name / "config.v4.json", source / "config.json")
        configs = []
        for path in (source, golden_dir / name):
            out = tmp_path / name / ("packed-old" if path == source else "packed-new")
            configs.append(PackedModel.open(convert(path, out).path).config)
        assert configs[0] == configs[1]


# ---- options and the report -----------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_options_reach_the_matrices(tmp_path, group_size, symmetric):
    made = write_checkpoint(tmp_path / "source")
    report = convert(
        made.path, tmp_path / "out", bits=3, group_size=group_size, head_bits=6, symmetric=symmetric
    )
    model = PackedModel.open(report.path)
    for name, bits in (("model.layers.0.mlp.gate_up_proj", 3), ("lm_head", 6), ("model.embed_tokens", 6)):
        shape = model.shape(name)
        assert (shape.bits, shape.group_size, shape.has_zeros) == (bits, group_size, not symmetric)
    assert model.quantization["group_size"] == group_size
    assert model.quantization["symmetric"] == symmetric


def test_defaults_are_four_bits_and_a_head_of_eight(tmp_path):
    report = convert(write_checkpoint(tmp_path / "source").path, tmp_path / "out")
    assert (report.bits, report.head_bits) == (4, 8)


@pytest.mark.parametrize(
    "arguments", [{"bits": 5}, {"bits": 0}, {"group_size": 16}, {"head_bits": 1}, {"head_bits": 9}]
)
def test_options_outside_their_range(tmp_path, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(UsageError, match=f"{name} {value}: expected one of"):
        convert(tmp_path, tmp_path / "out", **arguments)


def test_the_report_counts_what_is_on_the_disk(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    report = convert(made.path, tmp_path / "out", bits=2, force=True)
    model = PackedModel.open(report.path)
    assert report.bytes_after == model.n_bytes
    assert report.bits_per_weight == pytest.approx(model.bits_per_weight)
    assert report.bytes_before == (made.path / "model.safetensors").stat().st_size
    assert report.peak_memory > 10 << 20
    assert report.format == "dense bf16"
    assert [m.name for m in report.matrices][:2] == [
        "model.embed_tokens",
        "model.layers.0.self_attn.qkv_proj",
    ]
    assert [m.bits for m in report.matrices] == [8, 2, 2, 2, 2, 2, 2, 2, 2, 8]


def test_a_dry_run_reports_and_writes_nothing(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    before = everything(tmp_path)
    planned = convert(made.path, tmp_path / "out", bits=2, force=True, dry_run=True)
    assert everything(tmp_path) == before
    done = convert(made.path, tmp_path / "out", bits=2, force=True)
    assert planned.matrices == tuple(replace(m, relative_rms=0.0) for m in done.matrices)
    assert planned.bits_per_weight == done.bits_per_weight
    assert planned.path == done.path
    assert planned.gain is None
    with pytest.raises(ConvertError, match="exists"):
        convert(made.path, tmp_path / "out", bits=2, dry_run=True)


def test_progress_goes_up_to_all_bytes_of_the_source(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    calls = []
    report = convert(made.path, tmp_path / "out", progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert calls[-1][1:] == (report.bytes_before, report.bytes_before)
    assert {call[0] for call in calls} >= {m.name for m in report.matrices}


def test_the_store_gets_what_has_no_target(tmp_path, monkeypatch):
    monkeypatch.setenv("TMAC_HOME", str(tmp_path / "home"))
    made = write_checkpoint(tmp_path / "Some Model")
    for arguments, name in (
        ({}, "Some--Model-4bit"),
        ({"bits": 3, "group_size": 64, "head_bits": 6, "symmetric": True}, "Some--Model-3bit-g64-h6-sym"),
        ({"bits": 16}, "Some--Model-16bit"),
    ):
        assert convert(made.path, **arguments).path == tmp_path / "home" / "models" / name
    ternary = write_checkpoint(tmp_path / "bit", "bitnet-offline")
    assert convert(ternary.path).path.name == "bit-ternary"


def test_the_same_bytes_every_time_and_for_every_number_of_threads(tmp_path):
    made = write_checkpoint(tmp_path / "source", hidden_size=96, intermediate_size=200)
    threads = kernels.n_threads()
    try:
        for n in (1, 2, 3):
            kernels.set_threads(n)
            convert(made.path, tmp_path / str(n), bits=3)
    finally:
        kernels.set_threads(threads)
    for name in everything(tmp_path / "1"):
        contents = {(tmp_path / str(n) / name).read_bytes() for n in (1, 2, 3)}
        assert len(contents) == 1


@pytest.mark.parametrize("kind", ["bitnet-offline", "llama-bitnet"])
def test_linears_with_norms_of_their_own(tmp_path, kind):
    """transformers' use_rms_norm: each linear normalises its input, so q, k and v differ in theirs."""
    quantization = {"quant_method": "bitnet", "use_rms_norm": True, "rms_norm_eps": 1e-3}
    quantization |= {"linear_class": "autobitlinear"} if kind == "bitnet-offline" else {}
    made = write_checkpoint(tmp_path / "source", kind, quantization_config=quantization)
    convert(made.path, tmp_path / "out", head_bits=16)
    packed = PackedModel.open(tmp_path / "out", verify=True)
    assert packed.config.linear_norm_eps == 1e-3
    name = "model.layers.1.self_attn.k_proj"
    np.testing.assert_array_equal(
        packed.tensor(f"{name}.rms_norm.weight"), made.vectors[f"{name}.rms_norm.weight"]
    )
    ids = np.array([256, 3, 77, 250, 9, 9, 120])
    expected, _ = forward(load_reference(made.path), ids)
    decoder = load_decoder(packed)
    for chunk in (len(ids), 1):
        cache = KVCache(decoder.config, 20)
        parts = [decoder.forward(ids[i : i + chunk], cache, "all").copy() for i in range(0, len(ids), chunk)]
        assert relative_rms(np.concatenate(parts), expected) <= 5e-3
    del made.vectors
    tensors = safetensors.numpy.load_file(made.path / "model.safetensors")
    del tensors[f"{name}.rms_norm.weight"]
    safetensors.numpy.save_file(tensors, made.path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"k_proj\.rms_norm\.weight is missing"):
        convert(made.path, tmp_path / "again")
