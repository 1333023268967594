"""Sampling steps against their definitions, computed the slow way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tmac_llm.errors import KernelError, UsageError
from tmac_llm.sampling import Sampler, SamplingParams, candidates, draw, penalize

NO_HISTORY = np.empty(0, np.int64)


def kept(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The set of ids that candidates() leaves."""
    values = np.array(logits, np.float32)
    ids, weights = candidates(values, temperature, top_k, top_p, min_p)
    return set(np.flatnonzero(weights) if ids is None else ids[weights > 0])


def sample(logits, history=NO_HISTORY, forbidden=(), **params):
    values = np.array(logits, np.float32)
    return Sampler(SamplingParams(**params), len(values), forbidden).sample(values, history)


def test_temperature_zero_takes_the_largest_logit_and_the_lower_id_on_ties():
    assert sample([1.0, 3.0, 3.0, 2.0], temperature=0.0) == 1


def test_probabilities_are_those_of_softmax_over_temperature():
    logits = np.array([0.0, 1.0, -2.0, 0.5])
    _, weights = candidates(logits.astype(np.float32), 0.5, 0, 1.0, 0.0)
    expected = np.exp(logits / 0.5)
    assert weights / weights.sum() == pytest.approx(expected / expected.sum(), rel=1e-5)


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=7), 3)
    n = 20_000
    counts = np.bincount([sampler.sample(logits, NO_HISTORY) for _ in range(n)], minlength=3)
    # Four standard deviations of a binomial count are at most 4 * sqrt(n / 4).
    assert np.abs(counts - n * np.array([0.5, 0.3, 0.2])).max() < 4 * np.sqrt(n / 4)


@pytest.mark.parametrize(("top_k", "expected"), [(1, {3}), (2, {3, 0}), (3, {3, 0, 2}), (4, {0, 1, 2, 3})])
def test_top_k_keeps_exactly_k_lower_ids_first(top_k, expected):
    assert kept([1.0, 0.0, 1.0, 2.0], top_k=top_k) == expected


def test_top_k_beyond_the_vocabulary_keeps_all():
    assert kept([1.0, 0.0, 1.0], top_k=1000) == {0, 1, 2}


@pytest.mark.parametrize(("top_p", "expected"), [(0.0, {1}), (0.5, {1}), (0.59, {1, 2}), (0.81, {0, 1, 2})])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, expected):
    assert kept(np.log([0.2, 0.55, 0.25]), top_p=top_p) == expected


def test_top_p_counts_within_what_top_k_left():
    assert kept(np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.57) == {0}
    assert kept(np.log([0.4, 0.3, 0.2, 0.1]), top_p=0.57) == {0, 1}


def test_top_p_takes_lower_ids_first_among_equals():
    assert kept([1.0] * 10, top_p=0.35) == {0, 1, 2, 3}


def test_min_p_is_relative_to_the_most_probable():
    assert kept(np.log([0.5, 0.06, 0.04, 0.4]), min_p=0.1) == {0, 1, 3}


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_once():
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    penalize(logits, np.array([0, 1, 0, 0]), 2.0)
    assert logits.tolist() == [1.0, -4.0, 1.0]


def test_repetition_penalty_reaches_the_choice():
    assert sample([2.0, 1.5], np.array([0]), temperature=0.0, repetition_penalty=1.5) == 1


def test_all_but_one_impossible():
    logits = np.full(50, -np.inf)
    logits[31] = -5.0
    assert sample(logits, temperature=1.0, top_k=10, top_p=0.9, min_p=0.1, seed=0) == 31


@pytest.mark.parametrize("zeros", [[-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]])
def test_negative_zero_is_zero(zeros):
    assert kept([*zeros * 20, -1.0], top_k=2) == {0, 1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_ids_are_never_chosen(temperature):
    assert sample([9.0, 1.0, 9.0], forbidden=[0, 2], temperature=temperature) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(bad, temperature):
    with pytest.raises(KernelError, match="NaN or infinite"):
        sample([0.0, bad, 1.0], temperature=temperature)


def test_nothing_left_is_refused():
    with pytest.raises(KernelError, match="every token is forbidden"):
        sample([0.0, 1.0], forbidden=[0, 1], temperature=1.0)


def test_logits_of_another_size_are_refused():
    with pytest.raises(KernelError, match="expected 4 values"):
        Sampler(SamplingParams(), 4).sample(np.zeros(5, np.float32), NO_HISTORY)


def test_tiny_temperature_does_not_overflow():
    assert sample([3e38, -3e38, 1.0], temperature=1e-30) == 0


def test_the_logits_stay_as_they_are():
    logits = np.array([2.0, 1.0], np.float32)
    Sampler(SamplingParams(repetition_penalty=2.0), 2).sample(logits, np.array([0]))
    assert logits.tolist() == [2.0, 1.0]


def test_same_seed_same_ids_and_another_seed_others():
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def ids(seed):
        sampler = Sampler(SamplingParams(seed=seed), 1000)
        return [sampler.sample(logits, NO_HISTORY) for _ in range(20)]

    assert ids(5) == ids(5)
    assert ids(5) != ids(6)


@given(
    weights=arrays.arrays(np.float32, st.integers(1, 2000), elements=st.sampled_from([0, 1e-30, 0.25, 1])),
    u=st.floats(0, 1, exclude_max=True),
)
def test_draw_never_takes_weight_zero(weights, u):
    weights[len(weights) // 2] = 1.0
    assert weights[draw(weights, u)] > 0


@given(
    logits=arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=16)),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.01, 0.99),
)
def test_the_sets_are_those_of_a_full_sort(logits, top_k, top_p):
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    share = np.cumsum(np.exp(logits[order].astype(np.float64) - logits.max()))
    # float32 probabilities may move the border by one id where the sum meets p within rounding.
    allowed = [
        set(order[: np.searchsorted(share, top_p * share[-1] * (1 + e)) + 1]) for e in (-1e-5, 0, 1e-5)
    ]
    assert kept(logits, top_k=top_k, top_p=top_p) in allowed


def test_a_large_vocabulary_gives_the_sets_of_a_full_sort():
    logits = np.random.default_rng(1).standard_normal(128_256).astype(np.float32) * 3
    best = np.argsort(-logits, kind="stable")[:40]
    assert kept(logits, top_k=40) == set(best)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.1),
        ("min_p", -1),
        ("repetition_penalty", 0.0),
        ("seed", -3),
        ("temperature", True),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(UsageError, match=f"^{name}: expected"):
        SamplingParams(**{name: value})
