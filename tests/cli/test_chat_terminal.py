"""A chat at a terminal: what a person sees and what the keys do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chat_terminal import ChatTerminal

SHORT = ("--max-tokens", "12", "--seed", "7")


@contextmanager
def chat(home: Path, packed: Path, *arguments: str, columns: int = 100) -> Iterator[ChatTerminal]:
    terminal = ChatTerminal(home, str(packed), *arguments, columns=columns)
    try:
        terminal.wait_for_prompt()
        yield terminal
    finally:
        terminal.process.close(force=True)


def statistics(shown: str) -> tuple[int, int]:
    """(new, kept) tokens of the prompt, of the last statistics line shown."""
    found = re.findall(r"prompt (\d+) new(?: \((\d+) kept\))?", shown)
    assert found, shown
    new, kept = found[-1]
    return int(new), int(kept or 0)


def test_two_turns_reuse_the_prefix_and_ctrl_d_leaves(home: Path, packed: Path) -> None:
    with chat(home, packed, *SHORT) as terminal:
        terminal.say("Tell me about the sea and the ships that sail on it.")
        first = terminal.wait_for_prompt()
        new_1, kept_1 = statistics(first)
        assert kept_1 == 0
        terminal.say("And then?")
        new_2, kept_2 = statistics(terminal.wait_for_prompt())
        # All that was said before stays in the cache, so the second turn costs the new message only.
        assert kept_2 >= new_1
        assert new_2 < new_1
        terminal.key("d")
        assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_keeps_it(home: Path, packed: Path, tmp_path: Path) -> None:
    with chat(home, packed, "--seed", "0") as terminal:  # a seed with a long answer
        terminal.say("/set max_tokens 100000")
        terminal.wait_for_prompt()
        terminal.say("Count to a thousand.")
        terminal.wait_for_answer()
        terminal.key("c")
        shown = terminal.wait_for_prompt()
        if "stopped" not in shown:
            pytest.skip("the model ended its answer before the key arrived")
        terminal.say(f"/save {tmp_path / 'talk.json'}")
        terminal.wait_for_prompt()
        messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert messages[1]["content"]
        terminal.say("/exit")
        assert terminal.end() == 0


def test_ctrl_c_at_the_prompt_says_how_to_leave(home: Path, packed: Path) -> None:
    with chat(home, packed) as terminal:
        terminal.process.send("half a mess")
        terminal.key("c")
        assert "Ctrl-D" in terminal.wait_for_prompt()
        terminal.key("d")
        assert terminal.end() == 0


def test_commands(home: Path, packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with chat(home, packed, *SHORT) as terminal:

        def command(line: str) -> str:
            terminal.say(line)
            return terminal.wait_for_prompt()

        shown = command("/help")
        for name in ("/clear", "/system", "/set", "/regen", "/save", "/load", "/stats", "/exit"):
            assert name in shown
        assert "write a message first" in command("/regen")
        assert "no answer yet" in command("/stats")
        assert "Talk like a pirate" in command("/system Talk like a pirate")
        assert "temperature 0.5  (set here)" in command("/set temperature 0.5")
        assert "no such setting" in command("/set tempo 1")
        assert "expected a number" in command("/set temperature hot")
        assert "/set top_p: expected a number from 0 to 1, found 2.0" in command("/set top_p 2")
        assert "/set repeat_penalty: expected a number from 0.01 to 100" in command("/set repeat_penalty 1e9")
        assert "expected 1 or more" in command("/set max_tokens 0")
        command("Hello")
        assert "context:" in command("/stats")
        command("/regen")
        assert "saved 2 messages" in command(f"/save {file}")
        saved = json.loads(file.read_text())["messages"]
        assert [message["role"] for message in saved] == ["system", "user", "assistant"]
        assert "conversation cleared" in command("/clear")
        assert "no system prompt" in command("/system -")
        assert "loaded 2 messages" in command(f"/load {file}")
        assert "Talk like a pirate" in command("/system")
        assert "cannot read" in command("/load nowhere.json")
        assert "cannot write" in command("/save ~nobody-of-this-name/talk.json")
        assert "no such command" in command("/dance")
        assert "statistics after each answer: off" in command("/stats off")
        assert "prompt" not in command("Hello again")
        terminal.say("/bye")
        assert terminal.end() == 0


def test_narrow_window_emoji_and_cjk(home: Path, packed: Path, tmp_path: Path) -> None:
    text = "Grüße 👩‍🚀 und 你好,世界! Wie geht es dir an diesem langen, langen Tag?"
    with chat(home, packed, *SHORT, columns=40) as terminal:
        terminal.say(text)
        terminal.wait_for_prompt()
        terminal.say(f"/save {tmp_path / 't.json'}")
        terminal.wait_for_prompt()
    assert json.loads((tmp_path / "t.json").read_text())["messages"][0]["content"] == text


def test_message_of_several_lines_and_history(home: Path, packed: Path, tmp_path: Path) -> None:
    with chat(home, packed, *SHORT) as terminal:
        terminal.say('"""one')
        terminal.wait_for_cursor_behind(". ")
        terminal.say('two"""')
        terminal.wait_for_prompt()
        terminal.say("//slash")
        terminal.wait_for_prompt()
        terminal.say(f"/save {tmp_path / 't.json'}")
        terminal.wait_for_prompt()
        terminal.key("d")
        terminal.end()
    said = [
        m["content"] for m in json.loads((tmp_path / "t.json").read_text())["messages"] if m["role"] == "user"
    ]
    assert said == ["one\ntwo", "/slash"]
    assert "//slash" in (home / "chat_history").read_text()
    assert (home / "chat_history").stat().st_mode & 0o077 == 0


def test_a_turn_too_long_leaves_the_conversation_usable(home: Path, packed: Path) -> None:
    with chat(home, packed, "--max-tokens", "4", "--context", "64") as terminal:
        terminal.say("word " * 200)
        assert "context" in terminal.wait_for_prompt()
        terminal.say("Hi")
        # An answer of one token has no speed, so the line is known by its prompt.
        assert statistics(terminal.wait_for_prompt())[1] == 0
