"""GPTQ's feedback against the paper's own recursion, sweeps against exhaustive search, all in float64."""

import itertools

import numpy as np
import pytest

from tmac_llm import gptq, kernels
from tmac_llm.errors import ConvertError
from tmac_llm.gptq import OutputError, Quadratic, Statistics
from tmac_llm.kernels import MatrixShape
from tmac_llm.model import parallel


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    parallel.limit_blas()


def shape_of(m: int, k: int, bits: int, group_size: int, symmetric: bool = False) -> MatrixShape:
    return MatrixShape(m, k, bits, group_size, not symmetric, ((1 << bits) - 1) / 2 if symmetric else 0.0)


def correlated(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Inputs as layers have them: few directions carry most, columns of very different size."""
    mixing = rng.normal(size=(k, k)) / np.sqrt(k) + 0.5 * np.eye(k)
    return (rng.normal(size=(n, k)) @ mixing * np.exp(0.7 * rng.normal(size=k))).astype(np.float32)


def statistics(x: np.ndarray, of_float: np.ndarray | None = None, lacking: np.ndarray | None = None):
    drift = np.zeros((x.shape[1],) * 2, np.float32) if of_float is None else (of_float - x).T @ x
    return Statistics(x.T @ x, drift, None if lacking is None else lacking.T @ x)


def damped(x: np.ndarray, quadratic: Quadratic) -> np.ndarray:
    """H in float64."""
    wide = x.astype(np.float64)
    return wide.T @ wide + np.diag(quadratic.damping.astype(np.float64))


def run(w, shape, found, sweeps=gptq.SWEEPS):
    """(what the codes mean, error) of all rows."""
    error = OutputError()
    coded = gptq.quantize(w, shape, found, Quadratic(found), 0, error, sweeps)
    assert coded.codes.max() < 1 << shape.bits
    packed = kernels.pack(shape, coded.codes, coded.scales, coded.zeros)
    rows = np.arange(shape.m, dtype=np.int32)
    stored = kernels.dequantize_rows(shape, packed, rows)
    np.testing.assert_allclose(gptq.dequantized(shape, coded), stored, rtol=1e-6, atol=1e-7)
    return stored, error


def test_factor_and_solve(rng):
    x = correlated(rng, 900, 200)
    quadratic = Quadratic(statistics(x))
    h = damped(x, quadratic)
    np.testing.assert_allclose(quadratic.h, h, atol=1e-5 * h.max())
    unit = quadratic.unit.astype(np.float64)
    assert np.array_equal(unit, np.triu(unit))
    assert np.array_equal(np.diagonal(unit), np.ones(200))
    np.testing.assert_allclose(unit * quadratic.pivots @ unit.T, h, atol=1e-5 * h.max())
    g = rng.normal(size=(200, 7)).astype(np.float32)
    found = quadratic.solve(g.copy())
    np.testing.assert_allclose(h @ found, g, atol=2e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("k", "group_size"), [(128, 32), (200, 64), (272, 128)])
def test_feedback_is_that_of_the_paper(rng, bits, k, group_size):
    """Each column is rounded where the recursion of GPTQ, by the inverse of H, has moved it."""
    m, x = 9, correlated(rng, 700, k)
    w = rng.normal(0, 0.1, (m, k)).astype(np.float32)
    shape, found = shape_of(m, k, bits, group_size), statistics(x)
    quadratic = Quadratic(found)
    work = gptq._Rows(shape, quadratic, np.ascontiguousarray(w.T))
    work.feed_errors()
    coded = work.result()
    q = gptq.dequantized(shape, coded).astype(np.float64)
    left, inverse = w.astype(np.float64), np.linalg.inv(damped(x, quadratic))
    scales = coded.scales.astype(np.float64)[:, np.arange(k) // group_size]
    zeros = coded.zeros.astype(np.float64)[:, np.arange(k) // group_size]
    misses = 0
    for j in range(k):
        nearest = np.clip(np.rint(left[:, j] / scales[:, j] + zeros[:, j]), 0, (1 << bits) - 1)
        misses += np.count_nonzero(nearest != coded.codes[:, j])
        # Equations 2 and 3 of the paper: what column j lost goes to those after it; then j leaves H.
        error = (left[:, j] - q[:, j]) / inverse[j, j]
        left -= error[:, None] * inverse[j]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1
    assert misses <= 0.002 * m * k  # ties, decided by float32


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_less_output_error_than_the_search(rng, bits, symmetric):
    m, k, group_size = 70, 200, 64
    x = correlated(rng, 2000, k)
    w = rng.normal(0, 0.1, (m, k)).astype(np.float32)
    shape = shape_of(m, k, bits, group_size, symmetric)
    plain = gptq.dequantized(shape, kernels.quantize(w, bits, group_size, not symmetric, shape.zero))
    of_search = np.sum(((w - plain) @ x.T) ** 2)
    found = [np.sum(((w - run(w, shape, statistics(x), n)[0]) @ x.T) ** 2) for n in (0, 1, gptq.SWEEPS)]
    assert found[0] < (0.9 if bits > 1 else 1.001) * of_search
    assert found[1] < 0.9 * found[0]
    assert found[2] < found[1]
    _, error = run(w, shape, statistics(x))
    assert error.stored == pytest.approx(found[2], rel=0.4)  # damping included
    assert error.search == pytest.approx(of_search, rel=0.2)
    assert error.gain == pytest.approx(1 - error.stored / error.search)
    assert OutputError().gain is None


def test_sweeps_come_close_to_the_best_codes_there_are(rng):
    """Of 4^7 codings with the same scales, per row."""
    m, k, bits = 40, 7, 2
    x = correlated(rng, 300, k)
    w = rng.normal(0, 0.1, (m, k)).astype(np.float32)
    shape, found = shape_of(m, k, bits, 32), statistics(x)
    quadratic = Quadratic(found)
    coded = gptq.quantize(w, shape, found, quadratic, 0, OutputError(), sweeps=20)
    h = damped(x, quadratic)
    every = np.array(list(itertools.product(range(4), repeat=k)), np.float64)
    ratios, moved = [], 0
    for row in range(m):
        scale, zero = float(coded.scales[row, 0]), float(coded.zeros[row, 0])
        e = w[row].astype(np.float64) - (every - zero) * scale
        errors = np.einsum("ij,jk,ik->i", e, h, e)
        mine = int(coded.codes[row] @ 4 ** np.arange(k - 1, -1, -1))
        ratios.append(errors[mine] / errors.min())
        # No single code can be changed for the better.
        for j, code in itertools.product(range(k), range(4)):
            other = coded.codes[row].copy()
            other[j] = code
            moved += errors[int(other @ 4 ** np.arange(k - 1, -1, -1))] < errors[mine] * (1 - 1e-4)
        # Nor can scale or zero point.
        for a, b in ((0.97, 0), (1.03, 0), (1, 0.05), (1, -0.05)):
            e = w[row].astype(np.float64) - (coded.codes[row] - (zero + b)) * scale * a
            moved += e @ h @ e < errors[mine] * (1 - 1e-3)
    assert moved == 0
    assert np.mean(ratios) < 1.15


def test_the_target_makes_up_for_drift_and_for_what_the_stream_lacks(rng):
    """At 8 bits hardly anything is rounded: the weights are those of least squares on the drifted inputs."""
    m, k, n = 20, 64, 1500
    of_float = correlated(rng, n, k)
    x = of_float + 0.3 * correlated(rng, n, k)
    lacking = (0.2 * rng.normal(size=(n, m)) + of_float[:, :m]).astype(np.float32)
    w = rng.normal(0, 0.1, (m, k)).astype(np.float32)
    found, shape = statistics(x, of_float, lacking), shape_of(m, k, 8, 32)
    quadratic = Quadratic(found)
    got = gptq.dequantized(shape, gptq.quantize(w, shape, found, quadratic, 0, OutputError()))
    y = of_float.astype(np.float64) @ w.T + lacking
    damping = np.diag(quadratic.damping.astype(np.float64))
    expected = np.linalg.solve(damped(x, quadratic), x.T.astype(np.float64) @ y + damping @ w.T).T
    assert np.abs(expected - w).max() > 0.3  # far from the weights themselves
    np.testing.assert_allclose(got, expected, atol=0.01 * np.abs(expected).max())
    # Rows are worked on in portions: what a later portion lacks is its own.
    error = OutputError()
    later = gptq.quantize(w[8:], shape_of(m, k, 8, 32), found, quadratic, 8, error)
    np.testing.assert_allclose(
        gptq.dequantized(shape_of(12, k, 8, 32), later), expected[8:], atol=0.01 * np.abs(expected).max()
    )


def test_columns_that_are_always_zero(rng):
    x = correlated(rng, 500, 96)
    x[:, [0, 40, 95]] = 0
    w = rng.normal(0, 0.1, (16, 96)).astype(np.float32)
    got, error = run(w, shape_of(16, 96, 4, 32), statistics(x))
    assert np.isfinite(got).all()
    assert np.abs(got - w)[:, [0, 40, 95]].max() < 0.2  # near what they were, for other texts
    assert error.stored < error.search


def test_rows_and_groups_without_any_spread(rng):
    x = correlated(rng, 500, 64)
    w = np.zeros((5, 64), np.float32)
    w[1], w[2, :32], w[3] = 0.25, -1.5, rng.normal(size=64)
    for symmetric in (False, True):
        got, _ = run(w, shape_of(5, 64, 2, 32, symmetric), statistics(x))
        assert not got[0].any()
        if not symmetric:
            np.testing.assert_allclose(got[1], 0.25, atol=1e-3)


def test_statistics_that_are_of_no_use(rng):
    x = correlated(rng, 50, 32)
    x[3, 4] = np.inf
    with pytest.raises(ConvertError, match="not finite"), np.errstate(invalid="ignore"):
        Quadratic(statistics(x))


def test_the_same_result_for_one_row_and_for_many(rng):
    """Rows do not influence each other beyond float rounding."""
    x = correlated(rng, 800, 128)
    w = rng.normal(0, 0.1, (33, 128)).astype(np.float32)
    whole, _ = run(w, shape_of(33, 128, 3, 64), statistics(x))
    part, _ = run(w[7:8], shape_of(1, 128, 3, 64), statistics(x))
    h = x.T @ x
    loss = [float((w[7] - q) @ h @ (w[7] - q)) for q in (whole[7], part[0])]
    assert loss[0] == pytest.approx(loss[1], rel=0.15)
