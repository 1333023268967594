"""GGUF checkpoints: weights, order of rows, configuration, and what is refused."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from checkpoints import write_checkpoint
from gguf_files import (
    TYPES,
    gguf_name,
    interleaved,
    llama3_divisors,
    pack_i2_s,
    random_blocks,
    read_checkpoint,
    write_gguf,
    write_metadata,
    write_vocabulary,
)

from tmac_llm import quantize
from tmac_llm.checkpoint import CodedWeight, DenseWeight, TernaryWeight, open_checkpoint
from tmac_llm.errors import CheckpointError, UnsupportedError

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


class Model:
    """A small checkpoint, to be written as GGUF."""

    def __init__(self, path: Path, kind: str = "llama", **config: Any) -> None:
        self.path = path / "model.gguf"
        made = write_checkpoint(
            path / "source", kind, dtype="f32", num_hidden_layers=1, **{**SHAPE, **config}
        )
        self.config, self.tensors = read_checkpoint(made.path)
        self.config["rope_parameters"] = None

    def write(self, *args: Any, **options: Any) -> Path:
        self.held = write_gguf(self.path, self.config, self.tensors, *args, **options)
        return self.path


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def linears(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.linear(name) for name in checkpoint.names() if name.startswith("model.layers")}


def values(weight: Any) -> np.ndarray:
    """All rows, read in two parts that end inside a head."""
    dense, m = quantize.as_dense(weight), weight.shape[0]
    cut = m // 3 + 1
    return np.concatenate([dense.rows(0, cut), dense.rows(cut, m)]).astype(np.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_floats(tmp_path: Path, kind: str, architecture: str) -> None:
    model = Model(tmp_path, architecture)
    checkpoint = open_checkpoint(model.write(architecture, kind))
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    for name in checkpoint.names()[1:-1]:
        weight = checkpoint.linear(name)
        assert isinstance(weight, DenseWeight)
        assert weight.dtype == dtypes[kind]
        np.testing.assert_array_equal(values(weight), model.held[f"{name}.weight"])
        if f"{name}.bias" in model.held:
            np.testing.assert_array_equal(weight.bias, model.held[f"{name}.bias"])
    np.testing.assert_array_equal(values(checkpoint.embedding()), model.held["model.embed_tokens.weight"])
    np.testing.assert_array_equal(values(checkpoint.lm_head()), model.held["lm_head.weight"])
    np.testing.assert_array_equal(checkpoint.tensor("model.norm.weight"), model.held["model.norm.weight"])
    assert checkpoint.format == f"GGUF, linears: 7 of {kind}; embedding {kind}, output head {kind}"


@pytest.mark.parametrize(("kind", "bits", "zero"), [("Q4_0", 4, 8.0), ("Q5_0", 5, 16.0), ("Q8_0", 8, 128.0)])
def test_codes_that_have_a_form_of_ours(model: Model, kind: str, bits: int, zero: float) -> None:
    path = model.write("llama", kind)
    for name, weight in linears(path).items():
        assert isinstance(weight, CodedWeight)
        assert (weight.bits, weight.group_size, weight.zero) == (bits, 32, zero)
        np.testing.assert_array_equal(values(weight), model.held[f"{name}.weight"])
    checkpoint = open_checkpoint(path)
    for table, weight in (("model.embed_tokens", checkpoint.embedding()), ("lm_head", checkpoint.lm_head())):
        assert isinstance(weight, CodedWeight)
        np.testing.assert_array_equal(values(weight), model.held[f"{table}.weight"])
    assert not checkpoint.notes


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_minima_become_rounded_zero_points_and_the_error_is_stated(model: Model, kind: str) -> None:
    path = model.write("llama", kind)
    for name, weight in linears(path).items():
        exact, m = model.held[f"{name}.weight"], weight.shape[0]
        rows = weight.rows(0, m)
        difference = (values(weight) - exact).astype(np.float64)
        assert rows.power == pytest.approx((exact.astype(np.float64) ** 2).sum(), rel=1e-5)
        assert rows.error == pytest.approx((difference**2).sum(), rel=1e-3)
        assert 0 < rows.error < 1e-5 * rows.power
    checkpoint = open_checkpoint(path)
    checkpoint.linear(name)
    assert f"{kind} has minima: kept codes, zero points rounded to float16" in checkpoint.notes


def raw_file(model: Model, raw: dict[str, tuple[np.ndarray, Any]], architecture: str = "llama") -> Path:
    """A file whose tensors of the names `raw` are (bytes, type number); q_proj and k_proj in file order."""
    writer = gguf.GGUFWriter(model.path, architecture)
    write_metadata(writer, model.config)
    write_vocabulary(writer, model.config["vocab_size"])
    for name, tensor in model.tensors.items():
        if name in raw:
            data, kind = raw[name]
            if kind == 36:  # the package does not know I2_S, and must not compute with its blocks
                writer.add_tensor(gguf_name(name), data.view(np.int8), tensor.shape, kind)
            else:
                writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
            continue
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]) if architecture == "llama" else None
        writer.add_tensor(gguf_name(name), interleaved(tensor, heads) if heads else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.path


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q2_K", "Q3_K", "Q6_K", "IQ4_NL"])
def test_k_quants(model: Model, rng: Any, kind: str) -> None:
    """Q4_K and Q5_K keep codes, within rounding; the others are the package's values, for requantising."""
    names = {name: t for name, t in model.tensors.items() if "proj" in name}
    raw = {name: (random_blocks(kind, t.shape, rng, 1e-3), TYPES[kind]) for name, t in names.items()}
    checkpoint = open_checkpoint(raw_file(model, raw))
    for name, (stored, number) in raw.items():
        exact = gguf.quants.dequantize(stored, number)
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:
            exact = exact[np.argsort(interleaved(np.arange(len(exact)), heads))]
        weight = checkpoint.linear(name.removesuffix(".weight"))
        if kind in ("Q4_K", "Q5_K"):
            assert isinstance(weight, CodedWeight)
            assert weight.bits == int(kind[1])
            rows = weight.rows(0, weight.shape[0])
            difference = values(weight).astype(np.float64) - exact
            assert (difference**2).sum() == pytest.approx(rows.error, rel=0.01)
            assert rows.error < 1e-4 * rows.power
        else:
            assert isinstance(weight, DenseWeight)
            assert weight.stored_bits == {"Q2_K": 4, "Q3_K": 5, "Q6_K": 8, "IQ4_NL": 6}[kind]
            np.testing.assert_array_equal(values(weight), exact)
    assert any(kind in note for note in checkpoint.notes)


