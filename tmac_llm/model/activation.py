"""The gated activations of the feed-forward layers; knows no weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from tmac_llm.model import parallel

Floats = npt.NDArray[np.float32]

# numpy takes longer to read Python floats.
_ZERO, _ONE = np.zeros((), np.float32), np.ones((), np.float32)


def silu(gate: Floats, up: Floats, out: Floats) -> None:
    """out = gate / (1 + exp(-gate)) * up."""
    with np.errstate(over="ignore"):  # exp(-gate) = inf gives the right 0
        np.negative(gate, out=out)
        np.exp(out, out=out)
    np.add(out, _ONE, out=out)
    np.divide(gate, out, out=out)
    np.multiply(out, up, out=out)


def relu(gate: Floats, up: Floats, out: Floats) -> None:
    """out = max(gate, 0) * up."""
    np.maximum(gate, _ZERO, out=out)
    np.multiply(out, up, out=out)


def relu2(gate: Floats, up: Floats, out: Floats) -> None:
    """out = max(gate, 0)^2 * up."""
    np.maximum(gate, _ZERO, out=out)
    np.multiply(out, out, out=out)
    np.multiply(out, up, out=out)


_GATED: dict[str, Callable[[Floats, Floats, Floats], None]] = {"silu": silu, "relu": relu, "relu2": relu2}


class GatedActivation:
    """out = act(gate) * up for the `hidden_act` of a configuration."""

    def __init__(self, hidden_act: str) -> None:
        self._function = _GATED[hidden_act]

    def bind(self, gate: Floats, up: Floats, out: Floats) -> Callable[[], None]:
        """Returns a function that reads gate and up and writes out, float32 (n, intermediate_size), which may not
        overlap the others."""
        if len(gate) == 1:
            return partial(self._function, gate[0], up[0], out[0])
        return partial(parallel.over_rows, self._function, gate, up, out)
