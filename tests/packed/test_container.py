"""PackedModel: what it hands out, and one line for everything that is not as a writer leaves it."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tmac_llm.errors import PackedModelError
from tmac_llm.kernels import MatrixShape
from tmac_llm.packed import tiles
from tmac_llm.packed.container import PackedModel

QKV = "model.layers.0.self_attn.qkv_proj"
TENSORS = "model.safetensors"
MANIFEST = "tmac_manifest.json"


def refused(path: Path, *parts: str, verify: bool = False) -> None:
    """Opening fails in one line that holds these parts."""
    with pytest.raises(PackedModelError) as error:
        PackedModel.open(path, verify=verify)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000
    for part in (str(path), *parts):
        assert part in message, message


def edit_header(data: bytes, change) -> bytes:
    """A safetensors file with its header changed by a function."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_hands_out_what_the_safetensors_library_reads(packed):
    model = PackedModel.open(packed, verify=True)
    stored = safetensors.numpy.load_file(packed / TENSORS)
    assert set(model.names()) == set(stored)
    for name, expected in stored.items():
        tensor = model.tensor(name)
        assert np.array_equal(tensor, expected)
        assert tensor.flags.aligned
        assert not tensor.flags.writeable
    assert model.tiles(QKV).ctypes.data % 64 == 0
    assert model.shape(QKV) == MatrixShape(128, 64, 2, 32, True, 0.0)
    assert model.shape("model.norm") is None
    assert model.has(f"{QKV}.bias")
    assert not model.has("lm_head.bias")
    assert model.config.qkv_bias
    assert model.quantization["bits"] == 2
    assert model.n_bytes == sum(file.stat().st_size for file in packed.iterdir() if file.name != MANIFEST)


def test_counts_bits_of_scales_and_padding(packed):
    model = PackedModel.open(packed)
    shapes = [model.shape(name.removesuffix(".tiles")) for name in model.names() if name.endswith(".tiles")]
    stored = 8 * sum(tiles.packed_size(shape) for shape in shapes)
    assert model.bits_per_weight == pytest.approx(stored / sum(shape.m * shape.k for shape in shapes))


def test_views_survive_a_release_of_memory(packed):
    model = PackedModel.open(packed)
    tensor = model.tiles(QKV)
    before = tensor.copy()
    model.release()
    assert np.array_equal(tensor, before)


def test_an_unknown_tensor_is_an_error(packed):
    with pytest.raises(PackedModelError, match=r"no tensor 'model\.layers\.7"):
        PackedModel.open(packed).tensor("model.layers.7.mlp.up_proj.weight")


