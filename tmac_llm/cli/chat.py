"""The verb `chat`: a conversation with a model, at a terminal or from a script.

Knows how a chat begins and ends; the turns are in chat_session.py, the commands in chat_commands.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import TmacError, UsageError

if TYPE_CHECKING:
    from tmac_llm.cli.chat_session import ChatSession
    from tmac_llm.llm import LLM


def chat(
    model: opt.Model = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--system", "-s", envvar="TMAC_SYSTEM", help="System prompt; @FILE reads it from a file."
        ),
    ] = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    repeat_penalty: opt.RepeatPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats/--no-stats", envvar="TMAC_STATS", help="A line of statistics after each answer."
        ),
    ] = True,
    context: opt.Context = None,
    cache_type: opt.CacheType = "f32",
    tables: opt.Tables = None,
    fast_aggregation: opt.FastAggregation = False,
    mmap: opt.Mmap = False,
    threads: opt.Threads = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Talk to a model.

    At a terminal: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves. Otherwise each line of
    stdin is one message, answers go to stdout and everything else to stderr.
    """
    from tmac_llm.cli.chat_session import ChatSession
    from tmac_llm.cli.model_argument import open_model

    system_text = read_text(system)  # a mistake is told before the work
    checked, cache = opt.checked_tables(tables, fast_aggregation), opt.checked_cache_type(cache_type)
    with open_model(
        model, threads=threads, tables=checked, context=context, cache_type=cache, mmap=mmap
    ) as llm:
        session = ChatSession(llm, system=system_text, show_stats=stats)
        session.set_sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
            stop=stop,
        )
        if console.interactive():
            _greet(llm, is_default=model is None)
            _talk(session)
        else:
            _read_script(session)


def read_text(text: str | None) -> str | None:
    """The text itself, or the content of the file that an argument `@FILE` names."""
    if text is None or not text.startswith("@"):
        return text
    try:
        with open(text[1:], encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{text}: cannot read the file: {error}") from error


def _greet(llm: LLM, *, is_default: bool) -> None:
    from tmac_llm import kernels

    name = "storyteller" if is_default else llm.path.name
    console.dim(
        f"{name} · context {llm.context_length} tokens · {kernels.isa_selected()}, {kernels.n_threads()} threads · "
        "/help lists the commands, Ctrl-D leaves"
    )
    if is_default:
        console.note(
            "It tells small stories. Try: Tell me a story about a brave frog named Lily and a red ball."
        )


def _talk(session: ChatSession) -> None:
    from tmac_llm.cli.chat_commands import run_command
    from tmac_llm.cli.chat_input import TerminalInput

    for text in TerminalInput():
        try:
            if text.startswith("/") and not text.startswith("//"):
                if run_command(session, text) == "exit":
                    return
            else:
                session.ask(text.removeprefix("/") if text.startswith("//") else text)
        except TmacError as error:
            console.error(str(error))


def _read_script(session: ChatSession) -> None:
    from tmac_llm.cli.chat_commands import run_command
    from tmac_llm.cli.chat_input import piped_messages

    for text in piped_messages():
        if text.startswith("/") and not text.startswith("//"):
            if run_command(session, text) == "exit":
                return
        else:
            session.ask(text.removeprefix("/") if text.startswith("//") else text)
