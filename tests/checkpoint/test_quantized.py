"""Whole quantised checkpoints: which reader takes them, what it says, and what conversion makes of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import VOCAB_SIZE, write_tokenizer
from packed_models import stored_matrix
from quantised import Coded, awq_gemm, check_equal, compressed, gptq, hqq, random_coded
from reference_forward import relative_rms
from safetensors.numpy import load_file, save_file

from tmac_llm import quantize
from tmac_llm.checkpoint import CodedWeight, open_checkpoint
from tmac_llm.convert import convert
from tmac_llm.errors import CheckpointError, ConvertError, PackedModelError, TmacError, UnsupportedError
from tmac_llm.load import load_decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.packed.container import PackedModel
from tmac_llm.packed.writer import PackedWriter, TensorSpec

UP = "model.layers.0.mlp.up_proj"


class Maker:
    """Writes checkpoints whose linears are random codes, and remembers those."""

    def __init__(self, files: Any, tensors: dict[str, Any], linears: dict[str, tuple[int, int]]) -> None:
        self.files, self.tensors, self.linears = files, tensors, linears
        self.coded: dict[str, Coded] = {}

    def write(
        self, pack: Any, quantization: Any, bits: int = 4, group_size: int = 32, scatter: bool = False
    ) -> Path:
        rng = np.random.default_rng(3)
        for name, (n, k) in self.linears.items():
            self.coded[name] = random_coded(rng, bits, n, k, group_size, scatter)
            self.tensors.pop(f"{name}.weight", None)
            parts = pack(self.coded[name])
            self.tensors |= {f"{name}.{key}": np.ascontiguousarray(part) for key, part in parts.items()}
        return self.save(quantization)

    def save(self, quantization: Any) -> Path:
        self.config(**({"quantization_config": quantization} if quantization else {}))
        save_file(self.tensors, self.files.path / "model.safetensors")
        return self.files.path

    def config(self, **changes: Any) -> None:
        self.files.config(vocab_size=VOCAB_SIZE, **changes)

    def check(self) -> Any:
        """All codes are read as they were written."""
        checkpoint = open_checkpoint(self.files.path)
        for name, coded in self.coded.items():
            weight = checkpoint.linear(name)
            assert isinstance(weight, CodedWeight)
            check_equal(weight, coded)
        return checkpoint


@pytest.fixture
def maker(files: Any, tensors: Any, linears: Any) -> Maker:
    write_tokenizer(files.path)
    stored = tensors(np.float16)
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[table] = np.random.default_rng(1).standard_normal((VOCAB_SIZE, 32)).astype(np.float16)
    return Maker(files, stored, linears)


def v1(coded: Coded) -> dict[str, np.ndarray]:
    return gptq(coded, 1)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}
ROUND = {"bits": 4, "group_size": 32, "sym": False, "data_type": "int"}


@pytest.mark.parametrize(
    ("method", "packing", "pack", "parts"),
    [
        ("auto-round", "auto_round:auto_gptq", lambda c: gptq(c, 1, g_idx=False), ("AutoRound", "zeros v1")),
        ("intel/auto-round", "auto_round", lambda c: gptq(c, 2, g_idx=False), ("zeros v2",)),
        ("auto-round", "auto_round:gptqmodel", gptq, ("gptqmodel", "zeros v2")),
        ("auto-round", "auto_round:auto_awq", awq_gemm, ("auto_awq", "4 bits")),
        ("auto-round", "auto_round:llm_compressor", compressed, ("llm_compressor", "4 bits")),
    ],
)
def test_auto_round(maker: Maker, method: str, packing: str, pack: Any, parts: tuple[str, ...]) -> None:
    maker.write(pack, {"quant_method": method, "packing_format": packing, **ROUND})
    for part in parts:
        assert part in maker.check().format


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"packing_format": "auto_round:fp8_static"}, "packing_format is 'auto_round:fp8_static'"),
        ({"packing_format": None}, "backend is nothing"),
        ({"data_type": "mx_fp"}, "data_type is 'mx_fp'"),
        ({"packing_format": "auto_round:awq", "bits": 2}, "bits is 2.*4 with packing_format auto_round:awq"),
        ({"packing_format": "auto_round:awq", "extra_config": {"x": {}}}, "extra_config"),
    ],
)
def test_auto_round_that_is_not_read(maker: Maker, changes: Any, match: str) -> None:
    quantization = {"quant_method": "auto-round", "packing_format": "auto_round", **ROUND, **changes}
    with pytest.raises(UnsupportedError, match=match):
        open_checkpoint(maker.write(gptq, quantization))


def test_no_settings_at_all(maker: Maker) -> None:
    """EfficientQAT's own files: GPTQ's tensors, and nothing said."""
    maker.write(gptq, None, 2, 0)
    checkpoint = maker.check()
    assert "zeros v2, 2 bits" in checkpoint.format
    assert "bits and groups from the shapes, zero points as in version 2" in checkpoint.notes[0]


def test_awq_without_settings(maker: Maker) -> None:
    maker.write(awq_gemm, None, 4, 0)
    assert "AWQ gemm by the shapes" in maker.check().notes[0]


@pytest.mark.parametrize(
    ("name", "pack", "settings"),
    [
        ("quantize_config.json", v1, {"bits": 4, "group_size": 32, "desc_act": False}),
        ("quant_config.json", awq_gemm, {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}),
    ],
)
def test_settings_in_a_file_of_their_own(maker: Maker, name: str, pack: Any, settings: Any) -> None:
    (maker.files.path / name).write_text(json.dumps(settings))
    maker.write(pack, None)
    assert maker.check().notes == [f"quantisation settings from {name}"]


def test_hqq_settings_fill_in_for_missing_metadata(maker: Maker) -> None:
    weights = {"nbits": 4, "group_size": 16, "axis": 1}
    settings = {"quant_method": "hqq", "quant_config": {"weight_quant_params": weights}}

    def pack(coded: Coded) -> dict[str, np.ndarray]:
        tensors = hqq(coded, coded.zeros.astype(np.float16), 16)
        return {key: tensors[key] for key in ("W_q", "scale", "zero")}

    path = maker.write(pack, settings, 4, 16)
    with pytest.raises(UnsupportedError, match="groups of 16 columns"):
        open_checkpoint(path).linear(UP)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bitdistiller(maker: Maker, bits: int) -> None:
    maker.tensors[f"{UP}.weight"] = maker.tensors[f"{UP}.weight"] + np.float16(6)  # no zero among the levels
    path = maker.save({"quant_method": "bitdistiller", "bits": bits, "group_size": 32})
    for name, (n, k) in maker.linears.items():
        masters = maker.tensors[f"{name}.weight"].astype(np.float32)
        found = quantize.as_dense(open_checkpoint(path).linear(name)).rows(0, n)
        for row in range(0, n, 5):
            for begin in range(0, k, 32):
                w, top = masters[row, begin : begin + 32], (1 << bits) - 1
                scale = np.float32(np.float16(max(w.max() - w.min(), np.float32(1e-5)) / np.float32(top)))
                zero = np.clip(-np.rint(w.min() / scale), 0, top)
                code = np.clip(np.rint(w / scale) + zero, 0, top)
                np.testing.assert_array_equal(found[row, begin : begin + 32], (code - zero) * scale)


def test_a_quantised_output_head(maker: Maker, tmp_path: Path) -> None:
    """GPTQ with lm_head true: kept as codes."""
    maker.write(v1, GPTQ)
    config = open_checkpoint(maker.save(GPTQ)).config
    shape = (config.vocab_size, config.hidden_size)
    coded = random_coded(np.random.default_rng(5), 4, *shape, 32)
    del maker.tensors["lm_head.weight"]
    maker.tensors |= {f"lm_head.{k}": np.ascontiguousarray(t) for k, t in gptq(coded, version=1).items()}
    path = maker.save({**GPTQ, "desc_act": False, "lm_head": True})
    head = open_checkpoint(path).lm_head()
    assert isinstance(head, CodedWeight)
    check_equal(head, coded)
    report = convert(path, tmp_path / "out")
    packed = PackedModel.open(tmp_path / "out", verify=True)
    codes, scales, points = coded.per_weight
    wanted = (codes - points.astype(np.float32)) * scales.astype(np.float32)
    np.testing.assert_array_equal(stored_matrix(packed, "lm_head"), wanted)
    assert next(m for m in report.matrices if m.name == "lm_head").origin == "kept"
    assert packed.quantization["head_bits"] == 4
    ids = np.arange(9)
    decoder = load_decoder(packed)
    logits = decoder.forward(ids, KVCache(decoder.config, 20), "all")
    convert(path, tmp_path / "float", bits=16, force=True)
    reference = load_decoder(PackedModel.open(tmp_path / "float"))
    assert relative_rms(logits, reference.forward(ids, KVCache(decoder.config, 20), "all")) < 5e-2
    requantised = convert(path, tmp_path / "eight", head_bits=8)
    last = requantised.matrices[-1]
    assert (last.name, last.bits, last.origin) == ("lm_head", 8, "requantised")
    assert 0 < last.relative_rms < 0.02


def test_a_quantised_output_head_of_another_kind(files: Any, tensors: Any) -> None:
    stored = tensors()
    del stored["lm_head.weight"]
    stored["lm_head.qweight"] = np.zeros((4, 40), np.int32)
    with pytest.raises(UnsupportedError, match=r"lm_head\.qweight"):
        open_checkpoint(files.write(stored))


def test_tensors_of_another_format_than_the_settings_say(maker: Maker) -> None:
    maker.write(awq_gemm, {**GPTQ})
    with pytest.raises(CheckpointError, match=r"scales|qweight"):
        open_checkpoint(maker.files.path)
    maker.config(quantization_config={"quant_method": "hqq"})
    with pytest.raises(CheckpointError, match="W_q is missing"):
        open_checkpoint(maker.files.path)


def test_a_model_type_that_is_bitnet_alone(maker: Maker) -> None:
    maker.write(v1, GPTQ)
    maker.config(quantization_config=GPTQ, model_type="bitnet", architectures=["BitNetForCausalLM"])
    with pytest.raises(UnsupportedError, match=r"quant_method is 'gptq'.*bitnet for model_type bitnet"):
        open_checkpoint(maker.files.path)


def keys_of(settings: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in settings.items() if isinstance(settings, dict) else ():
        yield (*path, key)
        yield from keys_of(value, (*path, key))


@pytest.mark.parametrize(
    "name",
    ["gptq_v1_2bit_g64_desc_act", "awq_4bit_g32", "compressed_tensors_4bit_g32", "hqq_axis1_2bit_g64"],
)
def test_any_value_in_the_settings_is_read_or_refused_in_one_line(
    golden_dir: Path, tmp_path: Path, name: str
) -> None:
    config = json.loads((golden_dir / name / "config.json").read_text())
    shutil.copyfile(golden_dir / name / "model.safetensors", tmp_path / "model.safetensors")
    messages = []
    for path in keys_of(config["quantization_config"]):
        for junk in (None, -1, 0, 3, True, "x", [], [1], {"a": 1}, 1e300, 10**30):
            changed = json.loads(json.dumps(config))
            inner = changed["quantization_config"]
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = junk
            (tmp_path / "config.json").write_text(json.dumps(changed))
            try:
                open_checkpoint(tmp_path).linear(UP).rows(0, 9)
            except TmacError as error:
                messages.append(str(error))
    assert not [message for message in messages if "\n" in message]
    assert len(messages) >= 11  # quant_method at least has no such value


# ---- conversion -------------------------------------------------------------------------------------------


def test_conversion_keeps_codes_and_says_what_it_found(maker: Maker, tmp_path: Path) -> None:
    source = maker.write(v1, {**GPTQ, "checkpoint_format": "gptq_v2", "sym": True})
    for name, coded in maker.coded.items():
        coded.zeros[:] = 8
        maker.tensors |= {f"{name}.{k}": np.ascontiguousarray(t) for k, t in v1(coded).items()}
    maker.save({**GPTQ, "checkpoint_format": "gptq_v2", "sym": True})
    report = convert(source, tmp_path / "out", head_bits=16)
    model = PackedModel.open(tmp_path / "out", verify=True)
    assert (report.bits, model.quantization["bits"], model.quantization["group_size"]) == (4, 4, 32)
    assert "zeros v1" in report.format
    assert "read as version 1" in report.notes[0]
    assert model.quantization["source_format"] == report.format
    assert model.quantization["source_notes"] == list(report.notes)
    assert report.gain is None  # nothing was quantised
    code, scale, zero = (
        np.concatenate(
            [maker.coded[f"model.layers.0.mlp.{part}_proj"].per_weight[i] for part in ("gate", "up")]
        )
        for i in range(3)
    )
    found = stored_matrix(model, "model.layers.0.mlp.gate_up_proj")
    np.testing.assert_array_equal(found, (code.astype(np.float32) - zero) * scale)
    assert not model.shape("model.layers.0.mlp.gate_up_proj").has_zeros


def test_conversion_to_other_bits_takes_force(maker: Maker, tmp_path: Path) -> None:
    source = maker.write(v1, GPTQ)
    with pytest.raises(
        ConvertError, match=r"--bits 2: the weights are quantised already.*--force requantises"
    ):
        convert(source, tmp_path / "out", bits=2)
    assert convert(source, tmp_path / "two", bits=2, group_size=64, force=True).bits == 2
    assert convert(source, tmp_path / "same", bits=4).gain is None


def test_a_linear_left_in_float_stays_float(maker: Maker, tmp_path: Path) -> None:
    maker.write(v1, {**GPTQ, "dynamic": {"-:.*up_proj": {}}})
    for key in ("qweight", "qzeros", "scales", "g_idx"):
        del maker.tensors[f"{UP}.{key}"]
    maker.tensors[f"{UP}.weight"] = np.random.default_rng(0).standard_normal((48, 32)).astype(np.float16)
    report = convert(maker.save({**GPTQ, "dynamic": {"-:.*up_proj": {}}}), tmp_path / "out")
    model = PackedModel.open(report.path)
    np.testing.assert_array_equal(model.tensor(f"{UP}.weight"), maker.tensors[f"{UP}.weight"])
    assert model.shape("model.layers.0.mlp.gate_proj").bits == 4
    assert "stored in float" in report.notes[0]


def test_permutations_are_stored_and_checked(maker: Maker, tmp_path: Path) -> None:
    """Scattered groups: each linear has its own order, so none is fused; a broken order does not open."""
    source = maker.write(v1, {**GPTQ, "desc_act": True}, scatter=True)
    convert(source, tmp_path / "out")
    model = PackedModel.open(tmp_path / "out", verify=True)
    down = "model.layers.0.mlp.down_proj"  # 48 inputs: two groups, the others have one
    perm = model.tensor(f"{down}.perm")
    assert [name for name in model.names() if name.endswith(".perm")] == [f"{down}.perm"]
    np.testing.assert_array_equal(perm, np.argsort(maker.coded[down].group, kind="stable"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for i, value in enumerate((perm[1], -1, 48)):
        broken = perm.copy()
        broken[0] = value
        tensors = {**stored, f"{down}.perm": broken}
        specs = [
            TensorSpec(n, {"uint8": "U8", "float32": "F32", "int32": "I32"}[t.dtype.name], t.shape)
            for n, t in tensors.items()
        ]
        with PackedWriter(tmp_path / str(i), specs) as writer:
            for spec in writer.specs:
                writer.write(spec.name, tensors[spec.name])
            writer.finish(json.loads((tmp_path / "out" / "config.json").read_text()), [])
        with pytest.raises(PackedModelError, match=r"down_proj\.perm: not a permutation of 48 columns"):
            PackedModel.open(tmp_path / str(i))
