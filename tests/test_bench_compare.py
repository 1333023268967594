"""Ratios of benchmark runs against textbook values, and runs that cannot be compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tmac_llm.bench_compare import compare, t_quantile, welch_half_width
from tmac_llm.errors import UsageError

NAMES = ("a.json", "b.json")


def row(samples: list[float], **fields: Any) -> dict[str, Any]:
    plain = {
        "test": "tg8",
        "n_threads": 1,
        "model_filename": "m",
        "model_type": "2 bit",
        "model_n_params": 10,
    }
    return plain | {"samples_ts": samples} | fields


# Two-sided 95 % points of Student's t as printed in every table of it.
@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (10, 2.22814), (30, 2.04227)]
)
def test_t_quantile(freedom: int, expected: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-5)


def test_t_of_many_degrees_is_normal() -> None:
    assert t_quantile(0.975, 1e5) == pytest.approx(1.95996, rel=1e-4)


def test_equal_sizes_and_variances_give_the_pooled_interval() -> None:
    a, b = [1.0, 2.0, 3.0], [5.0, 6.0, 7.0]
    assert welch_half_width(a, b) == pytest.approx(2.77645 * math.sqrt(2 / 3), rel=1e-5)  # t of 4 degrees
    assert welch_half_width([1.0, 1.0], [2.0, 2.0]) == 0


def test_ratio_of_geometric_means() -> None:
    (ratio,) = compare([row([10, 40])], [row([20, 80])], NAMES)
    assert (ratio.a_ts, ratio.b_ts, ratio.ratio) == pytest.approx((20, 40, 2))
    half = welch_half_width([math.log(10), math.log(40)], [math.log(20), math.log(80)])
    assert (ratio.low, ratio.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        a, b = (np.exp(rng.normal(m, s, 4)).tolist() for m, s in ((3.0, 0.02), (3.1, 0.05)))
        (ratio,) = compare([row(a)], [row(b)], NAMES)
        assert ratio.low is not None
        assert ratio.high is not None
        hits += ratio.low <= math.exp(0.1) <= ratio.high
    assert 0.92 <= hits / 400 <= 0.985


def test_one_repetition_has_no_interval() -> None:
    (ratio,) = compare([row([10])], [row([15, 15])], NAMES)
    assert (ratio.ratio, ratio.low, ratio.high) == (pytest.approx(1.5), None, None)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ([row([1])], [row([1], model_filename="n")], "different models: model_filename is m and n"),
        ([row([1])], [row([1], model_type="4 bit")], "model_type is 2 bit and 4 bit"),
        ([row([1])], [row([1], model_n_params=11)], "model_n_params is 10 and 11"),
        ([row([1])], [row([1], test="pp8")], "only one has pp8 with 1 threads, tg8 with 1 threads"),
        ([row([1])], [row([1]), row([1], n_threads=2)], "only one has tg8 with 2 threads"),
        ([row([1]), row([1])], [row([1])], "a.json: tg8 with 1 threads is there twice"),
    ],
)
def test_runs_that_cannot_be_compared(a: list[Any], b: list[Any], says: str) -> None:
    with pytest.raises(UsageError) as info:
        compare(a, b, NAMES)
    assert says in str(info.value)
    assert "\n" not in str(info.value)
