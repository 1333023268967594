"""Ratios of two benchmark runs with confidence intervals; knows the rows of `bench -o json`, measures nothing.

The ratio is of geometric means, exp(mean(ln b) - mean(ln a)) over the repetitions' tokens per second. Its
interval is Welch's: repetitions as independent normal samples of ln(tokens/s) with unequal variances, Student's t
with the degrees of freedom of Welch (Biometrika 34, 1947). A run that drifted as a whole is not told by it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tmac_llm.errors import UsageError

CONFIDENCE = 0.95
# What has to be equal for a ratio to mean something.
_MODEL = ("model_filename", "model_type", "model_n_params")
_KEY = ("test", "n_threads")


@dataclass(frozen=True)
class Ratio:
    """b / a in tokens per second with its 95 % interval; None for the bounds where a run has one repetition."""

    test: str
    n_threads: int
    a_ts: float
    b_ts: float
    ratio: float
    low: float | None
    high: float | None


def compare(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], names: tuple[str, str]) -> list[Ratio]:
    """The ratio of every test, in the order of `a`.

    names: of the two runs, for messages. Raises UsageError where models or tests differ, or a test is there twice.
    """
    rows_a, rows_b = _by_key(a, names[0]), _by_key(b, names[1])
    for field in _MODEL:
        mine, other = ({row[field] for row in rows} for rows in (a, b))
        if mine != other:
            raise UsageError(
                f"{names[0]} and {names[1]} are of different models: {field} is"
                f" {_list(mine)} and {_list(other)}; compare runs of one model"
            )
    if missing := set(rows_a) ^ set(rows_b):
        where = ", ".join(f"{test} with {n} threads" for test, n, _ in sorted(missing))
        raise UsageError(f"{names[0]} and {names[1]} have different tests: only one has {where}")
    return [
        _ratio(key[0], key[1], row["samples_ts"], rows_b[key]["samples_ts"]) for key, row in rows_a.items()
    ]


def _by_key(rows: Sequence[dict[str, Any]], name: str) -> dict[tuple[str, int, str], dict[str, Any]]:
    found = {}
    for row in rows:
        key = (row["test"], row["n_threads"], row["model_type"])
        if key in found:
            raise UsageError(f"{name}: {key[0]} with {key[1]} threads is there twice")
        found[key] = row
    return found


def _list(values: set[Any]) -> str:
    return ", ".join(sorted(str(value) for value in values))


def _ratio(test: str, n_threads: int, a: Sequence[float], b: Sequence[float]) -> Ratio:
    logs_a, logs_b = ([math.log(sample) for sample in samples] for samples in (a, b))
    difference = statistics.fmean(logs_b) - statistics.fmean(logs_a)
    means = [math.exp(statistics.fmean(logs)) for logs in (logs_a, logs_b)]
    low = high = None
    if min(len(a), len(b)) > 1:
        half = welch_half_width(logs_a, logs_b)
        low, high = math.exp(difference - half), math.exp(difference + half)
    return Ratio(test, n_threads, means[0], means[1], math.exp(difference), low, high)


def welch_half_width(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half of the confidence interval of mean(b) - mean(a), two samples each at least."""
    errors = [statistics.variance(x) / len(x) for x in (a, b)]
    total = sum(errors)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(e**2 / (len(x) - 1) for e, x in zip(errors, (a, b), strict=True))
    return t_quantile((1 + confidence) / 2, freedom) * math.sqrt(total)


def t_quantile(p: float, freedom: float) -> float:
    """Student's t below which a share p > 1/2 lies, by bisection of the integrated density."""
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < p else (low, middle)
    return high


def _t_below(t: float, freedom: float, steps: int = 400) -> float:
    """Share below t >= 0: Simpson's rule over the angle u, t = sqrt(freedom) tan(u), where the density is cos^(f-1)."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    width = math.atan(t / math.sqrt(freedom)) / steps
    heights: list[float] = [math.cos(i * width) ** (freedom - 1) for i in range(steps + 1)]
    area = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return 0.5 + scale * area * width / 3