@pytest.mark.parametrize("name", [TENSORS, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("keep", [0, 0.5, -1])
def test_truncated_files(packed, name, keep):
    data = (packed / name).read_bytes()
    cut = data[:-1] if keep == -1 else data[: int(len(data) * keep)]
    (packed / name).write_bytes(cut)
    refused(packed, name, f"expected {len(data)} bytes", f"found {len(cut)}")


@pytest.mark.parametrize("name", [TENSORS, "config.json", "tokenizer.json"])
def test_missing_files(packed, name):
    (packed / name).unlink()
    refused(packed, f"{name}: missing")


def test_not_a_packed_model(tmp_path, packed):
    refused(tmp_path / "nowhere", "no such directory")
    refused(packed / "config.json", "no such directory")
    (packed / MANIFEST).unlink()
    refused(packed, f"no {MANIFEST}", "tmac-llm convert")


def test_an_unfinished_conversion_is_refused_even_when_complete(packed):
    temporary = packed.rename(packed.parent / ".model.convert-4711-0123abcd")
    refused(temporary, "unfinished conversion")


def test_every_flipped_byte_is_found_by_verify(packed):
    for name in (TENSORS, "tokenizer.json"):
        data = bytearray((packed / name).read_bytes())
        for position in (0, len(data) // 2, len(data) - 1):
            data[position] ^= 1
            (packed / name).write_bytes(data)
            with pytest.raises(PackedModelError):
                PackedModel.open(packed, verify=True)
            data[position] ^= 1
        (packed / name).write_bytes(data)
    PackedModel.open(packed, verify=True)


def test_a_scale_that_is_no_number_is_found_by_verify(packed, sign):
    data = bytearray((packed / TENSORS).read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    begin = 8 + length + header[f"{QKV}.tiles"]["data_offsets"][0]
    shape = PackedModel.open(packed).shape(QKV)
    stream = np.frombuffer(data, np.uint8)[begin : begin + shape.packed_size]
    tiles.tails(shape, stream)[0, 0, 0, 3] = np.nan
    sign(TENSORS, bytes(data))
    PackedModel.open(packed)
    refused(packed, QKV, "NaN", verify=True)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: m.update(format_version=2), ("format_version 1", "found 2", "install")),
        (lambda m: m.update(format_version=True), ("format_version 1", "found True")),
        (lambda m: m.pop("format_version"), ("format_version 1", "found None")),
        (lambda m: m.update(format="gguf"), ("tmac-packed", "gguf")),
        (lambda m: m.update(files=[]), ("`files`",)),
        (lambda m: m["files"].pop("config.json"), ("config.json",)),
        (lambda m: m["files"].update({"../config.json": {}}), ("'../config.json'", "not the name of a file")),
        (lambda m: m["files"].update({"/etc/passwd": {}}), ("not the name of a file",)),
        (lambda m: m["files"].update({"a\nb": {}}), ("not the name of a file",)),
        (lambda m: m["files"].update({"\ud800": {}}), ("not the name of a file",)),
        (lambda m: m["files"].update({"config.json": {"size": "1", "sha256": ""}}), ("size and sha256",)),
        (lambda m: m["files"].update({"config.json": None}), ("size and sha256",)),
    ],
)
def test_manifests(packed, change, parts):
    manifest = json.loads((packed / MANIFEST).read_text())
    change(manifest)
    (packed / MANIFEST).write_text(json.dumps(manifest))
    refused(packed, MANIFEST, *parts)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000],
    ids=["empty", "cut", "list", "not utf-8", "long number", "deep"],
)
@pytest.mark.parametrize("name", [MANIFEST, "config.json"])
def test_broken_json(packed, sign, name, text):
    if name == MANIFEST:
        (packed / name).write_bytes(text)
    else:
        sign(name, text)
    refused(packed, name)


def test_json_of_unbounded_size_is_not_read(packed, sign):
    sign("config.json", (packed / "config.json").read_bytes().ljust((16 << 20) + 1))
    refused(packed, "config.json", "larger than 16777216 bytes")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.pop("quantization_config"), ("quant_method 'tmac'",)),
        (lambda c: c["quantization_config"].update(quant_method="gptq"), ("quant_method 'tmac'",)),
        (lambda c: c["quantization_config"].update(format_version=3), ("format_version 1", "found 3")),
        (lambda c: c["quantization_config"].update(layout_version=0), ("layout_version 1 or 2", "found 0")),
        (lambda c: c["quantization_config"]["tile"].update(rows_per_block=32), ("tile", "64")),
        (lambda c: c["quantization_config"].update(bits="2"), ("bits", "'2'")),
        (lambda c: c["quantization_config"].pop("matrices"), ("matrices",)),
        (lambda c: c["quantization_config"].pop("int8_activations"), ("int8_activations",)),
        (lambda c: c.update(model_type="gpt2"), ("model_type", "gpt2")),
        (lambda c: c.update(hidden_size=-1), ("hidden_size",)),
        (lambda c: c.update(hidden_size=128, head_dim=32), ("expected (",)),
        (lambda c: c.update(num_hidden_layers=2), ("model.layers.1", "missing")),
        (lambda c: c.update(num_hidden_layers=4096), ("missing",)),
        (lambda c: c.update(tie_word_embeddings=True), ("lm_head", "no place")),
        (lambda c: c.update(model_type="qwen3"), ("q_norm", "missing")),
    ],
)
def test_configs(packed, edit_config, change, parts):
    edit_config(change)
    refused(packed, *parts)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 2.0},
        {"m": 0},
        {"m": 2**31},
        {"m": True},
        {"k": 65537},
        {"group_size": 48},
        {"group_size": None},
        {"has_zeros": 1},
        {"encoding": "trits"},
        {"encoding": 1},
        {"encoding": ["planes"]},
        {"encoding": "ternary"},
        {"encoding": "ternary", "group_size": 0, "has_zeros": False, "zero": 0.0},
        {"zero": float("nan")},
        {"zero": "0"},
        {"zero": 10**400},
        {"more": 1},
    ],
    ids=str,
)
def test_impossible_shapes(packed, edit_config, fields):
    edit_config(lambda c: c["quantization_config"]["matrices"][QKV].update(fields))
    refused(packed, QKV, "not a shape")


