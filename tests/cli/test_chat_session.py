"""A conversation without a terminal: what a failed turn leaves."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tmac_llm
from tmac_llm.cli import console
from tmac_llm.cli.chat_session import ChatSession
from tmac_llm.errors import ContextLengthError, UsageError


@pytest.fixture
def session(packed: Path) -> Iterator[ChatSession]:
    with tmac_llm.load(packed, context_length=64) as llm:
        made = ChatSession(llm, show_stats=False)
        made.set_sampling(max_tokens=4, temperature=0)
        yield made


def test_a_failed_turn_leaves_the_conversation_as_it_was(session: ChatSession) -> None:
    session.ask("Hello")
    before = list(session.messages)
    with pytest.raises(ContextLengthError):
        session.ask("word " * 200)
    assert session.messages == before
    session.system = "word " * 200
    with pytest.raises(ContextLengthError):
        session.regenerate()
    assert session.messages == before
    session.system = None
    session.regenerate()
    assert session.messages[:-1] == before[:-1]
    assert session.messages[-1]["role"] == "assistant"


@pytest.fixture
def interrupted(session: ChatSession, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """interrupted(n): ask, with n Ctrl-C while the first piece of the answer is shown."""

    def ask(times: int) -> None:
        left = times

        def out(text: str) -> None:
            nonlocal left
            while left:
                left -= 1
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(console, "out", out)
        session.sampling["max_tokens"] = 40
        session.ask("Hello")

    return ask


@pytest.mark.parametrize("times", [1, 2])
def test_no_number_of_interrupts_ends_a_talk(
    session: ChatSession, interrupted: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(console, "interactive", lambda: True)
    handler = signal.getsignal(signal.SIGINT)
    interrupted(times)
    assert [message["role"] for message in session.messages] == ["user", "assistant"]
    assert session.last is not None
    assert session.last.finish_reason == "cancelled"
    assert session.last.n_generated < 40
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_ends_a_script(session: ChatSession, interrupted: Callable[[int], None]) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(1)
    assert session.messages == []


def test_a_conversation_with_nothing_to_answer(session: ChatSession) -> None:
    session.messages = [{"role": "assistant", "content": "Hello"}]
    with pytest.raises(UsageError, match="nothing to answer"):
        session.regenerate()
    assert len(session.messages) == 1


def test_a_name_that_is_none(session: ChatSession, tmp_path: Path) -> None:
    session.system = "a\udcff"
    with pytest.raises(UsageError, match="cannot write"):
        session.save(tmp_path / "talk.json")
    with pytest.raises(UsageError, match="cannot write"):
        session.save(Path("a\0b"))
