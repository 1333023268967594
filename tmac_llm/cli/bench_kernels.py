"""The verb `bench kernels`: single matrices against the machine's ceiling.

Knows options and the table; tmac_llm.bench_kernels measures.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError

if TYPE_CHECKING:
    from tmac_llm.bench_kernels import KernelResult


def bench_kernels(
    shapes: Annotated[
        str, typer.Option("--shapes", help="Known models whose matrices are measured, a list.")
    ] = "llama-2-7b,bitnet-2b-4t",
    bits: Annotated[
        str, typer.Option("--bits", "-b", help="Widths, a list of 1 to 8; t is ternary with exact tables.")
    ] = "1,2,3,4,t",
    group_size: Annotated[int, typer.Option("--group-size", "-g", help="32, 64 or 128.")] = 128,
    n_tokens: Annotated[str, typer.Option("-n", "--n-tokens", help="Tokens at once, a list.")] = "1,8,64,256",
    threads: opt.ThreadCounts = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="One token: repeat one matrix instead of streaming through many.")
    ] = False,
    tables: opt.Tables = None,
    fast_aggregation: opt.FastAggregation = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure matrix products: time, GB/s of weights, GMAC/s, and the share of what this machine can do.

    Every product is checked against float64 first. One token streams through copies of a matrix that no cache
    holds, as decoding streams through layers. The ceiling is the slower of the best plain read of the same memory
    (read, GB/s) and of the same kernel inside the caches of each core (cache, GMAC/s). TMAC_ISA measures another
    instruction set.
    """
    from tmac_llm import bench_kernels as measure
    from tmac_llm import kernels, machine
    from tmac_llm.cli.bench import numbers

    if group_size not in (32, 64, 128):
        raise UsageError(f"--group-size {group_size}: expected 32, 64 or 128")
    counts = numbers("-t", threads) if threads else [machine.default_threads()]
    found = measure.cases(
        shapes.split(","),
        widths(bits),
        numbers("-n", n_tokens),
        group_size,
        opt.checked_tables(tables, fast_aggregation),
    )
    if min(counts) < 1 or min(case.n for case in found) < 1:
        raise UsageError("-t and -n: expected numbers of at least 1")
    if not as_json:
        console.out(f"{machine.cpu_name()}, {kernels.isa_selected()}, huge pages: {machine.huge_pages()}\n")
        console.out(_line(HEADER))
    for case in found:
        for result in measure.run(case, threads=counts, from_memory=not cache):
            row = _row(result)
            console.out(json.dumps(row) + "\n" if as_json else _line(_cells(row)))


HEADER = (
    "model",
    "matrix",
    "m",
    "k",
    "bits",
    "n",
    "thr",
    "us",
    "GB/s",
    "read",
    "GMAC/s",
    "cache",
    "share of",
    "error",
)
_WIDTHS = (14, 12, 6, 6, 4, 4, 3, 9, 6, 6, 7, 7, 11, 8)


def widths(text: str) -> list[int | None]:
    """The value of --bits: None for t, ternary; UsageError for anything else."""
    found: list[int | None] = []
    for part in text.split(","):
        if part != "t" and not (part.isdecimal() and 1 <= int(part) <= 8):
            raise UsageError(f"--bits {text}: expected a list of 1 to 8, or t for ternary")
        found.append(None if part == "t" else int(part))
    return found


def _row(result: KernelResult) -> dict[str, Any]:
    case = result.case
    return {
        "model": case.model,
        "matrix": case.matrix,
        "m": case.m,
        "k": case.k,
        "bits": case.bits or "t",
        "group_size": case.shape.group_size,
        "tables": case.tables,
        "n": case.n,
        "isa": result.isa,
        "n_threads": result.n_threads,
        "from_memory": result.from_memory,
        "seconds": result.seconds,
        "gb_per_s": result.gigabytes_per_second,
        "gmac_per_s": result.gmacs,
        "read_gb_per_s": result.n_bytes / result.read_seconds / 1e9,
        "cache_gmac_per_s": result.gmacs * result.seconds / result.cache_seconds,
        "ceiling": result.ceiling,
        "share": result.share,
        "relative_rms_error": result.error,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (
        f"{row['seconds'] * 1e6:.1f}",
        f"{row['gb_per_s']:.1f}",
        f"{row['read_gb_per_s']:.1f}",
        f"{row['gmac_per_s']:.1f}",
        f"{row['cache_gmac_per_s']:.1f}",
        f"{row['share']:.0%} {row['ceiling']}",
    )
    sizes = tuple(str(row[key]) for key in ("model", "matrix", "m", "k", "bits", "n", "n_threads"))
    return (*sizes, *numbers, f"{row['relative_rms_error']:.1e}")


def _line(cells: tuple[str, ...]) -> str:
    left = (cell.ljust(width) for cell, width in zip(cells[:2], _WIDTHS[:2], strict=True))
    right = (cell.rjust(width) for cell, width in zip(cells[2:], _WIDTHS[2:], strict=True))
    return "  ".join((*left, *right)) + "\n"