def test_layout_version_1_has_planes(packed, edit_config):
    def change(config):
        config["quantization_config"]["layout_version"] = 1
        for fields in config["quantization_config"]["matrices"].values():
            fields.pop("encoding", None)

    edit_config(change)
    assert PackedModel.open(packed).shape(QKV) == MatrixShape(128, 64, 2, 32, True, 0.0)


@pytest.mark.parametrize(
    "fields", [{"m": 127}, {"k": 63}, {"bits": 3}, {"group_size": 64}, {"has_zeros": False}]
)
def test_shapes_that_do_not_fit_the_tensors(packed, edit_config, fields):
    edit_config(lambda c: c["quantization_config"]["matrices"][QKV].update(fields))
    refused(packed, QKV, "expected")


def test_a_matrix_without_tiles_and_one_without_place(packed, edit_config):
    edit_config(lambda c: c["quantization_config"]["matrices"].pop(QKV))
    refused(packed, "self_attn", "missing")
    shape = {"m": 1, "k": 1, "bits": 1, "group_size": 0, "has_zeros": False, "zero": 0.5}
    edit_config(lambda c: c["quantization_config"]["matrices"].update({QKV: {**shape, "m": 128, "k": 64}}))
    refused(packed, QKV)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda h: h.update({"extra": h.pop("model.norm.weight")}), ("model.norm.weight", "missing")),
        (lambda h: h["model.norm.weight"].update(shape=[8, 8]), ("model.norm.weight", "(64,)")),
        (lambda h: h["model.norm.weight"].update(dtype="I32"), ("model.norm.weight", "I32")),
        (lambda h: h[f"{QKV}.tiles"].update(dtype="I8"), (QKV, "I8")),
        (lambda h: h[f"{QKV}.bias"].update(dtype="F16", shape=[256]), (f"{QKV}.bias", "F32 (128,)")),
        (lambda h: h["model.norm.weight"].update(data_offsets=[0, 256]), ()),
        (lambda h: h["model.norm.weight"].update(data_offsets=[2**62, 2**62 + 256]), ()),
        (lambda h: h["model.norm.weight"].update(data_offsets=[256, 0]), ()),
        (lambda h: h["model.norm.weight"].update(data_offsets="all"), ()),
        (lambda h: h["model.norm.weight"].update(shape=[2**40, 2**40]), ()),
        (lambda h: h["model.norm.weight"].update(shape=[-64]), ()),
        (
            lambda h: h.update({"model.norm.weight": list(h["model.norm.weight"].values())}),
            ("model.norm.weight",),
        ),
        (lambda h: h.update({"a\nb": h.pop("model.norm.weight")}), ()),
    ],
)
def test_tensor_headers(packed, sign, change, parts):
    sign(TENSORS, edit_header((packed / TENSORS).read_bytes(), change))
    refused(packed, *parts)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**62, 2**64 - 1])
def test_header_lengths(packed, sign, length):
    data = (packed / TENSORS).read_bytes()
    sign(TENSORS, struct.pack("<Q", length) + data[8:])
    refused(packed, TENSORS)


def test_files_that_hold_no_tensors(packed, sign):
    for data in (b"", b"\0" * 7, b"\0" * 8):
        sign(TENSORS, data)
        refused(packed, TENSORS)


def test_a_repeated_key_cannot_point_elsewhere(packed, sign):
    data = (packed / TENSORS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + length].rstrip()[:-1]
    text += b',"model.norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[999999999,1000000255]}}'
    sign(TENSORS, struct.pack("<Q", len(text)) + text + data[8 + length :])
    refused(packed, TENSORS)


def test_a_tensor_in_two_files(packed, sign):
    norm = {"model.norm.weight": np.ones(64, np.float32)}
    sign("more.safetensors", safetensors.numpy.save(norm))
    refused(packed, "model.norm.weight", "another file")


def test_a_float_matrix_may_have_every_float_type(packed, sign, edit_config):
    edit_config(lambda c: c["quantization_config"]["matrices"].pop("lm_head"))
    stored = safetensors.numpy.load_file(packed / TENSORS)
    stored.pop("lm_head.tiles")
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        head = np.ones((264, 64), dtype)
        sign(TENSORS, safetensors.numpy.save({**stored, "lm_head.weight": head}))
        assert PackedModel.open(packed).tensor("lm_head.weight").dtype == dtype
    sign(TENSORS, safetensors.numpy.save({**stored, "lm_head.weight": np.ones((264, 63), np.float32)}))
    refused(packed, "lm_head.weight", "(264, 64)", "(264, 63)")
