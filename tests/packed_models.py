"""What a packed model holds, decoded, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tmac_llm import kernels
from tmac_llm.packed import names
from tmac_llm.packed.container import PackedModel


def stored_matrix(model: PackedModel, name: str) -> np.ndarray:
    """float32 (m, k) of a matrix of a packed model, decoded."""
    shape = model.shape(name)
    if shape is None:
        return model.tensor(f"{name}.weight").astype(np.float32)
    return kernels.dequantize_rows(shape, model.tiles(name), np.arange(shape.m, dtype=np.int32))


def stored_linear(model: PackedModel, name: str) -> np.ndarray:
    """The rows of one linear layer, wherever it is stored."""
    if model.shape(name) or model.has(f"{name}.weight"):
        return stored_matrix(model, name)
    for group in names.linear_groups(model.config):
        begin = 0
        for part in group.parts:
            if part.name == name:
                return stored_matrix(model, group.fused.name)[begin : begin + part.m]
            begin += part.m
    raise KeyError(name)


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


def everything(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))
