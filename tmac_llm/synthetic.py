"""Random weights at a real model's shapes, made when they are read; knows no files.

For measuring: time and memory of a model without its checkpoint. The answers are noise.
"""

from __future__ import annotations

import math
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from tmac_llm.errors import PackedModelError, UsageError
from tmac_llm.kernels import MatrixShape
from tmac_llm.model.config import ModelConfig
from tmac_llm.packed import names, tiles
from tmac_llm.resources import known_models

FLOAT_BITS = 16
TERNARY_BITS = 2


class SyntheticModel:
    """The reading interface of packed.container.PackedModel over random weights, the same for the same seed.

    bits: 1 to 8 of the linears in the layers, 16 for float16; models with int8 activations (BitNet) are
    ternary, bits 2. group_size: 32, 64 or 128 columns share a scale and a zero point. head_bits: of embedding
    and output head. Nothing is kept: each reading makes a matrix anew, so the largest one bounds the memory.
    """

    def __init__(
        self, config: ModelConfig, bits: int = 2, group_size: int = 128, head_bits: int = 8, seed: int = 0
    ) -> None:
        if config.int8_activations and bits != TERNARY_BITS:
            raise UsageError(f"--bits {bits}: a BitNet model is ternary; take --bits {TERNARY_BITS}")
        for option, value in (("--bits", bits), ("--head-bits", head_bits)):
            if not 1 <= value <= tiles.MAX_BITS and value != FLOAT_BITS:
                raise UsageError(f"{option} {value}: expected 1 to {tiles.MAX_BITS}, or {FLOAT_BITS}")
        if group_size not in tiles.GROUP_SIZES[1:]:
            raise UsageError(f"--group-size {group_size}: expected one of {tiles.GROUP_SIZES[1:]}")
        self.config = config
        self.label = "ternary" if config.int8_activations else f"{bits} bit"
        self._bits, self._group_size, self._head_bits, self._seed = bits, group_size, head_bits, seed
        in_layers = [group.fused for group in names.linear_groups(config)]
        self._linears = {linear.name: linear for linear in (*names.tables(config), *in_layers)}
        self._norms = names.norms(config)

    @property
    def n_bytes(self) -> int:
        """Bytes of all matrices."""
        shapes = [(self.shape(linear.name), linear) for linear in self._linears.values()]
        return sum(shape.packed_size if shape else 2 * linear.m * linear.k for shape, linear in shapes)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this full name."""
        matrix, _, kind = name.rpartition(".")
        linear = self._linears.get(matrix)
        if linear is None:
            return name in self._norms
        return linear.bias if kind == "bias" else kind == ("tiles" if self.shape(matrix) else "weight")

    def shape(self, matrix: str) -> MatrixShape | None:
        """Shape of a packed matrix; None where it is kept in float, or absent."""
        linear = self._linears.get(matrix)
        if linear is None:
            return None
        in_table = matrix in (names.EMBEDDING, names.LM_HEAD)
        if self.config.int8_activations and not in_table:
            return MatrixShape(linear.m, linear.k, TERNARY_BITS, 0, False, 1.0, "ternary")
        bits = self._head_bits if in_table else self._bits
        return (
            None if bits == FLOAT_BITS else MatrixShape(linear.m, linear.k, bits, self._group_size, True, 0.0)
        )

    def tiles(self, matrix: str) -> npt.NDArray[np.uint8]:
        """uint8 (packed_size,): random codes, with scales that give weights of variance about 1 / k."""
        shape = self.shape(matrix)
        if shape is None:
            raise PackedModelError(f"synthetic model: no packed matrix {matrix}")
        rng = self._rng(matrix)
        data: npt.NDArray[np.uint8] = rng.bit_generator.random_raw(-(-shape.packed_size // 8)).view(np.uint8)
        data = data[: shape.packed_size]
        if shape.encoding == "ternary":
            data = tiles.TERNARY_BYTES[data % len(tiles.TERNARY_BYTES)]
        tails = tiles.tails(shape, data)
        levels = 2.0**shape.bits
        deviation = math.sqrt(2 / 3 if shape.encoding == "ternary" else (levels**2 - 1) / 12)
        spread = rng.random(tails.shape, np.float32)
        tails[:, :, 0] = (0.8 + 0.4 * spread[:, :, 0]) / (deviation * math.sqrt(shape.k))
        if shape.has_zeros:
            tails[:, :, 1] = (levels - 1) / 2 + 0.2 * (spread[:, :, 1] - 0.5)
        return data

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A norm weight of ones, a small random bias, or a float16 matrix."""
        if name in self._norms:
            return np.ones(self._norms[name], np.float32)
        matrix, _, kind = name.rpartition(".")
        if not self.has(name) or kind == "tiles":
            raise PackedModelError(f"synthetic model: no tensor {name}")
        linear, rng = self._linears[matrix], self._rng(name)
        if kind == "bias":
            return rng.normal(0, 0.1, linear.m).astype(np.float32)
        values = rng.standard_normal((linear.m, linear.k), np.float32)
        values *= linear.k**-0.5
        return values.astype(np.float16)

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self._seed, crc32(name.encode())]))


def synthetic_model(
    name: str, bits: int | None = None, group_size: int = 128, head_bits: int = 8, seed: int = 0
) -> SyntheticModel:
    """A model with the shapes of a manifest of models/known. Raises UsageError for an unknown name."""
    known = known_models()
    if name not in known:
        raise UsageError(f"no shapes are known for {name!r}; known: {', '.join(known)}")
    config = ModelConfig.from_dict(known[name].config)
    return SyntheticModel(config, TERNARY_BITS if bits is None else bits, group_size, head_bits, seed)
