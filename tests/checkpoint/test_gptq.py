"""GPTQ tensors: round trips through a plain writer, versions, orders, groups, and what is refused."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised import NAME, check_equal, gptq, per_weight, random_coded, read, write

from tmac_llm.checkpoint import DenseWeight
from tmac_llm.checkpoint.gptq import Gptq, GptqSettings, gptq_settings
from tmac_llm.errors import CheckpointError, UnsupportedError

BOTH = CheckpointError  # UnsupportedError is one


def reader(path: Path, tensors: dict[str, np.ndarray], **changes: Any) -> Gptq:
    values = {"label": "GPTQ", "version": 2, "bits": 4, "group_size": 32, **changes}
    return Gptq(write(path, tensors), [], GptqSettings(**values))


def notes(encoding: Gptq) -> str:
    return " | ".join(encoding._notes)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trips(data: st.DataObject) -> None:
    order = data.draw(st.sampled_from(["stream", "planar", "fields"]))
    bits = data.draw(st.sampled_from([2, 3, 4, 8] + [5, 6, 7] * (order == "planar")))
    version = data.draw(st.sampled_from([1, 2]))
    group_size = data.draw(st.sampled_from([0, 32, 64, 96, 128, 256]))
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 300))
    if order != "fields":
        n, k = 32 * -(-n // 32), 32 * -(-k // 32)  # whole words, as the writers of these formats demand
    desc_act = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    coded = random_coded(rng, bits, n, k, group_size, desc_act)
    tensors = gptq(coded, version, order)
    with tempfile.TemporaryDirectory() as directory:
        encoding = reader(
            Path(directory),
            tensors,
            version=version,
            bits=bits,
            group_size=group_size,
            desc_act=desc_act,
            planar=order == "planar",
        )
        if order == "fields" and bits == 3 and tensors["qweight"].shape[0] == -(-k * 3 // 32):
            return  # too small to tell the orders apart by shape
        encoding.check(NAME, coded.shape)
        middle = 1 << bits - 1
        if len(set(np.unique(coded.zeros))) == 1 and coded.zeros[0, 0] in (middle, middle - 1, middle + 1):
            return  # what test_versions_by_the_data is about
        check_equal(read(encoding, coded.shape), coded)


@pytest.mark.parametrize(
    ("group_size", "native"), [(96, 32), (160, 32), (192, 64), (256, 128), (320, 0), (128, 128)]
)
def test_groups_of_other_sizes_are_several_smaller_ones(
    tmp_path: Path, rng: Any, group_size: int, native: int
) -> None:
    coded = random_coded(rng, 4, 32, 320, group_size)
    weight = read(reader(tmp_path, gptq(coded), group_size=group_size), coded.shape)
    assert weight.group_size == native
    check_equal(weight, coded)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("stored", [1, 2])
@pytest.mark.parametrize("said", [1, 2])
def test_versions_by_the_data(tmp_path: Path, rng: Any, bits: int, stored: int, said: int) -> None:
    """Symmetric models show their version; a configuration that says otherwise is overruled, and told so."""
    coded = random_coded(rng, bits, 32, 64, 32)
    coded.zeros[:] = 1 << bits - 1
    encoding = reader(tmp_path, gptq(coded, stored), bits=bits, version=said)
    weight = read(encoding, coded.shape)
    check_equal(weight, coded)
    assert weight.zero == 1 << bits - 1
    assert f"zeros v{stored}" in encoding.description
    assert ("read as version" in notes(encoding)) == (stored != said)


def test_one_zero_point_that_is_not_the_middle_stays_with_the_declared_version(
    tmp_path: Path, rng: Any
) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    coded.zeros[:] = 3
    weight = read(reader(tmp_path, gptq(coded, 1), version=1), coded.shape)
    assert weight.zero == 3
    check_equal(weight, coded)


def test_version_one_wraps_per_field_without_a_carry(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    coded.zeros[:, 0] = 0  # stored as 15
    coded.zeros[:, 1] = 5
    check_equal(read(reader(tmp_path, gptq(coded, 1), version=1), coded.shape), coded)


def test_the_files_of_efficientqat(tmp_path: Path, rng: Any) -> None:
    """No settings at all: bits and groups from the shapes, ten codes of 3 bits per word, float32 scales."""
    for bits, order in ((2, "stream"), (3, "fields"), (4, "stream")):
        coded = random_coded(rng, bits, 48, 128, 64)
        coded.scales = coded.scales.astype(np.float32)
        tensors = gptq(coded, 2, order)
        encoding = reader(tmp_path / str(bits), tensors, bits=None, group_size=None)
        weight = read(encoding, coded.shape)
        assert (weight.bits, weight.group_size) == (bits, 64)
        check_equal(weight, coded)
        assert notes(encoding) == ""


def test_scales_that_float16_cannot_hold_are_told(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    coded.scales = np.full(coded.scales.shape, 1 + 2**-12, np.float32)
    encoding = reader(tmp_path / "a", gptq(coded))
    scales = per_weight(read(encoding, coded.shape))[1]
    assert (scales == 1).all()
    assert "rounded to float16: scales by up to 2.4e-04" in notes(encoding)
    coded.scales[:] = 1e6
    with pytest.raises(UnsupportedError, match=r"scale of 1e\+06 exceeds float16"):
        read(reader(tmp_path / "b", gptq(coded)), coded.shape).rows(0, 1)


def test_scales_of_rows_stay_float32(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 32, 160, 0)
    coded.scales = (1 / np.arange(1, 33, dtype=np.float32))[:, None]
    encoding = reader(tmp_path, gptq(coded), group_size=0)
    weight = read(encoding, coded.shape)
    assert weight.group_size == 0
    assert weight.rows(0, 32).scales.dtype == np.float32
    check_equal(weight, coded)
    assert notes(encoding) == ""


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_scales_that_are_no_numbers(tmp_path: Path, rng: Any, scale: float) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    coded.scales[3, 1] = scale
    with pytest.raises(CheckpointError, match=rf"{NAME}\.scales has a {scale} in row 1"):
        read(reader(tmp_path, gptq(coded)), coded.shape).rows(0, 8)


@pytest.mark.parametrize("desc_act", [False, True])
def test_group_indices(tmp_path: Path, rng: Any, desc_act: bool) -> None:
    coded = random_coded(rng, 4, 32, 96, 32)
    tensors = gptq(coded)
    negative = coded.group - 3  # counted from the end
    missing = {key: tensor for key, tensor in tensors.items() if key != "g_idx"}
    garbage = np.zeros(96, np.int32)
    for i, g_idx in enumerate((tensors["g_idx"], negative)):
        changed = {**tensors, "g_idx": g_idx.astype(np.int32)}
        encoding = reader(tmp_path / str(i), changed, desc_act=desc_act)
        weight = read(encoding, coded.shape)
        assert weight.perm is None
        assert notes(encoding) == ""
        check_equal(weight, coded)
    for i, broken in enumerate((missing, {**tensors, "g_idx": garbage})):
        encoding = reader(tmp_path / f"b{i}", broken, desc_act=desc_act)
        if desc_act:
            with pytest.raises(CheckpointError, match="g_idx"):
                read(encoding, coded.shape)
        else:
            check_equal(read(encoding, coded.shape), coded)
            assert ("holds no groups" in notes(encoding)) == (broken is not missing)


def test_scattered_groups_without_desc_act_are_followed_and_told(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 32, 96, 32, desc_act=True)
    encoding = reader(tmp_path, gptq(coded))
    check_equal(read(encoding, coded.shape), coded)
    assert "permutes groups although desc_act is false" in notes(encoding)


def test_layers_of_other_bits(tmp_path: Path, rng: Any) -> None:
    """`dynamic` overrides: each linear is what its shapes say, or float."""
    two, eight = random_coded(rng, 2, 32, 64, 32), random_coded(rng, 8, 32, 64, 64)
    dense = {"weight": rng.standard_normal((32, 64)).astype(np.float16)}
    files = write(tmp_path, gptq(two), gptq(eight), dense)
    encoding = Gptq(files, [], GptqSettings("GPTQ", 2, 4, 32, mixed=True))
    check_equal(read(encoding, two.shape), two)
    weight = read(encoding, eight.shape, f"{NAME}.1")
    check_equal(weight, eight)
    assert (weight.bits, weight.group_size) == (8, 64)
    assert encoding.check(f"{NAME}.2", (32, 64)) == [f"{NAME}.2.weight"]
    assert isinstance(encoding.linear(f"{NAME}.2", (32, 64), None), DenseWeight)
    assert "stored in float and stays so" in notes(encoding)


def test_biases_that_the_configuration_does_not_mention(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    for i, bias in enumerate((np.zeros(32, np.float16), np.arange(32, dtype=np.float16))):
        encoding = reader(tmp_path / str(i), {**gptq(coded), "bias": bias})
        weight = read(encoding, coded.shape)
        if i == 0:
            assert weight.bias is None
        else:
            np.testing.assert_array_equal(weight.bias, bias)
        assert bool(notes(encoding)) == bool(i)
    with pytest.raises(CheckpointError, match=r"bias has shape \[31\], expected \[32\]"):
        read(reader(tmp_path / "c", {**gptq(coded), "bias": bias[1:]}), coded.shape)
    with pytest.raises(UnsupportedError, match="bias has dtype U8"):
        read(reader(tmp_path / "d", {**gptq(coded), "bias": bias.astype(np.uint8)}), coded.shape)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"bits": 8},
            r"qweight has shape \[8, 32\] and qzeros \[2, 4\], expected those of 32 x 64 weights of 8",
        ),
        ({"planar": True, "bits": 3}, "3 bits"),
        ({"group_size": 64}, "2 groups for 64 inputs, expected 1 from group_size 64"),
        ({"group_size": 0}, "expected 1 from group_size -1"),
        ({"group_size": 48}, "groups of 48 columns are not supported"),
    ],
)
def test_settings_that_contradict_the_tensors(tmp_path: Path, rng: Any, change: Any, match: str) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    with pytest.raises(BOTH, match=match):
        read(reader(tmp_path, gptq(coded), **change), coded.shape)


@pytest.mark.parametrize("key", ["qweight", "qzeros", "scales", "g_idx"])
def test_misshapen_and_missing_tensors(tmp_path: Path, rng: Any, key: str) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    tensors = gptq(coded)
    for i, wrong in enumerate((tensors[key][:-1], tensors[key][None], tensors[key].astype(np.int64))):
        with pytest.raises(CheckpointError, match=key if i == 2 else f"{NAME}"):
            read(reader(tmp_path / str(i), {**tensors, key: wrong}), coded.shape)
    if key != "g_idx":
        del tensors[key]
        with pytest.raises(CheckpointError, match=rf"{key} is missing"):
            read(reader(tmp_path / "gone", tensors), coded.shape)


def test_a_file_cut_after_it_was_opened(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    weight = read(reader(tmp_path, gptq(coded)), coded.shape)
    file = tmp_path / "model.safetensors"
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size - 1200)
    with pytest.raises(CheckpointError, match="truncated"):
        weight.rows(0, 32)


def test_shapes_that_fit_two_packings_need_settings(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 3, 10, 10, 0)
    with pytest.raises(UnsupportedError, match="fits more than one packing"):
        read(reader(tmp_path, gptq(coded, 2, "fields"), bits=None, group_size=None), coded.shape)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'.*gptq, gptq_v2, gptq_p"),
        ({"checkpoint_format": 3}, "checkpoint_format"),
        ({"is_marlin_format": True}, "is_marlin_format"),
        ({"bits": 5}, "bits is 5"),
        ({"bits": 1}, "bits is 1"),
        ({"bits": "4"}, "bits must be an integer"),
        ({"bits": None}, "bits must be"),
        ({"group_size": -2}, "group_size"),
        ({"group_size": None}, "group_size"),
        ({"desc_act": "no"}, "desc_act"),
        ({"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
    ],
)
def test_settings_that_are_not_read(changes: Any, match: str) -> None:
    with pytest.raises(BOTH, match=f"config.json: quantization_config.*{match}"):
        gptq_settings({"bits": 4, "group_size": 128, **changes}, "quantization_config.")


def test_settings() -> None:
    found = gptq_settings({"bits": 6, "group_size": -1, "format": "gptq_p", "dynamic": {"+:x": {}}}, "")
    assert (found.bits, found.group_size, found.planar, found.version, found.mixed) == (6, 0, True, 2, True)
    assert gptq_settings({"bits": 4, "group_size": 128}, "").version == 1
    assert (
        gptq_settings(json.loads('{"bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"}'), "").version
        == 2
    )
