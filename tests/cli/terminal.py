"""A chat in a pseudo-terminal, as a person sees it: keys go in, the text without escape sequences comes out."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pexpect

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07|\x1b[=>()][0-9A-B]?|\r")
PROMPT = "> "


class ChatTerminal:
    """`tmac-llm chat` in a terminal of the given width; `home` isolates store, history and configuration."""

    def __init__(self, home: Path, *arguments: str, columns: int = 100, verb: str = "chat") -> None:
        environment = {
            **os.environ,
            "TMAC_HOME": str(home),
            "HOME": str(home),
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "TERM": "xterm-256color",
            "HF_HUB_OFFLINE": "1",
        }
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "tmac_llm", verb, *arguments],
            env=environment,
            encoding="utf-8",
            dimensions=(40, columns),
            timeout=60,
        )
        self.seen = ""

    def read_until(self, *patterns: str) -> str:
        """Wait for one of the regular expressions in the visible text; return what was shown since the last call."""
        while True:
            for pattern in patterns:
                match = re.search(pattern, self.seen)
                if match:
                    shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
                    return shown
            try:
                self.seen = _ESCAPES.sub("", self.seen + self.process.read_nonblocking(4096, timeout=60))
            except pexpect.EOF:
                raise AssertionError(f"chat ended while waiting for {patterns}; on screen: {self.seen!r}") from None
            except pexpect.TIMEOUT:
                raise AssertionError(f"no {patterns} within 60 s; on screen: {self.seen!r}") from None

    def wait_for_prompt(self) -> str:
        """Wait until the next message can be typed."""
        return self.read_until(r"(?:^|\n)> ")

    def say(self, text: str) -> None:
        """Type a line and press Enter."""
        self.process.send(text + "\r")

    def key(self, name: str) -> None:
        """Press Ctrl and a letter."""
        self.process.sendcontrol(name)

    def end(self) -> int:
        """Wait for the program's end; returns its exit code."""
        self.process.expect(pexpect.EOF)
        self.process.close()
        assert self.process.exitstatus is not None, f"killed by signal {self.process.signalstatus}"
        return self.process.exitstatus
