"""Rotary position embedding in the rotate-half layout: element i turns with element i + d/2; knows no model.

Formulas of the scaled variants as in the Hugging Face modeling_rope_utils; yarn: arXiv 2309.00071.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tmac_llm.model.config import RopeConfig

Floats = npt.NDArray[np.float32]
# cos (n, 1, 1, d/2), and sin (n, 1, 2, d/2) as it meets the swapped halves: -sin for the first, sin for the second.
Turn = tuple[Floats, Floats]


def rotate(heads: Floats, turn: Turn) -> None:
    """Turn heads in place. heads: float32 (n_tokens, n_heads, head_dim), contiguous within a head."""
    cos, sin = turn
    half = cos.shape[-1]
    x = heads[..., : 2 * half].reshape(*heads.shape[:2], 2, half)
    turned = x[:, :, ::-1] * sin
    x *= cos
    x += turned


class Rope:
    """The angles of one decoder. Angles are computed in float32 as the reference does.

    head_dim: elements of a head; only the first partial_rotary_factor of them turn.
    """

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        self._config = config
        self._dim = int(head_dim * config.partial_rotary_factor) // 2 * 2
        self._frequencies = inverse_frequencies(config, self._dim)
        self._attention_scaling = np.float32(attention_scaling(config))
        self._cos = np.empty((0, self._dim // 2), np.float32)
        self._sin = np.empty((0, 2, self._dim // 2), np.float32)

    def at(self, position: int, n: int) -> Turn:
        """The turn of n tokens from `position` on: computed once per forward pass, used by every layer."""
        end = position + n
        config = self._config
        if config.rope_type == "dynamic" and end > (config.original_max_position_embeddings or end):
            # The base grows with the sequence; keys already in the cache keep the turn they got.
            cos, sin = self._angles(position, end, inverse_frequencies(config, self._dim, length=end))
        else:
            if end > len(self._cos):
                self._cos, self._sin = self._angles(0, max(end, 2 * len(self._cos), 256), self._frequencies)
            cos, sin = self._cos[position:end], self._sin[position:end]
        return cos[:, None, None], sin[:, None]

    def _angles(self, begin: int, end: int, frequencies: Floats) -> tuple[Floats, Floats]:
        angles = np.arange(begin, end, dtype=np.float32)[:, None] * frequencies
        cos = np.cos(angles) * self._attention_scaling
        sin = np.sin(angles) * self._attention_scaling
        return cos, np.stack([-sin, sin], axis=1)


def inverse_frequencies(config: RopeConfig, dim: int, length: int | None = None) -> Floats:
    """float32 (dim / 2,): radians per position. length: the sequence length that `dynamic` scales to."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    if config.rope_type == "dynamic" and length is not None:
        original = config.original_max_position_embeddings or length
        growth = config.factor * max(length, original) / original - (config.factor - 1)
        theta = config.theta * growth ** (dim / (dim - 2))
        return (1 / np.float32(theta) ** exponents).astype(np.float32)
    plain = (1 / np.float32(config.theta) ** exponents).astype(np.float32)
    if config.rope_type == "linear":
        return plain / np.float32(config.factor)
    if config.rope_type == "llama3":
        return _llama3(config, plain)
    if config.rope_type == "yarn":
        return _yarn(config, plain, dim)
    return plain


def attention_scaling(config: RopeConfig) -> float:
    """The factor on cos and sin; only yarn has one other than 1."""
    if config.rope_type != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor

    def gain(scale: float) -> float:
        return 0.1 * scale * math.log(config.factor) + 1 if config.factor > 1 else 1.0

    if config.mscale and config.mscale_all_dim:
        return gain(config.mscale) / gain(config.mscale_all_dim)
    return gain(1.0)


def _llama3(config: RopeConfig, plain: Floats) -> Floats:
    """Long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    original = config.original_max_position_embeddings
    assert original is not None
    low, high = config.low_freq_factor, config.high_freq_factor
    wavelength = np.float32(2 * math.pi) / plain
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * plain / config.factor + smooth * plain
    scaled = np.where(wavelength > original / low, plain / config.factor, plain)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    return np.where(between, blended, scaled).astype(np.float32)


def _yarn(config: RopeConfig, plain: Floats, dim: int) -> Floats:
    """High frequencies keep their speed, low ones are slowed by `factor`, with a linear ramp between."""
    original = config.original_max_position_embeddings
    assert original is not None

    def correction(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = correction(config.beta_fast), correction(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (plain / config.factor * ramp + plain * (1 - ramp)).astype(np.float32)
