"""Rotary frequencies against published values and an independent formula; rotation against trigonometry."""

import math

import numpy as np
import pytest
import reference_forward

from tmac_llm.model.config import RopeConfig
from tmac_llm.model.rope import RotaryEmbedding, inverse_frequencies

LLAMA3_1B = RopeConfig("llama3", 5e5, 32.0, 1.0, 4.0, 8192)
LLAMA3_8B = RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 8192)
YARN = RopeConfig("yarn", 1e6, 4.0, original_max_position_embeddings=32768)
DYNAMIC = RopeConfig("dynamic", 1e4, 2.0, original_max_position_embeddings=16)

PUBLISHED = [
    (
        LLAMA3_1B,
        64,
        {1: 0.663601279, 8: 0.0376060307, 16: 0.000429556705, 24: 1.66196742e-06, 31: 9.41830649e-08},
    ),
    (LLAMA3_8B, 128, {1: 0.814617217, 32: 0.000524846022, 48: 6.64786967e-06, 63: 3.06892588e-07}),
    (YARN, 128, {32: 0.000602941145, 48: 7.90569356e-06, 63: 3.10234441e-07}),
    (RopeConfig(theta=5e5), 128, {1: 0.814617217, 32: 0.00141421345, 63: 2.4551407e-06}),
]


@pytest.mark.parametrize(("rope", "rotary", "values"), PUBLISHED, ids=lambda v: getattr(v, "rope_type", ""))
def test_frequencies_of_known_models(rope, rotary, values):
    frequencies, _ = inverse_frequencies(rope, rotary)
    assert frequencies.dtype == np.float32
    for i, value in values.items():
        assert frequencies[i] == pytest.approx(value, rel=5e-7)


@pytest.mark.parametrize("rope", [LLAMA3_8B, YARN, RopeConfig("linear", 1e4, 3.0), RopeConfig()])
@pytest.mark.parametrize("rotary", [24, 64, 100, 128])
def test_frequencies_equal_the_formulas_in_double(rope, rotary):
    frequencies, scaling = inverse_frequencies(rope, rotary)
    expected = [reference_forward.frequency_of(rope, i, rotary) for i in range(rotary // 2)]
    np.testing.assert_allclose(frequencies, [f for f, _ in expected], rtol=5e-6)
    assert scaling == pytest.approx(expected[0][1])


def test_yarn_factor_of_cos_and_sin():
    assert inverse_frequencies(YARN, 128)[1] == pytest.approx(1.138629436, rel=1e-9)
    given = RopeConfig("yarn", 1e6, 4.0, original_max_position_embeddings=32768, attention_factor=0.5)
    assert inverse_frequencies(given, 128)[1] == 0.5
    both = RopeConfig(
        "yarn", 1e6, 4.0, original_max_position_embeddings=32768, mscale=0.707, mscale_all_dim=1.0
    )
    expected = (0.0707 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    assert inverse_frequencies(both, 128)[1] == pytest.approx(expected)


def test_yarn_without_truncation_keeps_fractions():
    fraction = RopeConfig("yarn", 1e6, 4.0, original_max_position_embeddings=32768, truncate=False)
    low = 128 * math.log(32768 / (32 * 2 * math.pi)) / (2 * math.log(1e6))
    high = 128 * math.log(32768 / (2 * math.pi)) / (2 * math.log(1e6))
    ramp = (32 - low) / (high - low)
    expected = 1e-3 * (ramp / 4 + 1 - ramp)
    assert inverse_frequencies(fraction, 128)[0][32] == pytest.approx(expected, rel=1e-6)


def test_dynamic_stretches_the_base_beyond_the_trained_length_only():
    plain = inverse_frequencies(RopeConfig(), 8)[0]
    np.testing.assert_array_equal(inverse_frequencies(DYNAMIC, 8, 16)[0], plain)
    theta = 1e4 * (2 * 32 / 16 - 1) ** (8 / 6)
    expected = theta ** (-np.arange(4) / 4)
    np.testing.assert_allclose(inverse_frequencies(DYNAMIC, 8, 32)[0], expected, rtol=1e-6)


def tables(rope, position, n):
    rotation = rope.rotation(n)
    rope.fill(rotation, position)
    return rotation


def rotate(rope, x, position):
    rope.bind(x, tables(rope, position, len(x)), np.empty_like(x))()


def test_dynamic_rotation_does_not_depend_on_chunks():
    whole = tables(RotaryEmbedding(DYNAMIC, 8), 0, 40)
    by_token = RotaryEmbedding(DYNAMIC, 8)
    for position in range(40):
        np.testing.assert_array_equal(tables(by_token, position, 1).sin[0], whole.sin[position])
    own = inverse_frequencies(DYNAMIC, 8, 31)[0]
    np.testing.assert_allclose(whole.cos[30, 0, 0], np.cos(30 * own.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_rotation_turns_pairs_half_a_head_apart(n, partial):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 3, 24), np.float32)
    rotary = int(24 * partial)
    expected = x.astype(np.float64)
    for t in range(n):
        expected[t, :, :rotary] = reference_forward._rotate(expected[t, :, :rotary], 300 + t, RopeConfig())
    rope = RotaryEmbedding(RopeConfig(partial_rotary_factor=partial), 24, heads=3)
    rotate(rope, x, 300)
    # An angle of 300 radians in float32 is off by up to 300 * 2^-24.
    np.testing.assert_allclose(x, expected, atol=4 * 340 * 2**-24)


@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("n", [1, 3])
def test_scale(n, partial):
    """The whole head is scaled, the part too that is not rotated."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 3, 24), np.float32)
    scaled, config = x.copy(), RopeConfig(partial_rotary_factor=partial)
    plain, other = RotaryEmbedding(config, 24, heads=3), RotaryEmbedding(config, 24, heads=3, scale=0.25)
    rotate(plain, x, 7)
    rotate(other, scaled, 7)
    np.testing.assert_allclose(scaled, x / 4, rtol=1e-6, atol=1e-7)


def test_tables_grow_without_changing():
    rope = RotaryEmbedding(LLAMA3_1B, 64)
    early = tables(rope, 5, 2).cos
    fresh = tables(RotaryEmbedding(LLAMA3_1B, 64), 0, 5000)
    np.testing.assert_array_equal(tables(rope, 4990, 10).cos, fresh.cos[4990:])
    np.testing.assert_array_equal(tables(rope, 5, 2).cos, early)
