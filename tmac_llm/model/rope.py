"""Rotary position embedding (arXiv 2104.09864) in the half-split order of Hugging Face checkpoints.

Frequencies as transformers derives them for each rope_type. Knows positions, neither caches nor layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tmac_llm.model import parallel
from tmac_llm.model.config import RopeConfig

Floats = npt.NDArray[np.float32]

_BLOCK = 256  # positions by which the tables grow, at least


class Rotation(NamedTuple):
    """cos and sin of n positions, times the scale of the embedding; the first half of sin is negative.

    float32 (n, heads, 2, rotary / 2) for one position, which numpy multiplies faster than (n, 1, 2, rotary / 2).
    """

    cos: Floats
    sin: Floats


class RotaryEmbedding:
    """Tables of cos and sin by position, made on demand.

    With rope_type dynamic a position p has the frequencies of a sequence of p + 1 tokens, as in decoding
    token by token: cached keys keep their rotation, and it does not matter how a prompt was cut into chunks.

    heads: how many are rotated together. scale: multiplies what is rotated, at no cost: with head_dim^-1/4 for
    queries and keys their products are those that attention takes the softmax of.
    """

    def __init__(self, rope: RopeConfig, head_dim: int, heads: int = 1, scale: float = 1.0) -> None:
        self._rope, self._heads, self._scale = rope, heads, scale
        self._rotary = int(head_dim * rope.partial_rotary_factor)
        self._tables = self._make(0, 0)

    def rotation(self, n: int) -> Rotation:
        """Room for the tables of n positions, to `fill`."""
        shape = (n, self._heads if n == 1 else 1, 2, self._rotary // 2)
        return Rotation(np.empty(shape, np.float32), np.empty(shape, np.float32))

    def fill(self, rotation: Rotation, position: int) -> None:
        """Make it the tables of the positions from `position` on."""
        n = len(rotation.cos)
        end, known = position + n, len(self._tables.cos)
        if end > known:
            more = self._make(known, max(end, known + max(known // 2, _BLOCK)))
            self._tables = Rotation(
                *(np.concatenate(parts) for parts in zip(self._tables, more, strict=True))
            )
        rotation.cos[...] = self._tables.cos[position:end]
        rotation.sin[...] = self._tables.sin[position:end]

    def bind(self, x: Floats, rotation: Rotation, scratch: Floats) -> Callable[[], None]:
        """Returns a function that rotates and scales x, float32 (n, heads, head_dim), in place.

        Element i of a head pairs with i + rotary / 2. rotation: of n positions, read at each call.
        scratch: float32 of x's shape.
        """
        if len(x) == 1 and self._rotary == x.shape[2]:
            return self._bind_one(x[0], rotation, scratch[0])
        return lambda: parallel.over_rows(self._rows, x, *rotation, scratch)

    def _bind_one(self, x: Floats, rotation: Rotation, scratch: Floats) -> Callable[[], None]:
        """One token, whole heads."""
        (cos,), (sin,) = rotation
        halves, turned = x.reshape(sin.shape), scratch.reshape(sin.shape)
        swapped, multiply, add = halves[:, ::-1], np.multiply, np.add

        def rotate() -> None:
            multiply(swapped, sin, turned)
            multiply(halves, cos, halves)
            add(halves, turned, halves)

        return rotate

    def _rows(self, x: Floats, cos: Floats, sin: Floats, scratch: Floats) -> None:
        n, heads, _ = x.shape
        halves = x[..., : self._rotary].reshape(n, heads, 2, -1)
        turned = scratch[..., : self._rotary].reshape(n, heads, 2, -1)
        np.multiply(halves[:, :, ::-1], sin, out=turned)
        np.multiply(halves, cos, out=halves)
        np.add(halves, turned, out=halves)
        if self._rotary < x.shape[2]:
            np.multiply(x[..., self._rotary :], self._scale, out=x[..., self._rotary :])

    def _make(self, begin: int, end: int) -> Rotation:
        positions = np.arange(begin, end, dtype=np.float32)[:, None]
        frequencies, scaling = inverse_frequencies(self._rope, self._rotary)
        angles = positions * frequencies
        trained = self._rope.original_max_position_embeddings
        if self._rope.rope_type == "dynamic" and trained is not None:
            for p in range(max(begin, trained), end):
                angles[p - begin] = np.float32(p) * inverse_frequencies(self._rope, self._rotary, p + 1)[0]
        scaling *= self._scale
        # In double: float32 cos and sin lose digits at large angles.
        cos = (np.cos(angles.astype(np.float64)) * scaling).astype(np.float32)
        sin = (np.sin(angles.astype(np.float64)) * scaling).astype(np.float32)
        return Rotation(np.stack([cos, cos], 1)[:, None], np.stack([-sin, sin], 1)[:, None])


def inverse_frequencies(rope: RopeConfig, rotary: int, length: int = 0) -> tuple[Floats, float]:
    """Radians per position of each pair, float32 (rotary / 2,), and the factor of cos and sin.

    rotary: elements of a head that are rotated. length: tokens of the sequence, for rope_type dynamic.
    """
    i = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    plain = (1.0 / np.float32(rope.theta) ** i).astype(np.float32)
    match rope.rope_type:
        case "default":
            return plain, 1.0
        case "linear":
            return (plain / np.float32(rope.factor)).astype(np.float32), 1.0
        case "dynamic":
            return _dynamic(rope, rotary, length, i), 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(rope, rotary, plain), _yarn_scaling(rope)
        case "divided":
            return (plain / np.array(rope.divisors, np.float32)).astype(np.float32), 1.0
    raise AssertionError(rope.rope_type)


def _dynamic(rope: RopeConfig, rotary: int, length: int, i: Floats) -> Floats:
    trained = rope.original_max_position_embeddings
    assert trained is not None
    stretch = rope.factor * max(length, trained) / trained - (rope.factor - 1)
    theta = rope.theta * stretch ** (rotary / (rotary - 2)) if rotary > 2 else rope.theta
    return (1.0 / np.float32(theta) ** i).astype(np.float32)


def _llama3(rope: RopeConfig, plain: Floats) -> Floats:
    """Low frequencies divided by the factor, high ones kept, the band between blended."""
    original = rope.original_max_position_embeddings
    assert original is not None
    wavelength = 2 * math.pi / plain.astype(np.float64)
    blend = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0, 1)
    return (plain * ((1 - blend) / rope.factor + blend)).astype(np.float32)


def _yarn(rope: RopeConfig, rotary: int, plain: Floats) -> Floats:
    """YaRN (arXiv 2309.00071), section 3.2: interpolate what turns seldom, extrapolate what turns often."""
    original = rope.original_max_position_embeddings
    assert original is not None

    def pair_with_turns(turns: float) -> float:
        return rotary * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with_turns(rope.beta_fast), pair_with_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(rotary // 2) - low) / (high - low), 0, 1)
    blended: Floats = (plain / rope.factor * ramp + plain * (1 - ramp)).astype(np.float32)
    return blended


def _yarn_scaling(rope: RopeConfig) -> float:
    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    return temperature(1.0)
