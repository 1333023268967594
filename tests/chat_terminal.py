"""A chat in a pseudo-terminal, as a person sees it: keys go in, an emulated screen comes out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

ROWS = 400  # nothing scrolls away
SECONDS = 60


class ChatTerminal:
    """`tmac-llm chat` in a terminal of the given width; `home` isolates store, history and configuration."""

    def __init__(self, home: Path, *arguments: str, columns: int = 100) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TMAC_")} | {
            "TMAC_HOME": str(home),
            "HOME": str(home),
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "TERM": "xterm-256color",
            "HF_HUB_OFFLINE": "1",
        }
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "tmac_llm", "chat", *arguments],
            env=environment,
            dimensions=(ROWS, columns),
        )
        self._screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._prompt_row = -1

    def lines(self) -> list[str]:
        """The screen, without trailing spaces."""
        return [line.rstrip() for line in self._screen.display]

    def wait_for(self, text: str) -> None:
        """Wait until the text stands anywhere below the last prompt."""
        self._wait(lambda: any(text in line for line in self.lines()[self._prompt_row + 1 :]), text)

    def wait_for_cursor_behind(self, prompt: str) -> str:
        """Wait until an input line begins with `prompt` and holds the cursor; the text shown since the last one."""

        def waiting() -> bool:
            row = self._screen.cursor.y
            return row > self._prompt_row and self.lines()[row] == prompt.rstrip()

        self._wait(waiting, prompt)
        row = self._screen.cursor.y
        shown = "\n".join(self.lines()[self._prompt_row + 1 : row])
        self._prompt_row = row
        return shown

    def wait_for_prompt(self) -> str:
        """Wait until the next message can be typed; the text shown since the last one."""
        return self.wait_for_cursor_behind("> ")

    def wait_for_answer(self) -> None:
        """Wait until an answer has begun, without waiting for its end."""
        self._wait(lambda: any(self.lines()[self._prompt_row + 1 :]), "an answer", idle=False)

    def say(self, text: str) -> None:
        """Type a line and press Enter."""
        self.process.send(text + "\r")

    def key(self, name: str) -> None:
        """Press Ctrl and a letter."""
        self.process.sendcontrol(name)

    def end(self) -> int:
        """Wait for the program's end; returns its exit code."""
        self.process.expect(pexpect.EOF, timeout=SECONDS)
        self.process.close()
        assert self.process.exitstatus is not None, f"killed by signal {self.process.signalstatus}"
        return self.process.exitstatus

    def _wait(self, condition: Callable[[], bool], what: str, idle: bool = True) -> None:
        """Wait for a condition; `idle`: and until nothing more is being drawn."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                self._stream.feed(self.process.read_nonblocking(65536, timeout=0.1))
                if not idle and condition():
                    return
            except pexpect.TIMEOUT:
                if condition():
                    return
            except pexpect.EOF:
                break
        shown = "\n".join(line for line in self.lines() if line)
        raise AssertionError(f"waited for {what!r}; on screen:\n{shown}")
