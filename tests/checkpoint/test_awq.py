"""AWQ tensors in both versions: round trips through a plain writer, and what is refused."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised import NAME, awq_gemm, awq_gemv, check_equal, random_coded, read, write

from tmac_llm.checkpoint.awq import awq
from tmac_llm.errors import CheckpointError

GEMM = {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def reader(path: Path, tensors: dict[str, np.ndarray], **changes: Any) -> Any:
    return awq({**GEMM, **changes}, "quantization_config.", write(path, tensors), [])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_round_trips(data: st.DataObject) -> None:
    gemv = data.draw(st.booleans())
    group_size = data.draw(st.sampled_from([32, 64, 128, 256, -1]))
    n, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    n, k = (n, 8 * k) if gemv else (8 * n, k)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    coded = random_coded(rng, 4, n, k, max(group_size, 0))
    tensors = awq_gemv(coded, group_size if group_size > 0 else k) if gemv else awq_gemm(coded)
    with tempfile.TemporaryDirectory() as directory:
        version = "GEMV" if gemv else "gemm"
        encoding = reader(Path(directory), tensors, group_size=group_size, version=version)
        check_equal(read(encoding, coded.shape), coded)
        assert version.lower() in encoding.description


def test_the_old_names_of_the_settings(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 16, 64, 32)
    encoding = awq({"w_bit": 4, "q_group_size": 32}, "", write(tmp_path, awq_gemm(coded)), [])
    check_equal(read(encoding, coded.shape), coded)
    assert "no version: gemm" in encoding.description


@pytest.mark.parametrize("key", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("version", ["gemm", "gemv"])
def test_misshapen_and_missing_tensors(tmp_path: Path, rng: Any, key: str, version: str) -> None:
    coded = random_coded(rng, 4, 16, 64, 32)
    tensors = awq_gemm(coded) if version == "gemm" else awq_gemv(coded, 32)
    for i, wrong in enumerate((tensors[key][1:], tensors[key][:, 1:], tensors[key].astype(np.int64))):
        with pytest.raises(CheckpointError, match=rf"{NAME}\.{key}"):
            read(reader(tmp_path / str(i), {**tensors, key: wrong}, version=version), coded.shape)
    del tensors[key]
    with pytest.raises(CheckpointError, match=rf"{key} is missing"):
        read(reader(tmp_path / "gone", tensors, version=version), coded.shape)


def test_the_other_version_has_other_shapes(tmp_path: Path, rng: Any) -> None:
    coded = random_coded(rng, 4, 16, 64, 32)
    with pytest.raises(CheckpointError, match=r"qweight has shape \[64, 2\], expected \[16, 8\]"):
        read(reader(tmp_path, awq_gemm(coded), version="gemv"), coded.shape)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": "gemv_fast"}, "version is 'gemv_fast'.*supported: gemm, gemv"),
        ({"version": "marlin"}, "version is 'marlin'"),
        ({"bits": 3}, "bits is 3.*supported: 4"),
        ({"group_size": 0}, "group_size"),
    ],
)
def test_settings_that_are_not_read(tmp_path: Path, rng: Any, changes: Any, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        reader(tmp_path, awq_gemm(random_coded(rng, 4, 8, 32, 32)), **changes)


def test_rows_that_do_not_fill_words(tmp_path: Path, rng: Any) -> None:
    tensors = awq_gemm(random_coded(rng, 4, 16, 64, 32))
    with pytest.raises(CheckpointError, match="12 x 64 weights cannot be packed by eights"):
        reader(tmp_path, tensors).check(NAME, (12, 64))
