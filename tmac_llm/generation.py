"""Token ids in, token ids out: prefill reusing the common prefix, then decode until a stop id or a limit.

Knows a decoder and a sampler; knows no text and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from tmac_llm.errors import ContextLengthError, TokenizerError
from tmac_llm.model.decoder import Decoder
from tmac_llm.model.kv_cache import CacheType, KVCache

# Tokens per forward pass of a prompt: enough for the GEMM kernels, few enough that a cancel is soon noticed.
PREFILL_CHUNK = 128

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length", "cancelled"]


class NextToken(Protocol):
    """What generation needs of a sampler: sampling.Sampler has it."""

    def sample(self, logits: Logits, history: Ids) -> int:
        """The next id after the ids in `history`; logits: float32 (vocab_size,)."""


class Context:
    """A KV cache and the token ids it holds, never out of step: an interrupted pass is taken back as a whole.

    decoder: the model. max_length: most tokens held; None is the model's max_position_embeddings.
    cache_type: see KVCache.
    """

    def __init__(
        self, decoder: Decoder, max_length: int | None = None, cache_type: CacheType = "f32"
    ) -> None:
        self.decoder = decoder
        self.max_length = max_length or decoder.config.max_position_embeddings
        self._cache = KVCache(decoder.config, self.max_length, cache_type)
        self._ids: Ids = np.empty(self.max_length, np.int64)
        self._length = 0

    @property
    def ids(self) -> Ids:
        """int64 (n,): the tokens in the cache; a view, valid until the next call."""
        return self._ids[: self._length]

    def check(self, n_prompt: int) -> None:
        """Raises ContextLengthError unless a prompt of this length leaves room for one token of an answer."""
        if n_prompt >= self.max_length:
            raise ContextLengthError(
                f"the prompt has {n_prompt} tokens, the context holds {self.max_length} and needs room for an"
                " answer; shorten the prompt, or clear the conversation"
            )

    def prefill(
        self,
        ids: Sequence[int] | Ids,
        on_progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[Logits | None, int]:
        """Make the context hold `ids`; only what follows the common prefix with the present ids is computed.

        on_progress: called with (tokens computed, tokens to compute) before the first chunk and after each.
        cancelled: asked before each chunk; when true, what was computed stays.
        Returns the float32 (vocab_size,) logits after the last id, None if cancelled, and the length of the
        reused prefix (at most len(ids) - 1: the logits come from feeding the last id).
        Raises ContextLengthError, or TokenizerError for ids that the model has no embedding for.
        """
        prompt = np.asarray(ids, np.int64)
        self.check(len(prompt))
        self._check_ids(prompt)
        n_reused = self._common_prefix(prompt)
        self._truncate(n_reused)
        total = len(prompt) - n_reused
        logits: Logits | None = None
        if on_progress:
            on_progress(0, total)
        for begin in range(n_reused, len(prompt), PREFILL_CHUNK):
            if cancelled():
                return None, n_reused
            end = min(begin + PREFILL_CHUNK, len(prompt))
            logits = self._feed(prompt[begin:end], "last" if end == len(prompt) else "none")
            if on_progress:
                on_progress(end - n_reused, total)
        return logits, n_reused

    def step(self, token_id: int) -> Logits:
        """Feed one id; float32 (vocab_size,) logits after it, valid until the next call."""
        logits = self._feed(np.array([token_id], np.int64), "last")
        assert logits is not None
        return logits

    def _feed(self, ids: Ids, logits: Literal["last", "none"]) -> Logits | None:
        before, after = self._length, self._length + len(ids)
        try:
            rows = self.decoder.forward(ids, self._cache, logits=logits)
            self._ids[before:after] = ids
            self._length = after
        except BaseException:  # KeyboardInterrupt too: some layers may have appended already
            self._truncate(before)
            raise
        return None if rows is None else rows[-1]

    def _truncate(self, n: int) -> None:
        self._length = n
        self._cache.truncate(n)

    def _common_prefix(self, prompt: Ids) -> int:
        n = min(self._length, len(prompt) - 1)
        differs = np.flatnonzero(self._ids[:n] != prompt[:n])
        return int(differs[0]) if len(differs) else n

    def _check_ids(self, prompt: Ids) -> None:
        size = self.decoder.config.vocab_size
        if not len(prompt):
            raise TokenizerError("the prompt has no tokens; give some text")
        wrong = prompt[(prompt < 0) | (prompt >= size)]
        if len(wrong):
            raise TokenizerError(f"token id {wrong[0]} is outside the model's vocabulary of {size}")


class Generation(Iterator[int]):
    """Iterates over the ids of one answer, computing each when it is asked for.

    context, logits: a context and the logits after its last id, as prefill() returns them.
    stop_ids: end the answer and are not part of it.
    max_tokens: longest answer; prompt and answer never exceed the context.

    After the last id `finish_reason` is "stop", or "length" when max_tokens or the context ended it. An
    exception out of a pass (KeyboardInterrupt) leaves the context with the ids it held before that pass.
    """

    def __init__(
        self,
        context: Context,
        logits: Logits,
        sampler: NextToken,
        stop_ids: Collection[int] = (),
        max_tokens: int | None = None,
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self._context = context
        self._logits = logits
        self._sampler = sampler
        self._stop_ids = frozenset(stop_ids)
        room = context.max_length - len(context.ids)
        self._left = room if max_tokens is None else min(max_tokens, room)
        self._previous: int | None = None

    def __next__(self) -> int:
        if self.finish_reason:
            raise StopIteration
        if self._left <= 0:
            self.finish_reason = "length"
            raise StopIteration
        if self._previous is not None:  # fed only now: the last id of an answer needs no pass
            self._logits = self._context.step(self._previous)
            self._previous = None
        token_id = self._sampler.sample(self._logits, self._context.ids)
        if token_id in self._stop_ids:
            self.finish_reason = "stop"
            raise StopIteration
        self._left -= 1
        self._previous = token_id
        return token_id


def generate(
    context: Context,
    prompt_ids: Sequence[int] | Ids,
    sampler: NextToken,
    stop_ids: Collection[int] = (),
    max_tokens: int | None = None,
) -> Generation:
    """Prefill `prompt_ids` and return the iterator over the answer. Raises as Context.prefill does."""
    logits, _ = context.prefill(prompt_ids)
    assert logits is not None
    return Generation(context, logits, sampler, stop_ids, max_tokens)
