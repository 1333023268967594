"""Gated activations against double precision, extremes included."""

import numpy as np
import pytest

from tmac_llm.model.activation import GatedActivation

FORMULAS = {
    "silu": lambda g: g * np.exp(-np.logaddexp(0, -g)),
    "relu": lambda g: np.where(g > 0, g, 0),
    "relu2": lambda g: np.where(g > 0, g * g, 0),
}


@pytest.mark.parametrize("act", FORMULAS)
@pytest.mark.parametrize("n", [1, 2, 45])
def test_activation_of_gate_times_up(act, n):
    rng = np.random.default_rng(0)
    both = (rng.standard_normal((n, 2 * 35)) * 5).astype(np.float32)
    both[0, :6] = [0.0, -0.0, -1e4, 1e4, -89.0, 89.0]
    gate, up = both[:, :35], both[:, 35:]
    out = np.full((n, 35), np.nan, np.float32)
    GatedActivation(act).bind(gate, up, out)()
    expected = FORMULAS[act](gate.astype(np.float64)) * up
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-30)
