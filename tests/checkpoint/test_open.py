"""open_checkpoint: what a repository is taken for, the tied embedding, one line for what does not fit."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import write_checkpoint

from tmac_llm.checkpoint import DenseWeight, open_checkpoint
from tmac_llm.checkpoint.weights import check_finite
from tmac_llm.errors import CheckpointError, UnsupportedError

UP = "model.layers.0.mlp.up_proj"

GOLDEN_FORMATS = {
    "llama_dense_f32": "dense f32",
    "llama_dense_bf16_sharded": "dense bf16",
    "llama3_rope": "dense bf16",
    "yarn_rope": "dense bf16",
    "llama_attention_bias": "dense bf16",
    "qwen2": "dense bf16",
    "qwen3": "dense bf16",
    "mistral_sliding": "dense bf16",
    "llama_linear_rope_old_config": "dense f16",
    "bitnet_offline": "bitnet offline, multiplying scale",
    "bitnet_online": "bitnet online, bf16 masters ternarised on reading",
    "llama_bitlinear": "bitnet offline, dividing scale",
}


@pytest.mark.parametrize("name", GOLDEN_FORMATS)
def test_golden_formats_and_values(golden_dir: Path, name: str) -> None:
    checkpoint = open_checkpoint(golden_dir / name)
    assert checkpoint.format == GOLDEN_FORMATS[name]
    assert checkpoint.notes == []
    paths = sorted((golden_dir / name).glob("*.safetensors"))
    assert checkpoint.n_bytes == sum(p.stat().st_size for p in paths)
    stored = {k: v for p in paths for k, v in safetensors.numpy.load_file(p).items()}
    tied = json.loads((golden_dir / name / "config.json").read_text())["tie_word_embeddings"]
    assert (checkpoint.lm_head() is None) == tied == checkpoint.config.tie_word_embeddings
    np.testing.assert_array_equal(checkpoint.embedding().rows(0, 9), stored["model.embed_tokens.weight"][:9])
    # every tensor of the file is handed out by exactly one accessor
    seen = {f"{n}.weight" for n in checkpoint.names()} | {n for n in stored if n.endswith(".weight_scale")}
    for vector in (n for n in stored if n not in seen):
        assert checkpoint.has(vector)
        values = checkpoint.tensor(vector)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, stored[vector].astype(np.float32))
    for linear in checkpoint.names()[1:]:
        weight = checkpoint.linear(linear)
        if isinstance(weight, DenseWeight):
            matrix = stored[f"{linear}.weight"]
            assert weight.dtype == matrix.dtype
            np.testing.assert_array_equal(weight.rows(0, len(matrix)), matrix)
        bias = stored.get(f"{linear}.bias")
        assert (weight.bias is None) == (bias is None)
        if bias is not None:
            np.testing.assert_array_equal(weight.bias, bias.astype(np.float32))


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "modelopt", 7])
def test_unread_methods(files: Any, tensors: Any, method: Any) -> None:
    path = files.write(tensors(), quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedError, match=f"quant_method is {method!r}.*unquantised original"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("quantize_config.json", "bits"), ("quant_config.json", "w_bit"), ("hf_quant_config.json", "modelopt")],
)
def test_old_homes_of_the_quantisation_settings(files: Any, tensors: Any, name: str, expected: str) -> None:
    (files.path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(files.write(tensors()))


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("qweight", "GPTQ"), ("weight_packed", "compressed"), ("W_q", "HQQ"), ("weight_scale", "bitnet")],
)
def test_quantised_tensors_without_settings(files: Any, tensors: Any, suffix: str, kind: str) -> None:
    stored = tensors()
    stored[f"{UP}.{suffix}"] = np.zeros((1,), np.float32)
    stored.pop(f"{UP}.weight")
    with pytest.raises(UnsupportedError, match=f"{kind}.*no quantization_config"):
        open_checkpoint(files.write(stored))


def test_a_packed_model_is_no_source(files: Any, tensors: Any) -> None:
    quantization = {"quant_method": "tmac", "int8_activations": False, "sub_norms": False}
    with pytest.raises(UnsupportedError, match="already a packed tmac-llm model"):
        open_checkpoint(files.write(tensors(), quantization_config=quantization))


def test_a_safetensors_file_with_its_config_beside_it(files: Any, tensors: Any) -> None:
    path = files.write(tensors())
    assert open_checkpoint(path / "model.safetensors").format == "dense f32"


def test_other_paths(files: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_checkpoint(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").rename(tmp_path / "model.txt")
    with pytest.raises(UnsupportedError, match="neither a safetensors nor a GGUF file"):
        open_checkpoint(tmp_path / "model.txt")
    files.config()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="pickle"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"[1]", b"{", b'{"a": 1, "a": 2}', b"\xff\xfe", b"[" * 100000, b"{" + b" " * (17 << 20)]
)
def test_damaged_config(files: Any, tensors: Any, text: bytes) -> None:
    files.weights(tensors())
    (files.path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(files.path)


def test_endless_config_is_not_read(files: Any, tensors: Any) -> None:
    files.weights(tensors())
    with (files.path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="exceed the limit"):
        open_checkpoint(files.path)


def test_config_that_is_a_directory(files: Any, tensors: Any) -> None:
    files.weights(tensors())
    (files.path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="not a plain file"):
        open_checkpoint(files.path)


@pytest.mark.parametrize(
    "name", [f"{UP}.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"]
)
def test_missing_tensor(files: Any, tensors: Any, name: str) -> None:
    stored = tensors()
    shape = list(stored.pop(name).shape)
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(files.write(stored))
    assert f"tensor {name} is missing; expected one of shape {shape}" in str(info.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"vocab_size": 39},
            r"embed_tokens\.weight has shape \[40, 32\], expected \[39, 32\] from config\.json",
        ),
        ({"vocab_size": 41}, r"embed_tokens\.weight has shape \[40, 32\], expected \[41, 32\]"),
        ({"intermediate_size": 64}, r"shape \[48, 32\], expected \[64, 32\]"),
        ({"head_dim": 8}, r"shape \[32, 32\], expected \[16, 32\]"),
        ({"num_hidden_layers": 2}, r"model\.layers\.1\..* is missing"),
        ({"num_hidden_layers": 4096}, r"model\.layers\.1\..* is missing"),
        ({"attention_bias": True}, r"q_proj\.bias is missing"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, r"q_norm\.weight is missing"),
    ],
)
def test_config_of_another_model(files: Any, tensors: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(files.write(tensors(), **config))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.weight",
        f"{UP}.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.up_proj.rms_norm.weight",
        "model.layers.0.mlp.ffn_layernorm.weight",
        "score.weight",
    ],
)
def test_a_tensor_that_would_be_dropped_is_refused(files: Any, tensors: Any, name: str) -> None:
    stored = {**tensors(), name: np.ones(4, np.float32)}
    with pytest.raises(UnsupportedError) as info:
        open_checkpoint(files.write(stored))
    assert f"tensor '{name}' is not part of this architecture" in str(info.value)


def test_stray_buffers_are_ignored(files: Any, tensors: Any) -> None:
    stray = {
        f"model.layers.0.self_attn.{n}": np.ones(8, np.float32)
        for n in ("rotary_emb.inv_freq", "masked_bias")
    }
    assert open_checkpoint(files.write({**tensors(), **stray})).format == "dense f32"


@pytest.mark.parametrize("name", [f"{UP}.weight", "model.norm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_dtypes_that_are_no_weights(files: Any, tensors: Any, name: str, dtype: Any) -> None:
    stored = tensors()
    stored[name] = stored[name].astype(dtype)
    with pytest.raises(UnsupportedError, match=f"{name} has dtype .64|{name} has dtype I32"):
        open_checkpoint(files.write(stored))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("position", [(0, 0), (17, 5), (47, 31)])
def test_broken_values_are_found_while_rows_are_read(
    files: Any, tensors: Any, value: float, dtype: Any, position: tuple[int, int]
) -> None:
    stored = tensors(dtype)
    stored[f"{UP}.weight"][position] = value
    weight = open_checkpoint(files.write(stored)).linear(UP)
    row = position[0]
    weight.rows(0, row)
    weight.rows(row + 1, 48)
    for begin in (0, row):
        with pytest.raises(CheckpointError, match=rf"up_proj\.weight has a -?(nan|inf) in row {row};"):
            weight.rows(begin, 48)


def test_a_broken_value_far_into_a_block() -> None:
    rows = np.zeros((300, 1000), np.float16)
    rows[200, 5] = np.nan
    with pytest.raises(CheckpointError, match="x has a nan in row 1200"):
        check_finite(rows, "x", first_row=1000)


def test_broken_norm(files: Any, tensors: Any) -> None:
    stored = tensors()
    stored["model.norm.weight"][3] = np.nan
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has a nan"):
        open_checkpoint(files.write(stored)).tensor("model.norm.weight")


def test_largest_finite_values_are_no_infinities(files: Any, tensors: Any) -> None:
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        stored = tensors(dtype)
        largest = ml_dtypes.finfo(dtype).max
        stored[f"{UP}.weight"][:] = largest
        stored[f"{UP}.weight"][0] = -largest
        rows = open_checkpoint(files.write(stored)).linear(UP).rows(0, 48)
        assert (abs(rows.astype(np.float64)) == float(largest)).all()


def test_names_that_do_not_exist(files: Any, tensors: Any) -> None:
    checkpoint = open_checkpoint(files.write(tensors()))
    for read in (checkpoint.linear, checkpoint.tensor):
        with pytest.raises(CheckpointError, match=r"no .* named 'model\.nothing'"):
            read("model.nothing")
    assert not checkpoint.has("model.nothing")


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("missing", [EMBED, HEAD])
def test_one_matrix_serves_as_embedding_and_head(files: Any, tensors: Any, tied: bool, missing: str) -> None:
    stored = tensors()
    stored.pop(missing)
    checkpoint = open_checkpoint(files.write(stored, tie_word_embeddings=tied))
    only = HEAD if missing == EMBED else EMBED
    assert checkpoint.lm_head() is None
    assert "lm_head" not in checkpoint.names()
    np.testing.assert_array_equal(checkpoint.embedding().rows(0, 40), stored[only])
    assert checkpoint.config.tie_word_embeddings is True
    assert checkpoint.raw_config["tie_word_embeddings"] is True
    assert len(checkpoint.notes) == (0 if tied else 1)


def test_neither_embedding_nor_head(files: Any, tensors: Any) -> None:
    stored = {k: v for k, v in tensors().items() if k not in (EMBED, HEAD)}
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is missing"):
        open_checkpoint(files.write(stored))


def test_both_stored_although_tied(files: Any, tensors: Any) -> None:
    stored = tensors()
    differing = open_checkpoint(files.write(stored, tie_word_embeddings=True))
    assert differing.config.tie_word_embeddings is False
    assert differing.raw_config["tie_word_embeddings"] is False
    assert "not tied" in differing.notes[0]
    head = differing.lm_head()
    assert head is not None
    np.testing.assert_array_equal(head.rows(0, 40), stored[HEAD])
    assert differing.names()[-1] == "lm_head"

    stored[HEAD] = stored[EMBED]
    equal = open_checkpoint(files.write(stored, tie_word_embeddings=True))
    assert (equal.lm_head(), equal.config.tie_word_embeddings, equal.notes) == (None, True, [])
    untied = open_checkpoint(files.write(stored))
    assert untied.lm_head() is not None


def test_opening_reads_no_weights(files: Any, tensors: Any) -> None:
    """A head and an embedding of 8 MB each, of which opening touches nothing but headers and a few rows."""
    stored = tensors()
    stored[EMBED] = np.zeros((65536, 32), np.float32)
    stored[HEAD] = np.zeros((65536, 32), np.float32)
    path = files.write(stored, vocab_size=65536)
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    checkpoint.embedding().rows(1000, 1100)
    after = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert after < 1 << 20


def test_float_weights_of_the_bitnet_architecture(tmp_path: Path) -> None:
    """quant_method none: the float twin of the embedded model, with sub-norms and plain activations."""
    made = write_checkpoint(tmp_path / "m", "bitnet-online", quantization_config={"quant_method": "none"})
    checkpoint = open_checkpoint(made.path)
    assert checkpoint.format == "dense bf16"
    assert (checkpoint.config.sub_norms, checkpoint.config.int8_activations) == (True, False)
    assert isinstance(checkpoint.linear(UP), DenseWeight)
    assert checkpoint.has("model.layers.0.mlp.ffn_sub_norm.weight")
