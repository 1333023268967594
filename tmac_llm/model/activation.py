"""The gated activation of a feed-forward layer, act(gate) * up; knows no model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def silu(gate: Floats, out: Floats) -> Floats:
    """x * sigmoid(x) = x / (1 + e^-x). e^-x overflows to infinity below -88, where the quotient is -0 as it should be."""
    np.negative(gate, out=out)
    with np.errstate(over="ignore"):
        np.exp(out, out=out)
    np.add(out, np.float32(1), out=out)
    return np.divide(gate, out, out=out)


def relu2(gate: Floats, out: Floats) -> Floats:
    """max(x, 0)^2, the activation of BitNet b1.58 2B4T."""
    np.maximum(gate, np.float32(0), out=out)
    return np.multiply(out, out, out=out)


def relu(gate: Floats, out: Floats) -> Floats:
    """max(x, 0)."""
    return np.maximum(gate, np.float32(0), out=out)


ACTIVATIONS: dict[str, Callable[[Floats, Floats], Floats]] = {"silu": silu, "relu2": relu2, "relu": relu}


def gated(act: Callable[[Floats, Floats], Floats], gate_up: Floats, out: Floats) -> Floats:
    """act(gate) * up. gate_up: float32 (n_tokens, 2 * size), gate first; out: (n_tokens, size)."""
    size = out.shape[-1]
    act(gate_up[:, :size], out)
    return np.multiply(out, gate_up[:, size:], out=out)
