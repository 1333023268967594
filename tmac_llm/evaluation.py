"""Perplexity of a model on a text, and how far its predictions are from those of a reference model.

Knows decoders and token ids; knows no files, prints nothing.

The windows are those of llama.cpp's perplexity tool, so that figures can be compared. The whole text is
tokenised once, special tokens in it read as plain text, with bos in front where the model wants it, and cut into
windows of `context` tokens; the remainder is dropped. Each window starts with an empty cache and, where the
model wants bos, has bos in place of its first token. Only the second half of a window is scored: logits at
positions context // 2 to context - 2, each predicting the next token.

    perplexity   exp(mean nll), nll = -ln p(true token), over all scored tokens of all windows
    its error    perplexity * standard error of the mean nll

Standard errors are sqrt((mean(x^2) - mean(x)^2) / (n - 1)); they take tokens as independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tmac_llm.errors import PackedModelError, TokenizerError, UsageError
from tmac_llm.generation import PREFILL_CHUNK
from tmac_llm.model import parallel
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.kv_cache import CacheType, KVCache
from tmac_llm.tokenizer import Tokenizer

DEFAULT_CONTEXT = 512
MIN_CONTEXT = 8

# float64 logits of one portion of work: 8 MB.
_PORTION = 1 << 20

Ids = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
# Tokens computed, tokens to compute, perplexity so far (nan before the first scored token).
Progress = Callable[[int, int, float], None]


class Predictor(Protocol):
    """What evaluation needs of a model: model.decoder.Decoder has it."""

    @property
    def config(self) -> ModelConfig: ...
    def forward(
        self, token_ids: Ids, cache: KVCache, logits: Literal["last", "all", "none"] = ...
    ) -> Floats | None: ...


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against a reference, over the same scored tokens.

    perplexity: the reference's. log_ratio: ln(perplexity / the reference's), its error that of the paired
    difference. kl_*: Kullback-Leibler divergence of the model from the reference, in nats, at each token.
    delta_p, delta_p_rms: change of the true token's probability, mean and root mean square. top1_agreement:
    share of tokens where both find the same token most probable.
    """

    perplexity: Estimate
    log_ratio: Estimate
    kl: Estimate
    kl_median: float
    kl_p99: float
    kl_max: float
    delta_p: Estimate
    delta_p_rms: float
    top1_agreement: Estimate


@dataclass(frozen=True, slots=True)
class Evaluation:
    """n_windows of `context` tokens, of which n_scored were predicted; comparison: None without a reference."""

    context: int
    n_windows: int
    n_scored: int
    perplexity: Estimate
    comparison: Comparison | None