def test_without_the_package_one_line_says_what_to_install(
    model: Model, rng: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    raw = {name: (random_blocks("Q6_K", model.tensors[name].shape, rng, 1e-3), TYPES["Q6_K"])}
    path = raw_file(model, raw)
    plain = model.path.with_name("plain.gguf")
    write_gguf(plain, model.config, model.tensors, "llama", "Q4_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedError, match=r"Q6_K need the gguf package.*pip install 'tmac-llm\[gguf\]'"):
        open_checkpoint(path)
    open_checkpoint(plain)


def test_a_type_that_the_package_cannot_read(model: Model) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    m, k = model.tensors[name].shape
    path = raw_file(model, {name: (np.zeros((m, k // 256 * 292), np.uint8), TYPES["Q8_K"])})
    with pytest.raises(UnsupportedError, match="Q8_K are not supported"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("architecture", ["llama", "bitnet-b1.58", "bitnet"])
def test_ternary_blocks_of_one_scale(tmp_path: Path, rng: Any, kind: str, architecture: str) -> None:
    model = Model(tmp_path, {"llama": "llama", "bitnet": "1bitllm"}.get(architecture, "bitnet-online"))
    renamed = {"inner_attn_ln": "attn_sub_norm", "ffn_layernorm": "ffn_sub_norm"}
    for name in list(model.tensors):
        tensor = model.tensors.pop(name)
        for old, new in renamed.items():
            name = name.replace(old, new)
        if "_proj.weight" in name:
            tensor = rng.integers(-1, 2, tensor.shape).astype(np.float32) * np.float32(0.75)
            tensor[3, :256] = 0  # a block of zeros, which the writer gives the scale 0
            tensor[5] = 0
        model.tensors[name] = tensor
    model.write(architecture, lambda name: kind if "proj" in name else "F32")
    checkpoint = open_checkpoint(model.path)
    assert checkpoint.config.int8_activations == checkpoint.config.sub_norms == (architecture != "llama")
    for name in checkpoint.names()[1:8]:
        weight = checkpoint.linear(name)
        assert isinstance(weight, TernaryWeight)
        np.testing.assert_array_equal(values(weight), model.held[f"{name}.weight"])


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_ternary_blocks_of_several_scales_are_groups(model: Model, rng: Any, kind: str) -> None:
    name = "model.layers.0.mlp.down_proj"
    m, k = model.tensors[f"{name}.weight"].shape
    ternary = rng.integers(-1, 2, (m, k)).astype(np.float32)
    scales = np.repeat(rng.uniform(0.5, 2, (m, k // 256)), 256, axis=1).astype(np.float32)
    model.tensors[f"{name}.weight"] = ternary * scales
    model.write("llama", lambda tensor: kind if name in tensor else "F32")
    weight = open_checkpoint(model.path).linear(name)
    assert isinstance(weight, CodedWeight)
    assert (weight.bits, weight.group_size, weight.zero) == (2, 128, 1.0)
    np.testing.assert_array_equal(values(weight), model.held[f"{name}.weight"])


@pytest.mark.parametrize("architecture", ["llama", "bitnet-b1.58", "bitnet-25"])
def test_i2_s(tmp_path: Path, rng: Any, architecture: str) -> None:
    """Blocks cross the ends of rows: 288 columns are no multiple of 128."""
    model = Model(tmp_path, "llama" if architecture == "llama" else "bitnet-online", intermediate_size=288)
    raw, expected = {}, {}
    for name, tensor in model.tensors.items():
        if "_proj.weight" not in name:
            continue
        ternary, scale = rng.integers(-1, 2, tensor.shape), np.float32(rng.uniform(0.1, 3))
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]) if architecture == "llama" else None
        raw[name] = (pack_i2_s(interleaved(ternary, heads) if heads else ternary, scale), 36)
        expected[name] = ternary * scale
    path = raw_file(model, raw, architecture)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.int8_activations
    assert checkpoint.config.sub_norms == (architecture != "llama")
    assert checkpoint.config.hidden_act == ("silu" if architecture == "llama" else "relu2")
    for name, wanted in expected.items():
        weight = checkpoint.linear(name.removesuffix(".weight"))
        assert isinstance(weight, TernaryWeight)
        np.testing.assert_array_equal(values(weight), wanted)
        np.testing.assert_array_equal(weight.rows(1, 2), (wanted[1:2] != 0) * np.sign(wanted[1:2]))
    assert any("I2_S" in note for note in checkpoint.notes)


def test_damaged_ternary_weights(tmp_path: Path, rng: Any) -> None:
    model = Model(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    ternary = rng.integers(-1, 2, model.tensors[name].shape)
    for stored, match in (
        (pack_i2_s(np.where(np.arange(256) == 7, 2, ternary), 1.0), "ternary code 3 in row 0"),
        (pack_i2_s(ternary, np.nan), "has the scale nan"),
        (pack_i2_s(ternary, 0.0), "has the scale 0"),
    ):
        path = raw_file(model, {name: (stored, 36)})
        with pytest.raises(CheckpointError, match=match):
            open_checkpoint(path).linear(name.removesuffix(".weight")).rows(0, 9)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "TQ2_0"])
def test_scales_that_are_no_numbers(model: Model, kind: str) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    at = 64 if kind == "TQ2_0" else 0
    tensor = np.sign(model.tensors[name])
    stored = gguf.quants.quantize(tensor, TYPES[kind])
    stored[2, at : at + 2] = np.array([np.inf], np.float16).view(np.uint8)
    path = raw_file(model, {name: (stored, TYPES[kind])})
    with pytest.raises(CheckpointError, match=r"up_proj\.weight has a (inf|nan) in row"):
        quantize.as_dense(open_checkpoint(path).linear(name.removesuffix(".weight"))).rows(0, 9)


def test_float_weights_that_are_ternary(tmp_path: Path, rng: Any) -> None:
    model = Model(tmp_path, "bitnet-online")
    for name, tensor in model.tensors.items():
        if "_proj" in name:
            model.tensors[name] = (rng.integers(-1, 2, tensor.shape) * np.float32(0.25)).astype(np.float32)
    weights = linears(model.write("bitnet-b1.58", "F16"))
    for name, weight in weights.items():
        assert isinstance(weight, TernaryWeight)
        np.testing.assert_array_equal(values(weight), model.tensors[f"{name}.weight"])


def test_float_masters_of_bitnet_are_ternarised(tmp_path: Path) -> None:
    model = Model(tmp_path, "bitnet-online")
    checkpoint = open_checkpoint(model.write("bitnet-b1.58", "F32"))
    name = "model.layers.0.mlp.up_proj"
    weight = checkpoint.linear(name)
    assert isinstance(weight, TernaryWeight)
    masters = model.tensors[f"{name}.weight"]
    scale = np.float32(np.abs(masters).mean(dtype=np.float64))
    np.testing.assert_array_equal(weight.rows(0, 5), np.clip(np.rint(masters[:5] / scale), -1, 1))
    assert "float masters, ternarised on reading" in checkpoint.notes


def test_a_scale_in_a_tensor_of_its_own(tmp_path: Path, rng: Any) -> None:
    model = Model(tmp_path, "bitnet-online")
    name = "model.layers.0.mlp.up_proj"
    model.tensors[f"{name}.weight"] = np.sign(model.tensors[f"{name}.weight"])
    kinds = {f"{name}.weight": "TQ2_0"}
    model.tensors[f"{name}.scale"] = np.array([0.3], np.float32)
    path = model.write("bitnet", lambda tensor: kinds.get(tensor, "F32"))
    np.testing.assert_array_equal(
        values(open_checkpoint(path).linear(name)), model.tensors[f"{name}.weight"] * np.float32(0.3)
    )
    query = "model.layers.0.self_attn.q_proj"
    model.tensors[f"{query}.scale"] = np.array([2.0], np.float32)
    model.tensors[f"{query}.weight"] = np.sign(model.tensors[f"{query}.weight"])
    model.tensors = {n: t for n, t in model.tensors.items() if "sub_norm" not in n}
    model.write("llama", lambda tensor: "TQ2_0" if tensor == f"{query}.weight" else kinds.get(tensor, "F32"))
    np.testing.assert_array_equal(
        values(open_checkpoint(model.path).linear(query)), model.tensors[f"{query}.weight"] * 2
    )
    model.write("llama", "F32")
    with pytest.raises(UnsupportedError, match=r"\.scale beside weights of F32"):
        open_checkpoint(model.path)


# ---- configuration ----------------------------------------------------------------------------------------


def test_configuration(model: Model) -> None:
    config = open_checkpoint(model.write()).config
    assert (config.model_type, config.hidden_act, config.rms_norm_eps) == ("llama", "silu", 1e-5)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 64)
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (256, 512, 264)
    assert (config.max_position_embeddings, config.rope.theta) == (512, 10000.0)
    assert config.tie_word_embeddings is False
    assert config.sliding_window is None


def test_a_file_without_output_is_tied(model: Model) -> None:
    del model.tensors["lm_head.weight"]
    checkpoint = open_checkpoint(model.write("llama", "Q8_0"))
    assert checkpoint.lm_head() is None
    assert checkpoint.config.tie_word_embeddings


def test_rotation_frequencies(model: Model) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model.config["rope_parameters"] = rope
    config = open_checkpoint(model.write()).config
    assert (config.rope.rope_type, config.rope.theta) == ("divided", 500000.0)
    np.testing.assert_allclose(config.rope.divisors, llama3_divisors(rope, 64), rtol=1e-7)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_scaled_rotations(model: Model, rope: Any, expected: Any) -> None:
    model.config["rope_parameters"] = {**rope, "rope_theta": 10000.0}
    config = open_checkpoint(model.write()).config
    assert {key: getattr(config.rope, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"llama.expert_count": 8}, "llama.expert_count is 8, which is not computed"),
        ({"llama.rope.dimension_count": 32}, "partial rotation is not supported"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "must be a finite number"),
        ({"llama.attention.layer_norm_rms_epsilon": "small"}, "must be a finite number, found 'small'"),
        ({"llama.block_count": "two"}, "must be an integer, found 'two'"),
        ({"llama.block_count": 3}, r"tensor model\.layers\.1\..* is missing"),
        ({"llama.block_count": 0}, "num_hidden_layers must be"),
        ({"llama.attention.head_count": 3}, "rows of 3 heads|num_key_value_heads"),
        ({"llama.embedding_length": 128}, "expected .* from the metadata"),
        ({"llama.attention.head_count_kv": [2, 1]}, "differs from layer to layer"),
    ],
)
def test_metadata_that_is_wrong_or_not_computed(model: Model, changes: Any, match: str) -> None:
    write_with_changes(model, changes)
    with pytest.raises(CheckpointError, match=match) as info:
        open_checkpoint(model.path)
    assert "\n" not in str(info.value)
    assert "model.gguf" in str(info.value)


class FirstWins(gguf.GGUFWriter):  # type: ignore[misc]
    """A writer that ignores a key it has already."""

    def add_key_value(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if key not in self.kv_data[0]:
            super().add_key_value(key, value, *args, **kwargs)


def write_with_changes(model: Model, changes: dict[str, Any]) -> None:
    """Write with `changes` in place of what the model's config gives."""
    writer = FirstWins(model.path, "llama")
    for key, value in changes.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    write_metadata(writer, model.config)
    write_vocabulary(writer, model.config["vocab_size"])
    for name, tensor in model.tensors.items():
        writer.add_tensor(gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("architecture", ["gemma3", "phi3", "mamba"])
def test_other_architectures(model: Model, architecture: str) -> None:
    with pytest.raises(UnsupportedError, match=r"general\.architecture is .*supported: llama, qwen2, qwen3"):
        open_checkpoint(model.write(architecture))


def test_tensors_without_a_place(model: Model) -> None:
    model.tensors["model.layers.0.mlp.up_proj.weird"] = model.tensors["model.norm.weight"]
    with pytest.raises(
        UnsupportedError, match=r"'blk\.0\.ffn_up\.weird' is not part of a supported architecture"
    ):
        open_checkpoint(model.write())


def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    write_vocabulary(writer, 264)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"vocab\.gguf: metadata llama\.embedding_length must be"):
        open_checkpoint(tmp_path / "vocab.gguf")


# ---- files ------------------------------------------------------------------------------------------------


def test_a_directory_with_one_model(model: Model, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    path = model.write()
    shutil.move(path, tmp_path / "only" / "a.gguf")
    assert open_checkpoint(tmp_path / "only").format.startswith("GGUF")
    shutil.copy(tmp_path / "only" / "a.gguf", tmp_path / "only" / "b.gguf")
    with pytest.raises(
        UnsupportedError, match=r"2 GGUF models, say which with convert --file NAME: a\.gguf, b\.gguf"
    ):
        open_checkpoint(tmp_path / "only")
    shutil.copy(tmp_path / "only" / "a.gguf", tmp_path / "source" / "a.gguf")
    assert open_checkpoint(tmp_path / "source").format.startswith("dense")  # safetensors come first


def test_split_models(model: Model, tmp_path: Path) -> None:
    whole = open_checkpoint(model.write("llama", "Q8_0"))
    (tmp_path / "split").mkdir()
    model.path = tmp_path / "split" / "m.gguf"
    model.write("llama", "Q8_0", split_max_tensors=5)
    names = sorted(path.name for path in (tmp_path / "split").iterdir())
    assert len(names) > 2
    for path in (tmp_path / "split", tmp_path / "split" / names[1]):
        joined = open_checkpoint(path)
        assert joined.names() == whole.names()
        for name in joined.names()[1:-1]:
            np.testing.assert_array_equal(values(joined.linear(name)), values(whole.linear(name)))
        assert dataclasses.asdict(joined.config) == dataclasses.asdict(whole.config)
    first, second = (tmp_path / "split" / name for name in names[:2])
    swapped = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="says that it is part 0 of"):
        open_checkpoint(first)
    second.write_bytes(swapped)
    second.unlink()
    with pytest.raises(CheckpointError, match=f"1 of the {len(names)} files of this model are missing"):
        open_checkpoint(first)
