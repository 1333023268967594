"""A model of random weights at a known model's shapes, to measure speed without a checkpoint; knows no file.

Tiles are random bytes with scales that keep activations finite; text from such a model means nothing.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm import resources
from tmac_llm.errors import UsageError
from tmac_llm.kernels import MatrixShape
from tmac_llm.model.config import ModelConfig
from tmac_llm.packed import names

TERNARY_BITS = 2
_BLOCK_ROWS = 64
_STEP_COLUMNS = 32
_VECTOR_BYTES = 256


def synthetic_model(
    name: str, bits: int | None = None, group_size: int = 128, head_bits: int = 8, seed: int = 0
) -> SyntheticModel:
    """Random weights at the shapes of models/known/<name>.json.

    bits: 1 to 8 with scales and zero points per group; None: ternary for BitNet models, otherwise 2. head_bits: of the
    embedding and the output head. Raises UsageError for an unknown name or impossible bits.
    """
    known = resources.known_models()
    if name not in known:
        raise UsageError(f"synthetic {name}: no such shape; there are {', '.join(known)}")
    for option, value in (("bits", bits or 1), ("head bits", head_bits)):
        if not 1 <= value <= 8:
            raise UsageError(f"synthetic {name}: {option} {value}: expected 1 to 8")
    if group_size not in (32, 64, 128):
        raise UsageError(f"synthetic {name}: group size {group_size}: expected 32, 64 or 128")
    return SyntheticModel(ModelConfig.from_dict(known[name].config), bits, group_size, head_bits, seed)


class SyntheticModel:
    """Reads like a PackedModel; every matrix is made when it is asked for and not kept. label: "2 bit g128"."""

    def __init__(
        self, config: ModelConfig, bits: int | None, group_size: int, head_bits: int, seed: int
    ) -> None:
        self.config = config
        ternary = bits is None and config.int8_activations
        self.label = "ternary" if ternary else f"{bits or 2} bit g{group_size}"
        self._seed = seed
        self._norms = names.norms(config)
        self._shapes: dict[str, MatrixShape] = {}
        for group in names.linear_groups(config):
            linear = group.fused
            self._shapes[linear.name] = (
                MatrixShape(linear.m, linear.k, TERNARY_BITS, 0, False, 1.0)
                if ternary
                else MatrixShape(linear.m, linear.k, bits or 2, group_size, True, 0.0)
            )
        for table in names.tables(config):
            self._shapes[table.name] = MatrixShape(table.m, table.k, head_bits, group_size, True, 0.0)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this full name."""
        return name in self._norms or name.removesuffix(".tiles") in self._shapes

    def shape(self, matrix: str) -> MatrixShape | None:
        """Shape of a packed matrix."""
        return self._shapes.get(matrix)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A norm weight: ones."""
        return np.ones(self._norms[name], np.float32)

    def tiles(self, matrix: str) -> npt.NDArray[np.uint8]:
        """uint8 (packed_size,): the same bytes at every call."""
        shape = self._shapes[matrix]
        rng = np.random.default_rng([self._seed, zlib.crc32(matrix.encode())])
        tiles = np.frombuffer(bytearray(rng.bytes(shape.packed_size)), np.uint8)
        blocks = tiles.reshape(-(-shape.m // _BLOCK_ROWS), -1)
        columns = shape.group_size or -(-shape.k // 128) * 128
        step_bytes = columns // _STEP_COLUMNS * shape.bits * _VECTOR_BYTES
        levels = 3 if shape.group_size == 0 else 1 << shape.bits
        # Uniform codes have a variance of (levels^2 - 1) / 12; outputs shall have that of the inputs.
        scale = np.sqrt(12 / (levels**2 - 1) / shape.k)
        if shape.group_size == 0:
            steps, tail = blocks[:, :step_bytes], blocks[:, step_bytes:]
            np.bitwise_and(
                steps, ~(steps << 4) | 0x0F, out=steps
            )  # ternary codes are 0, 1, 2: never both planes
            tail.view(np.float32)[:] = scale
        else:
            segments = blocks.reshape(len(blocks), -1, step_bytes + 4 * _BLOCK_ROWS)
            tails = segments[..., step_bytes:].view(np.float16)
            tails[..., :_BLOCK_ROWS] = scale
            tails[..., _BLOCK_ROWS:] = (levels - 1) / 2
        return tiles
