"""The verb `generate`: one prompt in, one answer on stdout.

Knows how prompts reach a command line (argument, file, pipe); the rest is the Python API.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.cli.chat import read_text
from tmac_llm.errors import UsageError

if TYPE_CHECKING:
    from tmac_llm.llm import LLM, Completion, Stream


def generate(
    model: opt.Model = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="The prompt; @FILE reads a file, - or nothing reads stdin."),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--system", "-s", envvar="TMAC_SYSTEM", help="System prompt; @FILE reads it from a file."
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text itself, without the chat template.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object with text, usage, timings and finish reason."),
    ] = False,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    repeat_penalty: opt.RepeatPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    context: opt.Context = None,
    cache_type: opt.CacheType = "f32",
    tables: opt.Tables = None,
    fast_aggregation: opt.FastAggregation = False,
    mmap: opt.Mmap = False,
    threads: opt.Threads = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Answer one prompt: the text on stdout, statistics on stderr.

    A prompt on stdin is put before that of --prompt: `cat notes.txt | tmac-llm generate -p "Summarise."`.
    """
    from tmac_llm.cli.chat_session import statistics_line
    from tmac_llm.cli.model_argument import open_model

    text, system_text = _prompt(prompt), read_text(system)
    if raw and system_text:
        raise UsageError("--system needs the chat template; leave out --raw, or put the text into the prompt")
    sampling = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "stop": stop,
    }
    checked, cache = opt.checked_tables(tables, fast_aggregation), opt.checked_cache_type(cache_type)
    with open_model(
        model, threads=threads, tables=checked, context=context, cache_type=cache, mmap=mmap
    ) as llm:
        given = {name: value for name, value in sampling.items() if value is not None}
        stream = _start(llm, text, system_text, raw, given)
        for piece in stream:
            if not as_json:
                console.out(piece)
        result = stream.result
    if as_json:
        console.out(json.dumps(_record(result), ensure_ascii=False) + "\n")
    else:
        console.out("" if result.text.endswith("\n") else "\n")
    console.dim(statistics_line(result))


def _prompt(prompt: str | None) -> str:
    piped = "" if sys.stdin.isatty() or (prompt not in (None, "-") and not _has_input()) else _read_stdin()
    given = "" if prompt in (None, "-") else read_text(prompt) or ""
    text = f"{piped}\n\n{given}" if piped and given else piped or given
    if not text:
        raise UsageError("no prompt: give one with --prompt TEXT, --prompt @FILE or on stdin")
    return text


def _has_input() -> bool:
    """True where stdin is a file or a pipe with something in it, so that a bare script does not hang."""
    import os
    import select
    import stat

    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    if stat.S_ISREG(mode):
        return True
    return stat.S_ISFIFO(mode) and bool(select.select([sys.stdin], [], [], 0.05)[0])


def _read_stdin() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: expected UTF-8 text: {error}") from error


def _start(llm: LLM, text: str, system: str | None, raw: bool, sampling: dict[str, Any]) -> Stream:
    if not system:
        return llm.stream(text, raw=raw, **sampling)
    return llm.chat_stream(
        [{"role": "system", "content": system}, {"role": "user", "content": text}], **sampling
    )


def _record(result: Completion) -> dict[str, Any]:
    record = asdict(result)
    record["usage"] = {
        "prompt_tokens": result.n_prompt,
        "completion_tokens": result.n_generated,
        "total_tokens": result.n_prompt + result.n_generated,
    }
    return record
