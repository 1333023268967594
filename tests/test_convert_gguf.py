"""GGUF files, converted and run: reference logits, what a conversion says it changed, and the command line."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import write_checkpoint
from gguf_files import TYPES, random_blocks, read_checkpoint, write_gguf, write_vocabulary
from packed_models import stored_linear, stored_matrix
from reference_forward import Model, forward, relative_rms
from reference_forward import load as load_reference
from typer.testing import CliRunner

from tmac_llm import store
from tmac_llm.cli import app
from tmac_llm.convert import convert
from tmac_llm.errors import ConvertError, HubError, TokenizerError, UnsupportedError
from tmac_llm.load import load_decoder
from tmac_llm.model.decoder import Decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.packed.container import PackedModel

GOLDEN = {
    "llama_dense_f32": "llama",
    "llama_dense_bf16_sharded": "llama",
    "llama3_rope": "llama",
    "yarn_rope": "llama",
    "llama_attention_bias": "llama",
    "mistral_sliding": "llama",
    "llama_linear_rope_old_config": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
# See test_golden.py: tables of int8 in two layers of random weights.
TABLES_BOUND = 5e-2
IDS = np.array([256, 3, 77, 250, 9, 9, 120])


def logits(decoder: Decoder, ids: np.ndarray) -> np.ndarray:
    return decoder.forward(ids, KVCache(decoder.config, 100), "all")


@pytest.mark.parametrize("name", GOLDEN)
def test_reference_logits_of_float_files(golden_dir: Path, tmp_path: Path, name: str) -> None:
    config, tensors = read_checkpoint(golden_dir / name)
    write_gguf(tmp_path / "m.gguf", config, tensors, GOLDEN[name])
    convert(tmp_path / "m.gguf", tmp_path / "out", bits=16)
    decoder = load_decoder(PackedModel.open(tmp_path / "out", verify=True))
    ids = np.array(json.loads((golden_dir / name / "input_ids.json").read_text()))
    expected = np.load(golden_dir / name / "logits_fp32.npy")
    found = logits(decoder, ids)
    assert relative_rms(found, expected) <= 1e-4
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_reference_logits_of_a_ternary_file(golden_dir: Path, tmp_path: Path, kind: str) -> None:
    """The masters of a BitNet, ternarised, as bitnet-b1.58: int8 activations, sub-norms, squared relu."""
    source = golden_dir / "bitnet_online"
    config, tensors = read_checkpoint(source)
    reference = load_reference(source)
    ternary = {n: w.astype(np.float32) for n, w in reference.weights.items() if n.endswith("_proj.weight")}
    kinds = {n: kind if n in ternary and ternary[n].shape[1] % 256 == 0 else "F32" for n in tensors}
    held = write_gguf(tmp_path / "m.gguf", config, tensors | ternary, "bitnet-b1.58", kinds.__getitem__)
    convert(tmp_path / "m.gguf", tmp_path / "out", head_bits=16)
    decoder = load_decoder(PackedModel.open(tmp_path / "out", verify=True))
    ids = np.array(json.loads((source / "input_ids.json").read_text()))
    weights = {**reference.weights, **{n: held[n].astype(np.float64) for n in ternary}}
    expected, _ = forward(Model(reference.config, weights), ids)
    assert relative_rms(logits(decoder, ids), expected) <= 5e-3


@pytest.fixture
def source(tmp_path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    made = write_checkpoint(
        tmp_path / "source",
        dtype="f32",
        hidden_size=256,
        intermediate_size=512,
        head_dim=64,
        num_hidden_layers=2,
    )
    return read_checkpoint(made.path)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q5_0", 5), ("Q8_0", 8), ("TQ2_0", 2)])
def test_codes_are_kept_exactly(source: Any, tmp_path: Path, kind: str, bits: int) -> None:
    config, tensors = source
    if kind == "TQ2_0":
        tensors = {n: np.sign(t) * np.float32(0.1) if "_proj" in n else t for n, t in tensors.items()}
    held = write_gguf(
        tmp_path / "m.gguf", config, tensors, "llama", lambda n: kind if "_proj" in n else "Q8_0"
    )
    report = convert(tmp_path / "m.gguf", tmp_path / "out")
    packed = PackedModel.open(tmp_path / "out", verify=True)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
        for layer in (0, 1):
            linear = f"model.layers.{layer}.{name}"
            np.testing.assert_array_equal(stored_linear(packed, linear), held[f"{linear}.weight"])
    np.testing.assert_array_equal(
        stored_matrix(packed, "model.embed_tokens"), held["model.embed_tokens.weight"]
    )
    np.testing.assert_array_equal(stored_matrix(packed, "lm_head"), held["lm_head.weight"])
    assert packed.quantization["bits"] == report.bits == bits
    assert packed.quantization["relative_rms"] == {}
    assert {m.relative_rms for m in report.matrices} == {0.0}
    assert {m.origin for m in report.matrices} == {"kept"}
    assert packed.quantization["source_format"] == report.format
    found, expected = logits(load_decoder(packed), IDS), logits_of(held, config, tmp_path)
    assert relative_rms(found, expected) <= TABLES_BOUND


def logits_of(held: dict[str, np.ndarray], config: dict[str, Any], path: Path) -> np.ndarray:
    """Logits of the values that a file holds, by the plain forward pass."""
    model = load_reference(path / "source")
    return forward(Model(model.config, {n: v.astype(np.float64) for n, v in held.items()}), IDS)[0]


def test_what_changes_is_measured_and_told(source: Any, tmp_path: Path, rng: Any) -> None:
    """Q4_1 is rounded; IQ4_NL, written here as by llama.cpp with one scale per block, is requantised."""
    config, tensors = source
    held = write_gguf(
        tmp_path / "m.gguf",
        config,
        tensors,
        "llama",
        lambda n: "Q4_1" if "mlp" in n else "Q4_0" if "_proj" in n else "F16",
    )
    report = convert(tmp_path / "m.gguf", tmp_path / "out")
    packed = PackedModel.open(tmp_path / "out")
    for m in report.matrices:
        module, _, kind = m.name.rpartition(".")
        if not module.endswith("mlp"):
            continue
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        exact = np.concatenate([held[f"{module}.{part}.weight"] for part in parts]).astype(np.float64)
        difference = stored_matrix(packed, m.name) - exact
        expected = np.sqrt((difference**2).sum() / (exact**2).sum())
        assert m.origin == "kept"
        assert m.relative_rms == pytest.approx(expected, rel=0.01)
        assert packed.quantization["relative_rms"][m.name] == pytest.approx(expected, rel=0.01)
    heads = {m.name: m for m in report.matrices if m.name in ("lm_head", "model.embed_tokens")}
    assert all(m.origin == "float" and m.bits == 8 and 0 < m.relative_rms < 0.02 for m in heads.values())


def test_types_without_a_form_of_ours_get_two_bits_more(source: Any, tmp_path: Path, rng: Any) -> None:
    config, tensors = source
    name = "model.layers.1.mlp.down_proj"
    stored = random_blocks("Q6_K", tensors[f"{name}.weight"].shape, rng, 1e-4)
    values = gguf.quants.dequantize(stored, TYPES["Q6_K"])
    original = gguf.quants.quantize
    try:  # llama.cpp's own Q6_K function is not in the package: its blocks are given instead
        gguf.quants.quantize = lambda t, k: stored if k == TYPES["Q6_K"] else original(t, k)
        write_gguf(
            tmp_path / "m.gguf",
            config,
            tensors,
            "llama",
            lambda n: "Q6_K" if n == f"{name}.weight" else "Q4_0",
        )
    finally:
        gguf.quants.quantize = original
    report = convert(tmp_path / "m.gguf", tmp_path / "out")
    packed = PackedModel.open(tmp_path / "out", verify=True)
    matrix = next(m for m in report.matrices if m.name == name)
    difference = stored_matrix(packed, name) - values.astype(np.float64)
    expected = np.sqrt((difference**2).sum() / (values.astype(np.float64) ** 2).sum())
    assert (matrix.bits, matrix.origin) == (8, "requantised")
    assert matrix.relative_rms == pytest.approx(expected, rel=0.01)
    assert 0 < matrix.relative_rms < 0.01
    assert packed.quantization["requantised"] == [name]
    assert packed.quantization["relative_rms"].keys() == {name}
    assert report.bits == 4
    assert any(note.startswith("Q6_K has no exact form here") for note in report.notes)
    four = convert(tmp_path / "m.gguf", tmp_path / "four", bits=2, force=True)
    assert {m.bits for m in four.matrices} == {2, 4}  # embedding and head stay as they are
    assert {m.origin for m in four.matrices if m.bits == 2} == {"requantised"}


def test_tokenizer_and_chat_template_come_along(source: Any, tmp_path: Path) -> None:
    config, tensors = source
    template = "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    write_gguf(
        tmp_path / "m.gguf",
        config,
        tensors,
        "llama",
        "Q4_0",
        None,
        lambda w, n: write_vocabulary(w, n, template),
    )
    convert(tmp_path / "m.gguf", tmp_path / "out")
    import tmac_llm

    with tmac_llm.load(tmp_path / "out") as llm:
        assert llm.tokenizer.encode("hi") == [llm.tokenizer.encode("h")[0], llm.tokenizer.encode("i")[0]]
        assert llm.chat([{"role": "user", "content": "hi"}], max_tokens=3) is not None
        assert llm.tokenizer.has_chat_template
        assert len(llm.tokenizer.eos_token_ids) == 2


def test_a_tokenizer_beside_the_file_stands_in_for_an_unknown_one(source: Any, tmp_path: Path) -> None:
    config, tensors = source
    lone = tmp_path / "lone"
    lone.mkdir()

    def unknown(writer: Any, n: int) -> None:
        write_vocabulary(writer, n)
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "of-another-kind"

    write_gguf(lone / "m.gguf", config, tensors, "llama", "Q4_0", None, unknown)
    with pytest.raises(TokenizerError, match=r"pre 'of-another-kind' is not known.*put the tokenizer\.json"):
        convert(lone / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (lone / name).write_bytes((tmp_path / "source" / name).read_bytes())
    report = convert(lone / "m.gguf", tmp_path / "out")
    assert any("beside the GGUF file are taken" in note for note in report.notes)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (lone / "tokenizer.json").read_bytes()


def test_choosing_a_file(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMAC_HOME", str(tmp_path / "home"))
    config, tensors = source
    models = tmp_path / "models"
    models.mkdir()
    for name in ("small-q4_0.gguf", "small-q8_0.gguf"):
        write_gguf(models / name, config, tensors, "llama", name[6:10].upper())
    with pytest.raises(UnsupportedError, match="2 GGUF models, say which with convert --file NAME"):
        convert(models)
    with pytest.raises(HubError, match=r"has no file c\.gguf"):
        convert(models, file="c.gguf")
    with pytest.raises(HubError, match="leave --file out"):
        convert(models / "small-q4_0.gguf", file="small-q4_0.gguf")
    assert convert(models, file="small-q8_0.gguf").path.name.startswith("small-q8_0-8bit")
    assert convert(models / "small-q4_0.gguf").path.name.startswith("small-q4_0-4bit")
    assert store.resolve(models / "small-q4_0.gguf").name.startswith("small-q4_0-4bit")


def test_the_command_line(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMAC_HOME", str(tmp_path / "home"))
    config, tensors = source
    path = tmp_path / "tiny.gguf"
    write_gguf(path, config, tensors, "llama", lambda n: "Q5_1" if "down" in n else "Q4_0")
    result = CliRunner().invoke(app, ["convert", str(path)])
    assert result.exit_code == 0, result.output
    assert "GGUF, linears: 12 of Q4_0, 2 of Q5_1; embedding Q4_0, output head Q4_0" in result.output
    assert "Q5_1 has minima" in result.output
    assert "down_proj: 5 bits in 2 matrices, relative RMS error" in result.output
    result = CliRunner().invoke(app, ["info", "tiny"])
    assert "GGUF, linears: 12 of Q4_0, 2 of Q5_1; embedding Q4_0, output head Q4_0" in result.output
    assert "Q5_1 has minima" in result.output
    assert "added error" in result.output
    made = json.loads(CliRunner().invoke(app, ["info", "tiny", "--json"]).output)
    assert made["added_error_by_matrix"].keys() == {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)}
    answer = CliRunner().invoke(app, ["generate", str(path), "--raw", "-p", "ab", "-n", "3", "-q"])
    assert answer.exit_code == 0, answer.output


def test_a_vocabulary_that_is_larger_than_the_embedding(source: Any, tmp_path: Path) -> None:
    config, tensors = source
    write_gguf(
        tmp_path / "m.gguf", config, tensors, "llama", "Q4_0", None, lambda w, n: write_vocabulary(w, n + 5)
    )
    with pytest.raises((ConvertError, TokenizerError), match="token ids up to 268"):
        convert(tmp_path / "m.gguf", tmp_path / "out")
