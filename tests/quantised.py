"""Plain writers of quantised linears in the tensors of each format, one bit after the other: oracles of the readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tmac_llm.checkpoint import CodedWeight
from tmac_llm.checkpoint.index import TensorFiles, open_tensor_files

PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
NAME = "model.layers.0.mlp.up_proj"


@dataclass
class Coded:
    """A random linear: codes (n, k), scales and zeros (n, groups), the group of each input (k,)."""

    bits: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    group: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape  # type: ignore[return-value]

    @property
    def per_weight(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Code, scale and zero of each weight, (n, k) each."""
        return self.codes, self.scales[:, self.group], self.zeros[:, self.group]


def random_coded(
    rng: np.random.Generator, bits: int, n: int, k: int, group_size: int, desc_act: bool = False
) -> Coded:
    """group_size 0: one group per row. desc_act: groups scattered over the inputs."""
    group = np.arange(k) // (group_size or k)
    n_groups = int(group[-1]) + 1
    return Coded(
        bits,
        rng.integers(0, 1 << bits, (n, k)).astype(np.uint8),
        rng.uniform(0.001, 2, (n, n_groups)).astype(np.float16),
        rng.integers(0, 1 << bits, (n, n_groups)).astype(np.uint8),
        rng.permutation(group) if desc_act else group,
    )


