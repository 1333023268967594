"""compressed-tensors: round trips in both layouts, integer weights, targets, and what is refused."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from quantised import NAME, check_equal, compressed, random_coded, read, write

from tmac_llm.checkpoint.compressed_tensors import compressed_tensors
from tmac_llm.checkpoint.unpack import n_words
from tmac_llm.errors import CheckpointError, UnsupportedError


def config(
    bits: int = 4, group_size: int = 32, kind: str = "pack-quantized", **changes: Any
) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, **strategy, **changes.pop("weights", {})}
    group = {"targets": ["Linear"], "weights": weights, **changes.pop("group", {})}
    return {"format": kind, "config_groups": {"group_0": group}, "ignore": ["lm_head"], **changes}


def reader(path: Path, tensors: dict[str, np.ndarray], **changes: Any) -> Any:
    return compressed_tensors(config(**changes), write(path, tensors), [])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trips(data: st.DataObject) -> None:
    bits = data.draw(st.integers(2, 8))
    order = data.draw(st.sampled_from(["stream", "fields"]))
    group_size = data.draw(st.sampled_from([0, 32, 64, 96, 128]))
    symmetric = data.draw(st.booleans())
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 300))
    assume(n_words(k, bits, "fields") != n_words(k, bits, "stream") or order == "stream" or 32 % bits == 0)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    coded = random_coded(rng, bits, n, k, group_size, data.draw(st.booleans()))
    if symmetric:
        coded.zeros[:] = 1 << bits - 1
    with tempfile.TemporaryDirectory() as directory:
        tensors = compressed(coded, order, symmetric)
        encoding = reader(Path(directory), tensors, bits=bits, group_size=group_size)
        weight = read(encoding, coded.shape)
        check_equal(weight, coded)
        assert (weight.zero is not None) == symmetric


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from([0, 32, 64, 96]),
    st.integers(0, 2**32),
)
def test_round_trips_of_integers(bits: int, n: int, k: int, group_size: int, seed: int) -> None:
    coded = random_coded(np.random.default_rng(seed), bits, n, k, group_size)
    coded.zeros[:] = 1 << bits - 1
    stored = (coded.codes.astype(np.int16) - (1 << bits - 1)).astype(np.int8)
    with tempfile.TemporaryDirectory() as directory:
        tensors = {"weight": stored, "weight_scale": coded.scales}
        encoding = reader(Path(directory), tensors, bits=bits, group_size=group_size, kind="int-quantized")
        check_equal(read(encoding, coded.shape), coded)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_integers_of_eight_bits(tmp_path: Path, rng: Any, per_tensor: bool) -> None:
    coded = random_coded(rng, 8, 24, 64, 0)
    coded.zeros[:] = 128
    scales = coded.scales
    if per_tensor:
        coded.scales, scales = np.full((24, 1), 0.5, np.float16), np.array([0.5], np.float16)
    tensors = {"weight": (coded.codes.astype(np.int16) - 128).astype(np.int8), "weight_scale": scales}
    weights = {"strategy": "tensor"} if per_tensor else {}
    activations = {"num_bits": 8, "dynamic": True}
    encoding = reader(
        tmp_path,
        tensors,
        bits=8,
        group_size=0,
        kind="int-quantized",
        weights=weights,
        group={"input_activations": activations},
    )
    check_equal(read(encoding, coded.shape), coded)
    assert "quantises activations too" in encoding._notes[0]


def test_plain_zero_points_of_integers(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 8, 24, 64, 0)
    tensors = {
        "weight": (coded.codes.astype(np.int16) - 128).astype(np.int8),
        "weight_scale": coded.scales,
        "weight_zero_point": (coded.zeros.astype(np.int16) - 128).astype(np.int8),
    }
    encoding = reader(tmp_path, tensors, bits=8, group_size=0, kind="int-quantized")
    check_equal(read(encoding, coded.shape), coded)


def test_integers_beyond_their_bits(tmp_path: Path) -> None:
    tensors = {"weight": np.full((4, 32), 9, np.int8), "weight_scale": np.ones((4, 1), np.float16)}
    encoding = reader(tmp_path, tensors, bits=4, group_size=0, kind="naive-quantized")
    with pytest.raises(CheckpointError, match="values beyond 4 bits in rows 0 to 3"):
        read(encoding, (4, 32)).rows(0, 4)


def test_targets(tmp_path: Path, rng: Any) -> None:
    """A group that names a linear goes before the one for all; one may be an expression."""
    parts = [random_coded(rng, bits, 32, 64, 32) for bits in (4, 8, 2)]
    settings_ = config()
    groups = settings_["config_groups"]
    for key, bits, target in (("a", 8, "re:.*up_proj[.]1$"), ("b", 2, f"{NAME}.2")):
        groups[key] = config(bits=bits, group={"targets": [target]})["config_groups"]["group_0"]
    encoding = compressed_tensors(settings_, write(tmp_path, *(compressed(p) for p in parts)), [])
    for i, coded in enumerate(parts):
        check_equal(read(encoding, coded.shape, f"{NAME}.{i}" if i else NAME), coded)
    del groups["group_0"]
    encoding = compressed_tensors(settings_, write(tmp_path / "b", compressed(parts[0])), [])
    with pytest.raises(CheckpointError, match="no group of config_groups has it as a target"):
        read(encoding, (32, 64))


def test_group_indices_that_were_never_filled_in(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    unset = np.full(64, -1, np.int32)
    check_equal(read(reader(tmp_path, {**compressed(coded), "weight_g_idx": unset}), coded.shape), coded)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"weight_packed": np.zeros((32, 9), np.int32)},
            r"has shape \[32, 9\], expected \[32, 8\] for 32 x 64",
        ),
        ({"weight_packed": np.zeros((32, 8), np.int64)}, "weight_packed has dtype I64"),
        ({"weight_packed": None}, "weight_packed is missing"),
        (
            {"weight_scale": np.zeros((32, 1), np.float16)},
            r"weight_scale has shape \[32, 1\], expected \[32, 2\]",
        ),
        ({"weight_shape": np.array([64, 32])}, r"weight_shape is \[64, 32\], expected \[32, 64\]"),
        ({"weight_shape": None}, "weight_shape is missing"),
        ({"weight_zero_point": np.zeros((4, 3), np.int32)}, "weight_zero_point is I32"),
        ({"weight_g_idx": np.zeros(64, np.int32)}, "weight_g_idx does not give each of 2 groups 32 inputs"),
        ({"weight_g_idx": np.zeros(63, np.int32)}, "weight_g_idx has shape"),
    ],
)
def test_misshapen_and_missing_tensors(tmp_path: Path, rng: Any, change: Any, match: str) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    tensors = {**compressed(coded), **change}
    with pytest.raises(CheckpointError, match=match):
        read(reader(tmp_path, {k: v for k, v in tensors.items() if v is not None}), coded.shape)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "float-quantized"}, "format is 'float-quantized'.*pack-quantized, int-quantized"),
        ({"kind": "marlin-24"}, "format is 'marlin-24'"),
        ({"group": {"format": "nvfp4-pack-quantized"}}, "group_0.format is 'nvfp4"),
        ({"weights": {"type": "float"}}, "weights.type is 'float'"),
        ({"weights": {"strategy": "block"}}, "strategy is 'block'"),
        ({"bits": 9}, "num_bits"),
        ({"group": {"targets": "Linear"}}, "targets must be a list"),
        ({"group": {"targets": ["re:("]}}, "targets: 're:"),
        ({"group": {"weights": None}}, "type"),
        ({"config_groups": {}}, "config_groups"),
    ],
)
def test_settings_that_are_not_read(tmp_path: Path, rng: Any, changes: Any, match: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedError), match=match):
        reader(tmp_path, compressed(random_coded(rng, 4, 32, 64, 32)), **changes)


def test_zero_points_that_are_announced_and_missing(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 32, 64, 32)
    tensors = compressed(coded, symmetric=True)
    with pytest.raises(
        CheckpointError, match="weight_zero_point is missing, which weights that are not symm"
    ):
        read(reader(tmp_path, tensors, weights={"symmetric": False}), coded.shape)
