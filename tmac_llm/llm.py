"""Text in, streamed text out, with timings: the public Python API.

Knows tokenizer, context and clock; prints nothing and knows no command line.

    with tmac_llm.load("models/my-model") as llm:
        print(llm.chat([{"role": "user", "content": "Hello"}]))
        for piece in llm.stream("Once upon a time", raw=True, max_tokens=50): ...

One LLM holds one context and is for one thread at a time; only Stream.cancel() may be called from another.
A new answer ends one that is still being streamed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tmac_llm import kernels
from tmac_llm.chat_template import Message
from tmac_llm.errors import UsageError
from tmac_llm.generation import PREFILL_CHUNK, Context, FinishReason, Generation
from tmac_llm.load import load_decoder
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.decoder import Decoder
from tmac_llm.model.kv_cache import CacheType, KVCache
from tmac_llm.packed.container import PackedModel
from tmac_llm.sampling import Sampler, SamplingParams
from tmac_llm.sampling_defaults import model_sampling
from tmac_llm.stop_strings import StopStrings
from tmac_llm.tokenizer import Tokenizer

Progress = Callable[[int, int], None]


def load(
    path: str | Path,
    *,
    n_threads: int | None = None,
    tables: Literal["int8", "exact", "fast"] | None = None,
    context_length: int | None = None,
    cache_type: CacheType = "f32",
    mmap: bool = False,
) -> LLM:
    """Open a packed model.

    path: the directory that `convert` wrote. n_threads: of the kernels, for the whole process.
    tables: see load.load_decoder. context_length: longest prompt plus answer; at most, and by default, the
    model's max_position_embeddings. cache_type: of keys and values, "f32", or "int8" for a quarter of the memory.
    mmap: multiply straight from mapped files, whose memory all processes share, instead of from a copy in huge pages:
    see mapped.py; slower, and the model's files may not be cut short meanwhile.
    Raises PackedModelError, TokenizerError, TemplateError, UsageError; with mmap also StoreError.
    """
    if n_threads is not None:
        kernels.set_threads(n_threads)
    packed = PackedModel.open(path)
    limit = packed.config.max_position_embeddings
    if context_length is not None and not 1 < context_length <= limit:
        raise UsageError(f"context length: expected 2 to {limit} (the model's), found {context_length}")
    tokenizer = Tokenizer.from_dir(packed.path)
    decoder = load_decoder(packed, tables, mmap=mmap)
    return LLM(decoder, tokenizer, packed.path, context_length=context_length, cache_type=cache_type)


@dataclass(frozen=True)
class Completion:
    """One answer.

    token_ids: without the stop id. finish_reason: "stop" (stop id or stop string), "length" (max_tokens or
    the context), "cancelled". n_prompt: tokens of the prompt, of which n_cached were in the cache already.
    seconds_prefill: computing the prompt; seconds_decode: from there to the end, without the consumer's time.
    sampling: what was used, with the seed.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    n_prompt: int
    n_cached: int
    n_generated: int
    seconds_prefill: float
    seconds_decode: float
    seed: int
    sampling: SamplingParams


