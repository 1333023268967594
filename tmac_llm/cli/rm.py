"""The verb `rm`: remove a packed model from the local store.

Knows how to ask; tmac_llm.store removes.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError


def rm(
    name: Annotated[str, typer.Argument(help="The exact name that `tmac-llm list` shows.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Remove a packed model from the local store."""
    from tmac_llm import mapped, store

    entry = store.find(name)
    copies = mapped.copies(entry.path)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"rm {name}: nobody to ask; --yes removes it without a question")
        question = f"Remove {entry.name} ({console.size(entry.n_bytes)})?"
        if not console.confirm(question):
            console.note("nothing removed")
            raise typer.Exit(1)
    freed = sum(copy.stat().st_size for copy in copies)
    for copy in copies:
        mapped.remove(copy)
    console.note(f"removed {entry.name}, {console.size(freed + store.remove(entry.name))} freed")
