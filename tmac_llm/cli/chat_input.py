"""Where a chat's messages come from: a line editor at a terminal, or the lines of a pipe.

Knows nothing of models or commands, except the command names it completes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from tmac_llm.cli import console
from tmac_llm.errors import UsageError

BLOCK = '"""'


class TerminalInput:
    """Messages typed at a terminal, with history and editing.

    Iterating ends at Ctrl-D. Ctrl-C empties the line and says how to leave. A line that begins with three
    quotes opens a message of several lines, which three quotes end; Esc Enter adds a line anywhere.
    """

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, History, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        from tmac_llm import store
        from tmac_llm.cli.chat_commands import COMMANDS

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        history: History
        try:
            store.home().mkdir(parents=True, exist_ok=True)
            file = store.home() / "chat_history"
            # For nobody else to read; and what cannot be written shows here, not at the first message.
            os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
            history = FileHistory(str(file))
        except OSError:
            console.warn(f"{store.home()}: cannot be written, so the input history is not kept")
            history = InMemoryHistory()
        commands = WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)
        self._session: PromptSession[str] = PromptSession(
            history=history, completer=commands, complete_while_typing=False, key_bindings=keys
        )

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                text = self._read()
            except EOFError:
                return
            except KeyboardInterrupt:
                console.dim("Ctrl-D or /exit leaves")
                continue
            if text.strip():
                yield text.strip()

    def _read(self) -> str:
        line = self._session.prompt("> ")
        if not line.lstrip().startswith(BLOCK):
            return line
        lines = [line.lstrip().removeprefix(BLOCK)]
        while not lines[-1].rstrip().endswith(BLOCK):
            lines.append(self._session.prompt(". "))
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        return "\n".join(lines)


def piped_messages() -> Iterator[str]:
    """The non-empty lines of stdin, which must be UTF-8; a block in three quotes is one message."""
    block: list[str] | None = None
    try:
        for line in sys.stdin:
            text = line.rstrip("\r\n")
            if block is None and text.lstrip().startswith(BLOCK):
                block, text = [], text.lstrip().removeprefix(BLOCK)
            if block is None:
                if text.strip():
                    yield text.strip()
                continue
            block.append(text)
            if text.rstrip().endswith(BLOCK):
                block[-1] = text.rstrip().removesuffix(BLOCK)
                yield "\n".join(block).strip()
                block = None
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: expected UTF-8 text: {error}") from error
    if block is not None:
        raise UsageError('stdin: a message opened with """ is not closed')
