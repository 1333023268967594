"""What the command line prints and where: the answer on stdout, everything else on stderr.

Knows nothing of models; `state` holds the two switches of the running command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass
class State:
    """Switches of one run: `quiet` silences stderr, `debug` shows tracebacks."""

    quiet: bool = False
    debug: bool = False


state = State()


def prepare_streams() -> None:
    """Make the standard streams fit to use: text comes in as UTF-8, and no answer fails to be shown.

    A closed stream (`<&-`) reads and writes nothing: Python has None for it, and the next file opened would
    take its number. What the locale cannot show becomes a question mark.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (open until the end)
    # An embedding program may have put in something else.
    if isinstance(sys.stdin, TextIOWrapper):  # the locale C would let wrong bytes through as lone surrogates
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def drop_unwritten() -> None:
    """Forget what stdout could not take (a full disk), so that the exit does not fail on it again."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open until the end)


def out(text: str) -> None:
    """Write text to stdout as it is and flush, so that an answer streams."""
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a line to stderr unless quiet."""
    if not state.quiet:
        print(text, file=sys.stderr, flush=True)


def dim(text: str) -> None:
    """Write a line of statistics to stderr, dimmed on a terminal, unless quiet."""
    note(f"\x1b[2m{text}\x1b[0m" if _colour() else text)


def warn(text: str) -> None:
    """Write a warning to stderr unless quiet."""
    note(f"warning: {text}")


def error(text: str) -> None:
    """Write the one line of a failure to stderr, quiet or not; names out of damaged files stay on it."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    print(f"error: {shown}", file=sys.stderr, flush=True)


def confirm(question: str) -> bool:
    """Ask on stderr; yes only for y or yes. Ctrl-C is a KeyboardInterrupt as everywhere, the end of input a no."""
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        print(file=sys.stderr)
    return answer.strip().lower() in ("y", "yes")


def interactive() -> bool:
    """True where both the question and the answer are at a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _colour() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(*, unit: str = "bytes") -> Iterator[Progress]:
    """A progress display on stderr, hidden when quiet or when stderr is no terminal.

    unit: "bytes" shows sizes and speed, "tokens" shows counts.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=24)]
    columns += [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns.append(TimeRemainingColumn())
    display = Console(stderr=True)
    hidden = state.quiet or not sys.stderr.isatty()
    # Seconds over which the speed is averaged: calibration takes minutes per layer, in uneven steps.
    with Progress(
        *columns, console=display, transient=True, disable=hidden, speed_estimate_period=120
    ) as bar:
        yield bar


def size(n_bytes: float) -> str:
    """Bytes for people: 512 B, 3.4 MB, 1.21 GB (powers of ten, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Seconds for people: 0.42 s, 12.3 s, 3 min 05 s."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
