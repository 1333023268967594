"""Float checkpoints whose values are ternary: recognised, exact, and never seen where they are not."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tmac_llm.checkpoint import DenseWeight, TernaryWeight, open_checkpoint
from tmac_llm.errors import CheckpointError

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]
NAME = "model.layers.0.mlp.up_proj"


@pytest.fixture
def ternary_model(tensors: Callable[..., Any], linears: dict[str, tuple[int, int]]) -> Callable[[Any], Any]:
    """(dtype) -> (tensors, ternary values by linear); two row blocks, each with its own scale."""

    def build(dtype: Any) -> tuple[Any, Any]:
        rng = np.random.default_rng(3)
        stored, values = tensors(dtype), {}
        for name, (m, k) in linears.items():
            values[name] = rng.integers(-1, 2, (m, k)).astype(np.int8)
            scales = np.repeat([0.0123, 0.0456], m // 2).astype(dtype)
            stored[f"{name}.weight"] = values[name].astype(dtype) * scales[:, None]
        return stored, values

    return build


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_scale_per_row_block_is_exact(files: Any, ternary_model: Any, dtype: Any) -> None:
    stored, values = ternary_model(dtype)
    checkpoint = open_checkpoint(files.write(stored))
    assert checkpoint.format.endswith("holding ternary values")
    assert not checkpoint.config.int8_activations
    for name, expected in values.items():
        weight = checkpoint.linear(name)
        assert isinstance(weight, TernaryWeight)
        np.testing.assert_array_equal(weight.rows(0, len(expected)), expected)
        np.testing.assert_array_equal(weight.rows(2, 5), expected[2:5])
        restored = weight.rows(0, len(expected)) * weight.scales[:, None]
        np.testing.assert_array_equal(restored, stored[f"{name}.weight"].astype(np.float32))
    assert checkpoint.notes == []


def test_a_zero_row_has_scale_zero(files: Any, ternary_model: Any) -> None:
    stored, _ = ternary_model(np.float16)
    stored[f"{NAME}.weight"][3] = 0
    weight = open_checkpoint(files.write(stored)).linear(NAME)
    assert weight.scales[3] == 0
    assert not weight.rows(3, 4).any()


def test_column_blocks_stay_dense_with_a_note(files: Any, ternary_model: Any) -> None:
    """TriLM's down_proj and o_proj: one scale per block of columns."""
    stored, values = ternary_model(np.float16)
    name = "model.layers.0.mlp.down_proj"
    scales = np.repeat([0.5, 0.25, 0.125], 16).astype(np.float16)
    stored[f"{name}.weight"] = values[name].astype(np.float16) * scales
    checkpoint = open_checkpoint(files.write(stored))
    weight = checkpoint.linear(name)
    assert isinstance(weight, DenseWeight)
    np.testing.assert_array_equal(weight.rows(0, 32), stored[f"{name}.weight"])
    assert len(checkpoint.notes) == 1
    assert "mlp.down_proj, maybe not alone, is not ternary with one scale per row" in checkpoint.notes[0]
    assert isinstance(checkpoint.linear(NAME), TernaryWeight)
    checkpoint.linear(name)
    assert len(checkpoint.notes) == 1


def test_a_late_row_that_is_not_ternary(files: Any, ternary_model: Any) -> None:
    stored, _ = ternary_model(np.float16)
    stored[f"{NAME}.weight"][40, 3] = 0.3
    checkpoint = open_checkpoint(files.write(stored))
    assert isinstance(checkpoint.linear(NAME), DenseWeight)
    assert len(checkpoint.notes) == 1


def test_float_weights_are_not_ternary(files: Any, tensors: Any, ternary_model: Any) -> None:
    """One ordinary matrix makes the whole checkpoint an ordinary one."""
    stored, _ = ternary_model(np.float16)
    stored[f"{NAME}.weight"] = tensors(np.float16)[f"{NAME}.weight"]
    checkpoint = open_checkpoint(files.write(stored))
    assert checkpoint.format == "dense f16"
    assert isinstance(checkpoint.linear("model.layers.0.mlp.gate_proj"), DenseWeight)


def test_zero_weights_are_not_ternary(files: Any, ternary_model: Any) -> None:
    stored, _ = ternary_model(np.float16)
    stored[f"{NAME}.weight"][:] = 0
    assert open_checkpoint(files.write(stored)).format == "dense f16"


@pytest.mark.parametrize("row", [0, 30])
def test_infinity_is_not_a_scale(files: Any, ternary_model: Any, row: int) -> None:
    stored, _ = ternary_model(np.float16)
    stored[f"{NAME}.weight"][row, 5] = np.inf
    checkpoint = open_checkpoint(files.write(stored))
    with pytest.raises(CheckpointError, match=f"up_proj.*inf in row {row}"):
        checkpoint.linear(NAME).rows(0, 48)
