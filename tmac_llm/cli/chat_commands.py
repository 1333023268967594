"""The commands of a chat, one function each: name, usage and help come from the table below.

Knows a ChatSession and the console; does not know how lines are read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tmac_llm.cli import console
from tmac_llm.cli.chat_session import SAMPLING_TYPES, ChatSession, statistics_line
from tmac_llm.errors import UsageError
from tmac_llm.paths import expand_user


class Command(NamedTuple):
    """One command: run(session, argument) returns "exit" to leave the chat."""

    usage: str
    help: str
    run: Callable[[ChatSession, str], str | None]


def run_command(session: ChatSession, line: str) -> str | None:
    """Run a line such as "/set temperature 0.5"; UsageError for an unknown command."""
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(
            f"/{name}: no such command; /help lists them (begin with // to send a message with a slash)"
        )
    return command.run(session, argument.strip())


def _help(session: ChatSession, argument: str) -> None:
    shown = {command.usage: command.help for command in COMMANDS.values()}
    width = max(map(len, shown))
    for usage, text in shown.items():
        console.note(f"  {usage:<{width}}  {text}")
    console.note('  """ begins and ends a message of several lines; Esc Enter adds a line')
    console.note("  Ctrl-C stops an answer, Ctrl-D leaves")


def _clear(session: ChatSession, argument: str) -> None:
    session.messages.clear()
    console.note("conversation cleared" + (" (the system prompt stays)" if session.system else ""))


def _system(session: ChatSession, argument: str) -> None:
    if argument in ("-", "none"):
        session.system = None
    elif argument:
        session.system = argument
    console.note(f"system: {session.system}" if session.system else "no system prompt; /system TEXT sets one")


def _set(session: ChatSession, argument: str) -> None:
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    name = name.replace("-", "_")
    if name and name not in SAMPLING_TYPES:
        raise UsageError(f"/set {name}: no such setting; there are {', '.join(SAMPLING_TYPES)}")
    if name and not value.strip():
        raise UsageError(
            f"/set {name}: expected a value, for example /set {name} 1; `default` takes the model's own"
        )
    if name and value.strip() == "default":
        session.sampling.pop(name, None)
    elif name:
        session.sampling[name] = _number(name, value.strip())
    for key, default in session.llm.sampling_defaults().items():
        mine = session.sampling.get(key)
        console.note(
            f"  {key} {default if mine is None else mine}" + ("" if mine is None else "  (set here)")
        )


def _number(name: str, text: str) -> float | int:
    kind = SAMPLING_TYPES[name]
    try:
        number: float | int = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"/set {name}: expected {what}, found {text!r}") from None
    if name == "max_tokens":
        if number < 1:
            raise UsageError(f"/set {name}: expected 1 or more, found {text}")
        return number
    from tmac_llm.sampling import SamplingParams

    parameter: dict[str, Any] = {"repetition_penalty" if name == "repeat_penalty" else name: number}
    try:
        SamplingParams(**parameter)
    except UsageError as error:
        raise UsageError(f"/set {name}: {str(error).partition(': ')[2]}") from None
    return number


def _regen(session: ChatSession, argument: str) -> None:
    session.regenerate()


def _save(session: ChatSession, argument: str) -> None:
    path = _path("/save", argument)
    session.save(path)
    console.note(f"saved {len(session.messages)} messages to {path}")


def _load(session: ChatSession, argument: str) -> None:
    path = _path("/load", argument)
    session.load(path)
    console.note(f"loaded {len(session.messages)} messages from {path}")


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise UsageError(f"{command}: expected a file name, for example {command} talk.json")
    return expand_user(argument)


def _stats(session: ChatSession, argument: str) -> None:
    if argument in ("on", "off"):
        session.show_stats = argument == "on"
        console.note(f"statistics after each answer: {argument}")
        return
    if session.last is None:
        console.note("no answer yet")
        return
    console.note(statistics_line(session.last))
    used = session.last.n_prompt + session.last.n_generated
    console.note(
        f"context: {used} of {session.llm.context_length} tokens used, {len(session.messages)} messages"
    )


def _exit(session: ChatSession, argument: str) -> str:
    return "exit"


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "show this list", _help),
    "clear": Command("/clear", "forget the conversation", _clear),
    "system": Command("/system [TEXT|-]", "show, set or remove the system prompt", _system),
    "set": Command("/set [NAME VALUE]", f"show or change {', '.join(SAMPLING_TYPES)}", _set),
    "regen": Command("/regen", "answer the last message again", _regen),
    "save": Command("/save FILE", "write the conversation as JSON", _save),
    "load": Command("/load FILE", "continue a saved conversation", _load),
    "stats": Command("/stats [on|off]", "statistics of the last answer, or after each one", _stats),
    "exit": Command("/exit", "leave (also /bye, /quit, Ctrl-D)", _exit),
    "bye": Command("/exit", "leave (also /bye, /quit, Ctrl-D)", _exit),
    "quit": Command("/exit", "leave (also /bye, /quit, Ctrl-D)", _exit),
}
