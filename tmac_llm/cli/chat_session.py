"""One conversation: the messages so far, the sampling settings, and the turn that streams an answer.

Knows the Python API and the console; does not know commands or line editing.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac_llm.cli import console
from tmac_llm.errors import UsageError

if TYPE_CHECKING:
    from types import FrameType

    from tmac_llm.llm import LLM, Completion, Stream

Message = dict[str, str]
SAMPLING_TYPES: dict[str, type] = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repeat_penalty": float,
    "seed": int,
}


class ChatSession:
    """A conversation with one model.

    messages: user and assistant turns in OpenAI form, without the system prompt.
    sampling: only what the user set; the rest is the model's own.
    """

    def __init__(self, llm: LLM, *, system: str | None = None, show_stats: bool = True) -> None:
        self.llm = llm
        self.system = system
        self.show_stats = show_stats
        self.messages: list[Message] = []
        self.sampling: dict[str, Any] = {}
        self.last: Completion | None = None

    def set_sampling(self, **values: Any) -> None:
        """Set sampling options; None leaves one as it is."""
        self.sampling.update({name: value for name, value in values.items() if value is not None})

    def conversation(self) -> list[Message]:
        """The messages with the system prompt in front."""
        return self._head() + self.messages

    def ask(self, text: str) -> None:
        """Send a user message, stream the answer to stdout, and keep both.

        A failed turn (too long for the context, template error) leaves the conversation as it was.
        """
        self._answer([*self.messages, {"role": "user", "content": text}])

    def regenerate(self) -> None:
        """Replace the last answer by another; a fixed seed would repeat it, so the next one is used."""
        answered = bool(self.messages) and self.messages[-1]["role"] == "assistant"
        messages = self.messages[:-1] if answered else self.messages
        if not messages:
            raise UsageError("/regen: nothing to answer yet; write a message first")
        if "seed" in self.sampling:
            self.sampling["seed"] += 1
        self._answer(messages)

    def _answer(self, messages: list[Message]) -> None:
        stream = self.llm.chat_stream(self._head() + messages, **self.sampling)
        with _interrupt_cancels(stream) if console.interactive() else nullcontext():
            for piece in stream:
                console.out(piece)
        self.last = stream.result
        console.out("\n")
        self.messages = [*messages, {"role": "assistant", "content": self.last.text}]
        if self.last.finish_reason == "cancelled":
            console.dim("stopped; what was said is kept, /regen tries again")
        elif self.last.finish_reason == "length":
            console.dim(self._why_cut())
        if self.show_stats:
            console.dim(statistics_line(self.last))

    def _head(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _why_cut(self) -> str:
        used = self.last.n_prompt + self.last.n_generated if self.last else 0
        if used >= self.llm.context_length:
            return f"cut: the context of {self.llm.context_length} tokens is full; /clear starts afresh"
        return "cut at --max-tokens; /set max_tokens N allows more"

    def save(self, path: Path) -> None:
        """Write the conversation as JSON: {"model": ..., "messages": [{"role", "content"}, ...]}."""
        record = {"model": self.llm.path.name, "messages": self.conversation()}
        try:
            path.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: a name with NUL, a text that is not Unicode
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{path}: cannot write: {reason}") from error

    def load(self, path: Path) -> None:
        """Replace the conversation by one that save() or another OpenAI-style tool wrote."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: cannot read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path}: not JSON: {error}") from error
        messages = record.get("messages") if isinstance(record, dict) else record
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise UsageError(
                f'{path}: expected "messages", a list of objects with the texts "role" and "content"'
            )
        self.system = next((m["content"] for m in messages if m["role"] == "system"), None)
        self.messages = [
            {"role": m["role"], "content": m["content"]} for m in messages if m["role"] != "system"
        ]


def statistics_line(result: Completion) -> str:
    """One line: tokens and speed of the answer, what of the prompt was new, time to the first token, seed."""
    new = result.n_prompt - result.n_cached
    steps = result.n_generated - 1  # the first token comes out of the prompt's pass
    speed = f"{steps / result.seconds_decode:.1f} tokens/s" if steps > 0 and result.seconds_decode else "-"
    kept = f" ({result.n_cached} kept)" if result.n_cached else ""
    return (
        f"{result.n_generated} tokens, {speed} · prompt {new} new{kept}, "
        f"{console.duration(result.seconds_prefill)} · seed {result.seed}"
    )


def _is_message(message: object) -> bool:
    if not isinstance(message, dict):
        return False
    roles = ("system", "user", "assistant")
    return message.get("role") in roles and isinstance(message.get("content"), str)


@contextmanager
def _interrupt_cancels(stream: Stream) -> Iterator[None]:
    """While the answer streams, Ctrl-C ends it between two tokens or chunks of the prompt, a second one at once.

    Neither ends the program: what was said so far would be lost to an impatient key.
    """

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream.cancel()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except KeyboardInterrupt:
        stream.close()
    finally:
        signal.signal(signal.SIGINT, previous)