class LLM:
    """A model ready to answer; close() or `with` frees its memory."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        path: Path,
        *,
        context_length: int | None = None,
        cache_type: CacheType = "f32",
    ) -> None:
        self.tokenizer = tokenizer
        self.path = path
        self.config: ModelConfig = decoder.config
        self.cache_type: CacheType = cache_type
        self._context: Context | None = Context(decoder, context_length, cache_type)
        self.context_length = self._context.max_length
        self._forbidden = tokenizer.unnamed_ids(self.config.vocab_size)
        self._default_sampling = model_sampling(path)
        self._active: Stream | None = None
        # What the context holds as marked chat text, so that an answer is not encoded again in the next turn.
        self._chat: tuple[str, list[int]] = ("", [])

    def sampling_defaults(self) -> dict[str, int | float | None]:
        """The options of an answer and their values for this model; None: no limit, or chosen at random."""
        params = self._default_sampling
        return {
            "max_tokens": None,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "repeat_penalty": params.repetition_penalty,
            "seed": None,
        }

    def generate(self, prompt: str, **options: Any) -> str:
        """The whole text of stream(prompt, **options)."""
        return "".join(self.stream(prompt, **options))

    def chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The whole text of chat_stream(messages, **options)."""
        return "".join(self.chat_stream(messages, **options))

    def stream(self, prompt: str, *, raw: bool = False, **options: Any) -> Stream:
        """Answer a prompt, or continue it: with `raw`, and for models without a chat template.

        options: see chat_stream.
        """
        if raw or not self.tokenizer.has_chat_template:
            ids = self.tokenizer.encode_prompt(prompt)
            return self._start(ids, "", after=ids, **options)
        return self.chat_stream([{"role": "user", "content": prompt}], **options)

    def chat_stream(
        self,
        messages: Sequence[Message],
        *,
        template_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Stream:
        """Answer a conversation of {"role", "content"} messages; work begins with the first piece.

        template_options: variables for the chat template, such as {"enable_thinking": False}.
        options: max_tokens (None: to the end of the context), temperature, top_k, top_p, min_p,
        repeat_penalty, seed (None: random), stop (texts that end the answer), on_progress (called with tokens
        of the prompt done and in all). None takes the model's default.
        Raises TemplateError, UsageError, and ContextLengthError where the prompt does not fit.
        """
        text = self.tokenizer.render_marked(messages, **(template_options or {}))
        known, known_ids = self._chat
        rest = text[len(known) :]
        if known and text.startswith(known) and self.tokenizer.starts_with_special(rest):
            ids = known_ids + self.tokenizer.encode_marked(rest)
        else:
            ids = self.tokenizer.encode_marked(text)
        return self._start(ids, text, **options)

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """float32 (n, vocab_size): the logits after each of n ids; the conversation is not touched."""
        decoder = self._open().decoder
        ids = np.asarray(token_ids, np.int64)
        if ids.ndim != 1 or not len(ids):
            raise UsageError(f"token_ids: expected a list of ids, found shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise UsageError(f"token_ids: expected 0 to {self.config.vocab_size - 1}")
        cache = KVCache(self.config, self.context_length, self.cache_type)
        result = np.empty((len(ids), self.config.vocab_size), np.float32)
        for begin in range(0, len(ids), PREFILL_CHUNK):
            part = slice(begin, begin + PREFILL_CHUNK)
            result[part] = decoder.forward(ids[part], cache, logits="all")
        return result

    def close(self) -> None:
        """Free the weights and the cache. Further calls raise UsageError."""
        if self._active:
            self._active.close()
        self._context = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Context:
        if self._context is None:
            raise UsageError("this model is closed; load it again")
        return self._context

    def _start(
        self,
        ids: list[int],
        chat_text: str,
        *,
        after: Sequence[int] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        on_progress: Progress | None = None,
    ) -> Stream:
        context = self._open()
        given: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repeat_penalty,
            "seed": secrets.randbits(32) if seed is None else seed,
        }
        params = replace(self._default_sampling, **{k: v for k, v in given.items() if v is not None})
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens: expected 1 or more, found {max_tokens}")
        context.check(len(ids))
        if self._active:
            self._active.close()
        self._active = Stream(
            self, context, ids, chat_text, after, params, max_tokens, stop or (), on_progress
        )
        return self._active


class Stream(Iterator[str]):
    """The pieces of one answer, as they are computed. After the end, or close(), `result` is the whole."""

    def __init__(
        self,
        llm: LLM,
        context: Context,
        ids: list[int],
        chat_text: str,
        after: Sequence[int],
        params: SamplingParams,
        max_tokens: int | None,
        stop: Sequence[str],
        on_progress: Progress | None,
    ) -> None:
        self._llm, self._context = llm, context
        self._prompt_ids, self._chat_text = ids, chat_text
        self._sampler = Sampler(params, llm.config.vocab_size, llm._forbidden)
        self._params, self._max_tokens, self._on_progress = params, max_tokens, on_progress
        self._stops = StopStrings(stop)
        self._decoder = llm.tokenizer.stream(after)
        self._generation: Generation | None = None
        self._cancelled = False
        self._completion: Completion | None = None
        self._token_ids: list[int] = []
        self._pieces: list[str] = []
        self._n_cached = 0
        self._seconds_prefill = self._seconds_decode = 0.0

    @property
    def result(self) -> Completion:
        """The answer; UsageError before its end."""
        if self._completion is None:
            raise UsageError("the answer is not complete; iterate to the end, or close() the stream")
        return self._completion

    def cancel(self) -> None:
        """End the answer before the next token or chunk of the prompt; from any thread or signal handler."""
        self._cancelled = True

    def close(self) -> None:
        """End the answer here; what was said is in `result`."""
        if self._completion is None:
            self._finish("cancelled")

    def __next__(self) -> str:
        while self._completion is None:
            try:
                piece = self._advance()
            except BaseException:  # KeyboardInterrupt: the partial answer is kept
                self.close()
                raise
            if piece:
                return piece
        raise StopIteration

    def _advance(self) -> str:
        """Work for one more token; the text to show, if any."""
        if self._generation is None and not self._cancelled:
            self._prefill()
        if self._cancelled or self._generation is None:
            return self._finish("cancelled")
        start = time.perf_counter()
        token_id = next(self._generation, None)
        self._seconds_decode += time.perf_counter() - start
        if token_id is None:
            assert self._generation.finish_reason is not None
            return self._finish(self._generation.finish_reason)
        self._token_ids.append(token_id)
        piece = self._stops.feed(self._decoder.step(token_id))
        if piece:
            self._pieces.append(piece)
        if self._stops.found:
            self._finish("stop")
        return piece

    def _prefill(self) -> None:
        start = time.perf_counter()
        logits, self._n_cached = self._context.prefill(
            self._prompt_ids, self._on_progress, lambda: self._cancelled
        )
        self._seconds_prefill = time.perf_counter() - start
        if logits is not None:
            stop_ids = self._llm.tokenizer.eos_token_ids
            self._generation = Generation(self._context, logits, self._sampler, stop_ids, self._max_tokens)

    def _finish(self, reason: FinishReason) -> str:
        """Make the result; the text that was still held back."""
        rest = self._stops.feed(self._decoder.flush()) + self._stops.flush()
        if self._stops.found:
            reason = "stop"
        text = "".join(self._pieces) + rest
        assert self._params.seed is not None
        self._completion = Completion(
            text=text,
            token_ids=self._token_ids,
            finish_reason=reason,
            n_prompt=len(self._prompt_ids),
            n_cached=self._n_cached,
            n_generated=len(self._token_ids),
            seconds_prefill=self._seconds_prefill,
            seconds_decode=self._seconds_decode,
            seed=self._params.seed,
            sampling=self._params,
        )
        if self._chat_text and not self._stops.found:
            marked = self._chat_text + self._llm.tokenizer.mark(text)
            self._llm._chat = (marked, self._prompt_ids + self._token_ids)
        self._llm._active = None
        return rest