def encode(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> tuple[Ids, int | None]:
    """Ids of the whole text, with bos in front where the model wants it; and that bos, None where it does not.

    As llama.cpp reads a file, one newline at the end of the text is not part of it, and special tokens in it are
    plain text unless parse_special.
    """
    ids = tokenizer.encode(text.removesuffix("\n"), parse_special=parse_special)
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer.encode_prompt("a")[:1] != [bos]:
        return np.array(ids, np.int64), None
    return np.array([bos, *ids], np.int64), bos


def encode_for_both(tokenizer: Tokenizer, reference: Tokenizer, text: str) -> tuple[Ids, int | None]:
    """encode(); TokenizerError where the reference's tokenizer gives other ids."""
    ids, bos = encode(tokenizer, text)
    others, other_bos = encode(reference, text)
    if not np.array_equal(ids, others):
        n = min(len(ids), len(others))
        at = np.append(np.flatnonzero(ids[:n] != others[:n]), n)[0]
        raise TokenizerError(
            f"model and reference have different tokenizers: their ids of the text ({len(ids)} and"
            f" {len(others)}) differ from token {at} on; take a reference made from the same model"
        )
    if bos != other_bos:
        raise TokenizerError(f"model and reference differ in bos: {bos} and {other_bos}")
    return ids, bos


def windows(ids: Ids, context: int, bos: int | None = None) -> Ids:
    """int64 (n_windows, context): the windows of a text. Raises UsageError for less than two of them."""
    if context < MIN_CONTEXT:
        raise UsageError(f"context {context}: expected {MIN_CONTEXT} or more")
    n_windows = len(ids) // context
    if n_windows < 2:
        raise UsageError(
            f"the text has {len(ids)} tokens, a context of {context} needs at least {2 * context};"
            " take a longer text or a shorter context"
        )
    result = ids[: n_windows * context].reshape(n_windows, context).copy()
    if bos is not None:
        result[:, 0] = bos
    return result


def evaluate(
    model: Predictor,
    windows: Ids,
    reference: Predictor | None = None,
    on_progress: Progress | None = None,
    *,
    batch: int = PREFILL_CHUNK,
    cache_type: CacheType = "f32",
) -> Evaluation:
    """Run the model, and beside it the reference, over windows (n_windows, context).

    cache_type: of the model's keys and values; the reference has float32.
    batch: tokens of a pass. The figures are those of a prompt; 1 runs the model as decoding does.
    Memory beyond the models and their caches: the logits of `batch` tokens of each, a few portions of
    8 MB, and 25 bytes per scored token.
    Raises UsageError (context too long, no token scored), TokenizerError (ids outside the vocabulary, or
    vocabularies of different sizes), PackedModelError (logits that are not finite), KernelError.
    """
    models = [model] if reference is None else [model, reference]
    _check(models, windows)
    n_windows, context = windows.shape
    first = context // 2
    n_fed = context - 1  # the last token predicts none
    types: list[CacheType] = [cache_type, "f32"]
    caches = [KVCache(each.config, context, kind) for each, kind in zip(models, types, strict=False)]
    samples = _Samples(n_windows * (n_fed - first))
    for i, ids in enumerate(windows):
        for cache in caches:
            cache.truncate(0)
        for begin, end in _passes(first, n_fed, batch):
            kind: Literal["all", "none"] = "all" if begin >= first else "none"
            logits = [
                rows
                for each, cache in zip(models, caches, strict=True)
                if (rows := each.forward(ids[begin:end], cache, logits=kind)) is not None
            ]
            if logits:
                samples.add(
                    logits, ids[begin + 1 : end + 1], where=f"window {i}, tokens {begin} to {end - 1}"
                )
            if on_progress:
                on_progress(i * n_fed + end, n_windows * n_fed, samples.perplexity_so_far)
    return Evaluation(
        context=context,
        n_windows=n_windows,
        n_scored=len(samples.nll),
        perplexity=_perplexity(samples.nll),
        comparison=samples.comparison() if reference else None,
    )


def _check(models: list[Predictor], windows: Ids) -> None:
    context = windows.shape[1]
    limit = min(each.config.max_position_embeddings for each in models)
    if context > limit:
        raise UsageError(f"context {context}: the model's is {limit}, take at most that")
    if context < MIN_CONTEXT or not len(windows):
        raise UsageError(
            f"windows: expected 1 or more of {MIN_CONTEXT} or more tokens, found {windows.shape}"
        )
    sizes = [each.config.vocab_size for each in models]
    if len(set(sizes)) > 1:
        raise TokenizerError(
            f"the model has a vocabulary of {sizes[0]}, the reference one of {sizes[1]};"
            " take a reference made from the same model"
        )
    if windows.min() < 0 or windows.max() >= sizes[0]:
        raise TokenizerError(f"the text has token id {windows.max()}, the model a vocabulary of {sizes[0]}")


def _passes(first: int, end: int, batch: int) -> list[tuple[int, int]]:
    """Forward passes over a window: none crosses `first`, where scoring begins."""
    bounds = [*range(0, first, batch), *range(first, end, batch), end]
    return list(pairwise(bounds))


class _Samples:
    """What is kept of each scored token. nll, reference_nll, kl: float64 (n,); agree: bool (n,)."""

    def __init__(self, n: int) -> None:
        self.nll, self.reference_nll, self.kl = (np.empty(n) for _ in range(3))
        self.agree = np.empty(n, bool)
        self._n = 0
        self._nll_sum = 0.0

    @property
    def perplexity_so_far(self) -> float:
        return float(np.exp(self._nll_sum / self._n)) if self._n else float("nan")

    def add(self, logits: list[Floats], targets: Ids, where: str) -> None:
        """Score tokens. logits: the model's and perhaps the reference's, (n, vocab_size); targets: (n,)."""
        start, step = self._n, max(_PORTION // logits[0].shape[1], 1)

        def portion(begin: int) -> None:
            rows = slice(begin, begin + step)
            at = slice(start + begin, start + min(begin + step, len(targets)))
            each_row, true = np.arange(at.stop - at.start), targets[rows]
            model = _log_softmax(logits[0][rows])
            self.nll[at] = -model[each_row, true]
            if len(logits) == 1:
                return
            reference = _log_softmax(logits[1][rows])
            self.reference_nll[at] = -reference[each_row, true]
            self.agree[at] = logits[0][rows].argmax(axis=1) == logits[1][rows].argmax(axis=1)
            np.subtract(reference, model, out=model)
            self.kl[at] = np.einsum("ij,ij->i", np.exp(reference, out=reference), model)

        parallel.for_each(portion, range(0, len(targets), step))
        self._n += len(targets)
        scored = slice(start, self._n)
        found = [self.nll] if len(logits) == 1 else [self.nll, self.reference_nll, self.kl]
        if not all(np.isfinite(values[scored]).all() for values in found):
            raise PackedModelError(f"{where}: the logits are not finite; convert the model again")
        self._nll_sum += float(self.nll[scored].sum())

    def comparison(self) -> Comparison:
        delta_p = np.exp(-self.nll) - np.exp(-self.reference_nll)
        return Comparison(
            perplexity=_perplexity(self.reference_nll),
            log_ratio=_mean(self.nll - self.reference_nll),
            kl=_mean(self.kl),
            kl_median=float(np.median(self.kl)),
            kl_p99=float(np.percentile(self.kl, 99)),
            kl_max=float(self.kl.max()),
            delta_p=_mean(delta_p),
            delta_p_rms=float(np.sqrt(np.mean(delta_p**2))),
            top1_agreement=_mean(self.agree.astype(np.float64)),
        )


def _log_softmax(logits: Floats) -> Doubles:
    """float64 (n, vocab_size): ln p, from float32 logits."""
    result: Doubles = logits.astype(np.float64)
    result -= result.max(axis=1, keepdims=True)
    result -= np.log(np.exp(result).sum(axis=1, keepdims=True))
    return result


def _mean(samples: npt.NDArray[Any]) -> Estimate:
    return Estimate(float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(len(samples))))


def _perplexity(nll: Doubles) -> Estimate:
    mean = _mean(nll)
    value = float(np.exp(mean.value))
    return Estimate(value, value * mean.error)
