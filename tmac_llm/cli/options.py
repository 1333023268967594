"""Options that several verbs share, each with its environment variable.

Knows the names and help texts only; verbs decide what the values do.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from tmac_llm.cli import console
from tmac_llm.errors import UsageError


def _quiet(value: bool) -> bool:
    console.state.quiet = value
    return value


def _debug(value: bool) -> bool:
    console.state.debug = value
    return value


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A packed directory, a name from `tmac-llm list`, or a source (Hub id, directory or .gguf file) that "
        "is converted on first use. Default: the storyteller that comes with tmac-llm.",
        envvar="TMAC_MODEL",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.", callback=_quiet)]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show tracebacks.", envvar="TMAC_DEBUG", callback=_debug, is_eager=True),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        min=1,
        max=256,
        envvar="TMAC_THREADS",
        show_default="physical cores that this process may use",
        help="Threads of the lookup kernels.",
    ),
]
Mmap = Annotated[
    bool,
    typer.Option(
        "--mmap/--no-mmap",
        envvar="TMAC_MMAP",
        help="Multiply from mapped files that processes share, instead of from huge pages: less memory, slower.",
    ),
]
Tables = Annotated[
    str | None,
    typer.Option(
        "--tables",
        envvar="TMAC_TABLES",
        show_default="exact for BitNet, else int8",
        help="exact: lossless tables of int8 activations; int8: rounded tables. BitNet weights are always exact.",
    ),
]
FastAggregation = Annotated[
    bool,
    typer.Option(
        "--fast-aggregation",
        envvar="TMAC_FAST_AGGREGATION",
        help="Average table entries instead of adding them: a little faster and less exact (AVX2, NEON).",
    ),
]
ThreadCounts = Annotated[
    str | None,
    typer.Option(
        "-t",
        "--threads",
        envvar="TMAC_THREADS",
        show_default="physical cores that this process may use",
        help="Thread counts, a list such as 1,2,4.",
    ),
]
CacheType = Annotated[
    str,
    typer.Option(
        "--cache-type",
        envvar="TMAC_CACHE_TYPE",
        help="Keys and values of the context: f32, or int8 for a quarter of the memory.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        "-c",
        min=2,
        envvar="TMAC_CONTEXT",
        show_default="the model's",
        help="Longest prompt plus answer, in tokens.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", min=0.0, envvar="TMAC_TEMPERATURE", show_default="the model's", help="0 is greedy."
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", min=0, envvar="TMAC_TOP_K", show_default="the model's", help="0 keeps every token."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", min=0.0, max=1.0, envvar="TMAC_TOP_P", show_default="the model's", help="1 is off."
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", min=0.0, max=1.0, envvar="TMAC_MIN_P", show_default="the model's", help="0 is off."
    ),
]
RepeatPenalty = Annotated[
    float | None,
    typer.Option(
        "--repeat-penalty",
        min=0.01,
        envvar="TMAC_REPEAT_PENALTY",
        show_default="the model's",
        help="1 is off.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, envvar="TMAC_SEED", show_default="random, printed", help="Same seed, same text."
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", help="End the answer before this text; may be given several times.", show_default=False
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-n",
        min=1,
        envvar="TMAC_MAX_TOKENS",
        show_default="to the end",
        help="Longest answer.",
    ),
]


def checked_tables(
    tables: str | None, fast_aggregation: bool = False
) -> Literal["int8", "exact", "fast"] | None:
    """What --tables and --fast-aggregation mean together, or a UsageError."""
    if tables not in (None, "int8", "exact"):
        raise UsageError(f"--tables {tables}: expected int8 or exact")
    if fast_aggregation and tables == "exact":
        raise UsageError("--fast-aggregation and --tables exact: give one of them")
    return "fast" if fast_aggregation else cast('Literal["int8", "exact"] | None', tables)


def checked_cache_type(cache_type: str) -> Literal["f32", "int8"]:
    """The value of --cache-type, or a UsageError."""
    if cache_type not in ("f32", "int8"):
        raise UsageError(f"--cache-type {cache_type}: expected f32 or int8")
    return cast('Literal["f32", "int8"]', cache_type)