def pack(codes: np.ndarray, bits: int, order: str = "stream") -> np.ndarray:
    """int32 (rows, words): each row's codes as a stream, in fields, or in planes, bit by bit."""
    rows = []
    for row in codes.tolist():
        text: list[int] = []  # bits, lowest first
        if order == "planar" and bits in PLANES:
            row = row + [0] * (-len(row) % 32)
            for begin in range(0, len(row), 32):
                low = 0
                for width in PLANES[bits]:
                    text += [c >> low + b & 1 for c in row[begin : begin + 32] for b in range(width)]
                    low += width
        else:
            for i, code in enumerate(row):
                text += [code >> b & 1 for b in range(bits)]
                if order == "fields" and (i + 1) % (32 // bits) == 0:
                    text += [0] * (32 % bits)
        text += [0] * (-len(text) % 32)
        words = [sum(bit << b for b, bit in enumerate(text[i : i + 32])) for i in range(0, len(text), 32)]
        rows.append(words)
    return np.array(rows, np.uint32).view(np.int32)


def pack_awq(codes: np.ndarray) -> np.ndarray:
    """int32 (rows, columns / 8): nibble i of a word is column (0, 2, 4, 6, 1, 3, 5, 7)[i] of its eight."""
    eights = codes.reshape(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
    return pack(eights.reshape(codes.shape), 4)


def gptq(coded: Coded, version: int = 2, order: str = "stream", g_idx: bool = True) -> dict[str, np.ndarray]:
    stored = coded.zeros - np.uint8(1) & np.uint8((1 << coded.bits) - 1) if version == 1 else coded.zeros
    tensors = {
        "qweight": pack(coded.codes, coded.bits, order).T,
        "qzeros": pack(stored.T, coded.bits, order),
        "scales": coded.scales.T,
    }
    return tensors | ({"g_idx": coded.group.astype(np.int32)} if g_idx else {})


def awq_gemm(coded: Coded) -> dict[str, np.ndarray]:
    return {
        "qweight": pack_awq(coded.codes.T),
        "qzeros": pack_awq(coded.zeros.T),
        "scales": coded.scales.T,
    }


def awq_gemv(coded: Coded, group_size: int) -> dict[str, np.ndarray]:
    n_groups = coded.zeros.shape[1]
    multiple = 8 * {32: 4, 64: 2}.get(group_size, 1)
    padding = ((0, 0), (0, -n_groups % multiple))
    return {
        "qweight": pack(coded.codes, 4),
        "qzeros": pack(np.pad(coded.zeros, padding), 4),
        "scales": np.pad(coded.scales, padding),
    }


def pack_hqq(grouped: np.ndarray, bits: int) -> np.ndarray:
    """Grouped rows in parts that share a word, the first part in its highest bits."""
    n_fields = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}[bits]
    n_packed = -(-len(grouped) // n_fields)
    parts = np.zeros((n_fields, n_packed, grouped.shape[1]), np.int64)
    parts.reshape(-1, grouped.shape[1])[: len(grouped)] = grouped
    words = sum(part << bits * (n_fields - 1 - i) for i, part in enumerate(parts))
    return np.asarray(words).astype(np.int32 if bits == 3 else np.uint8)


def hqq(
    coded: Coded, float_zeros: np.ndarray, group_size: int, nbits: float | None = None
) -> dict[str, np.ndarray]:
    """Axis 1, with the metadata that readers need."""
    return {
        "W_q": pack_hqq(coded.codes.reshape(-1, group_size), coded.bits),
        "scale": coded.scales.reshape(-1, 1),
        "zero": float_zeros.reshape(-1, 1),
        "shape": np.array(coded.shape, np.int64),
        "nbits": np.array(nbits, np.float32) if nbits else np.array(coded.bits, np.int32),
        "group_size": np.array(group_size, np.int32),
        "axis": np.array(1, np.int32),
    }


def compressed(coded: Coded, order: str = "stream", symmetric: bool = False) -> dict[str, np.ndarray]:
    tensors = {
        "weight_packed": pack(coded.codes, coded.bits, order),
        "weight_scale": coded.scales,
        "weight_shape": np.array(coded.shape, np.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack(coded.zeros.T, coded.bits, order).T
    if (np.diff(coded.group) < 0).any():
        tensors["weight_g_idx"] = coded.group.astype(np.int32)
    return tensors


def write(path: Path, *linears: dict[str, np.ndarray]) -> TensorFiles:
    """A file with linears called NAME, NAME.1, NAME.2 and so on."""
    stored = {}
    for i, tensors in enumerate(linears):
        prefix = f"{NAME}.{i}" if i else NAME
        stored |= {f"{prefix}.{key}": np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    path.mkdir(parents=True, exist_ok=True)
    save_file(stored, path / "model.safetensors")
    return open_tensor_files(path)


def read(encoding: Any, shape: tuple[int, int], name: str = NAME) -> CodedWeight:
    """The linear as `encoding` gives it, its tensors all accounted for."""
    names = encoding.check(name, shape)
    assert len(set(names)) == len(names)
    assert encoding.description
    weight = encoding.linear(name, shape, None)
    assert isinstance(weight, CodedWeight)
    return weight


def per_weight(weight: CodedWeight, begin: int = 0, end: int | None = None) -> tuple[np.ndarray, ...]:
    """Code, scale and zero of each weight of rows [begin, end), inputs in their own order."""
    end = weight.shape[0] if end is None else end
    rows, k = weight.rows(begin, end), weight.shape[1]
    group = np.arange(k) // (weight.group_size or k)
    zeros = np.full_like(rows.scales, weight.zero) if rows.zeros is None else rows.zeros
    parts = [rows.codes, *(np.atleast_2d(part.T).T[:, group] for part in (rows.scales, zeros))]
    if weight.perm is not None:
        inverse = np.argsort(weight.perm)
        parts = [part[:, inverse] for part in parts]
    return tuple(parts)


def check_equal(weight: CodedWeight, coded: Coded, zeros: np.ndarray | None = None) -> None:
    """Every code, scale and zero is the stored one, read whole and in two parts."""
    codes, scales, points = coded.per_weight
    expected = codes, scales, points if zeros is None else zeros[:, coded.group]
    cut = weight.shape[0] // 3
    for begin, end in ((0, weight.shape[0]), (0, cut), (cut, weight.shape[0])):
        for found, wanted in zip(per_weight(weight, begin, end), expected, strict=True):
            np.testing.assert_array_equal(found, wanted[begin:end])
