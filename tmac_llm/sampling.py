"""Choose the next token from the logits: pure functions on float32 vectors and a seeded sampler around them.

Knows neither models nor text.

The steps, in this order (that of transformers, so a generation_config.json means what its author meant):

1. repetition penalty r (CTRL, Keskar et al. 2019, section 4.1): for each id of the history, once however
   often it occurs, a positive logit is divided by r and a negative one multiplied.
2. temperature T: logits / T. T = 0 is greedy: the largest logit, the lower id on ties; nothing below applies.
3. top-k: the k largest logits; 0, or k >= vocabulary, keeps all.
4. top-p (nucleus; Holtzman et al. 2020, section 3.1): the smallest set of most probable ids whose
   probability, within what top-k left, reaches p. At least one id is kept; 1 keeps all.
5. min-p (Nguyen et al. 2024): ids at least min_p times as probable as the likeliest one; 0 keeps all.

Of equal logits at the border of a set, lower ids are taken first. A token takes one uniform number (PCG64).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tmac_llm.errors import KernelError, UsageError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

# The bits of non-negative float32 ascend with the value; without the lower 17: bins, 64 per power of two.
_BIN_SHIFT = 17
_N_BINS = (0x7F800000 >> _BIN_SHIFT) + 1
_ONE = np.uint32(0x3F800000)
# Temporaries over 128 KiB go back to the system when freed and cost a page fault per 4 KiB at the next call.
_BLOCK = 16384
_DRAW_BLOCK = 512


@dataclass(frozen=True)
class SamplingParams:
    """The steps of the module; `seed` None lets the sampler choose. Raises UsageError out of range."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0.0, 1e6),
            "top_k": (0, math.inf),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "repetition_penalty": (0.01, 100.0),
            "seed": (0, math.inf),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is None and name == "seed":
                continue
            kind = int if name in ("top_k", "seed") else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                what = "a whole number" if kind is int else "a number"
                raise UsageError(f"{name}: expected {what} from {low:g} to {high:g}, found {value!r}")


class Sampler:
    """Draws ids with one random stream: the same seed and the same logits give the same ids.

    params: `seed` None is taken from the operating system.
    vocab_size: length V of the logits.
    forbidden: ids that are never chosen, such as those that no token has; each < vocab_size.
    """

    def __init__(self, params: SamplingParams, vocab_size: int, forbidden: npt.ArrayLike = ()) -> None:
        self.params = params
        self._rng = np.random.Generator(np.random.PCG64(params.seed))
        self._scratch = np.empty(vocab_size, np.float32)
        self._forbidden = np.asarray(forbidden, np.intp)

    def sample(self, logits: Floats, history: npt.NDArray[np.integer]) -> int:
        """The next id.

        logits: float32 (V,), left as they are. history: ids of the context so far, for the penalty.
        Raises KernelError for NaN or +inf among the logits, or when every id is forbidden.
        """
        x = self._scratch
        if logits.shape != x.shape:
            raise KernelError(f"logits: expected {x.shape[0]} values, found shape {logits.shape}")
        np.copyto(x, logits)
        params = self.params
        if params.repetition_penalty != 1.0:
            penalize(x, history, params.repetition_penalty)
        x[self._forbidden] = -np.inf
        if params.temperature == 0.0:
            return greedy(x)
        ids, weights = candidates(x, params.temperature, params.top_k, params.top_p, params.min_p)
        index = draw(weights, self._rng.random())
        return index if ids is None else int(ids[index])


def penalize(logits: Floats, history: npt.NDArray[np.integer], penalty: float) -> None:
    """Step 1, in place. Ids of `history` outside the vocabulary are an IndexError."""
    seen = logits[history]
    logits[history] = np.where(seen > 0, seen / np.float32(penalty), seen * np.float32(penalty))


def greedy(logits: Floats) -> int:
    """The id of the largest logit, the lowest one on ties."""
    best = int(np.argmax(logits))
    _check_maximum(float(logits[best]))
    return best


def candidates(
    logits: Floats, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Ids | None, Floats]:
    """Steps 2 to 5: ids and their probabilities relative to that of the first choice, 0 for those left out.

    `logits` is overwritten. Returns intp (n,), None for all ids in order, and float32 (n,).
    O(V) unless most values are nearly equal: the sets are found by a histogram over the upper bits of each
    value, and only the one bin at the border is sorted.
    """
    maximum = logits.max() + np.float32(0)  # +0 for -0: the distances below must have no sign bit
    _check_maximum(float(maximum))
    # The distance to the maximum, not the logit, is divided: it cannot overflow to NaN, and its bits sort.
    with np.errstate(over="ignore"):
        cost = np.subtract(maximum, logits, out=logits)
        cost /= np.float32(temperature)
    ids = None
    if 0 < top_k < len(cost):
        ids = np.flatnonzero(_leading(cost.view(np.uint32), None, top_k))
        cost = cost[ids]
    weights = np.exp(np.negative(cost, out=cost), out=cost)
    if top_p < 1.0:
        order = _ONE - weights.view(np.uint32)
        weights *= _leading(order, weights, top_p * float(weights.sum(dtype=np.float64)))
    if min_p > 0.0:
        weights *= weights >= np.float32(min_p)
    return ids, weights


def draw(weights: Floats, u: float) -> int:
    """The index whose share of the summed weights contains u of [0, 1); never one of weight 0."""
    starts = np.arange(0, len(weights), _DRAW_BLOCK)
    ends = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = u * ends[-1]
    block = int(np.searchsorted(ends, target, side="right"))
    inside = weights[block * _DRAW_BLOCK : (block + 1) * _DRAW_BLOCK]
    before = ends[block - 1] if block else 0.0
    index = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), target - before, side="right"))
    # The sums of a block and of its parts may differ in the last bit: stay on the last index with weight.
    return block * _DRAW_BLOCK + min(index, int(np.flatnonzero(inside)[-1]))


def _leading(order: npt.NDArray[np.uint32], weights: Floats | None, target: float) -> npt.NDArray[np.bool_]:
    """Mask of the fewest values whose weights, or number, reach `target`: lowest `order`, then index."""
    reached = np.cumsum(_histogram(order, weights))
    border = int(np.searchsorted(reached, target, side="left"))
    mask = order < (border << _BIN_SHIFT)
    if border == _N_BINS:  # the sum of all, added in another order, is short of the target in its last bits
        return mask
    rest = np.flatnonzero((order >> _BIN_SHIFT) == border)
    rest = rest[np.argsort(order[rest], kind="stable")]
    gains = np.ones(len(rest)) if weights is None else weights[rest]
    before = reached[border - 1] if border else 0.0
    n = int(np.searchsorted(before + np.cumsum(gains, dtype=np.float64), target, side="left")) + 1
    mask[rest[:n]] = True
    return mask


def _histogram(order: npt.NDArray[np.uint32], weights: Floats | None) -> npt.NDArray[np.float64]:
    """Summed weights, or number, of each bin."""
    bins = np.zeros(_N_BINS)
    for begin in range(0, len(order), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        bins += np.bincount(order[part] >> _BIN_SHIFT, None if weights is None else weights[part], _N_BINS)
    return bins


def _check_maximum(maximum: float) -> None:
    if math.isfinite(maximum):
        return
    if maximum == -math.inf:
        raise KernelError("logits: every token is forbidden or -inf; the model cannot go on from here")
    raise KernelError(
        "logits: NaN or infinite; are the weights damaged? `tmac-llm info MODEL --verify` checks them"
    )
