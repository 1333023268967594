"""The verb `bench accuracy`: the error of products, not their speed.

Knows options and the table; tmac_llm.bench_accuracy measures.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError

if TYPE_CHECKING:
    from tmac_llm.bench_accuracy import AccuracyResult


def bench_accuracy(
    shapes: Annotated[
        str, typer.Option("--shapes", help="Matrices to measure, a list of rows x columns.")
    ] = "4096x4096,11008x4096,4096x11008",
    bits: Annotated[
        str, typer.Option("--bits", "-b", help="Widths, a list of 1 to 8; t is ternary with exact tables.")
    ] = "1,2,3,4,t",
    group_size: Annotated[int, typer.Option("--group-size", "-g", help="32, 64 or 128.")] = 128,
    n_tokens: Annotated[int, typer.Option("--n-tokens", "-n", min=1, help="Tokens of each product.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed, the same figures.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure the error of products (NMSE) of Gaussian weights and activations against float64.

    "weights" is the cost of quantising the weights, with "rounding" to the nearest of evenly spaced codes beside it;
    "int8" and "fast" are whole products against unquantised weights, and, as "tables", against the weights as
    stored: the cost of lookup tables alone (at most 1e-4 for int8, by design). Ternary products are exact: what is
    left is float32 rounding.
    """
    from tmac_llm import bench_accuracy as measure
    from tmac_llm.cli.bench_kernels import widths

    if group_size not in (32, 64, 128):
        raise UsageError(f"--group-size {group_size}: expected 32, 64 or 128")
    cases = [(m, k, width) for m, k in _sizes(shapes) for width in widths(bits)]
    if not as_json:
        console.out(_line(HEADER) + _line(("---",) * len(HEADER)))
    for m, k, width in cases:
        row = _row(measure.run(m, k, width, group_size=group_size, n=n_tokens, seed=seed))
        console.out(json.dumps(row) + "\n" if as_json else _line(_cells(row)))


HEADER = ("m x k", "bits", "weights", "rounding", "int8", "int8 tables", "fast", "fast tables", "exact")


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for part in text.split(","):
        rows, _, columns = part.partition("x")
        if not (rows.isdecimal() and columns.isdecimal() and int(rows) > 0 and int(columns) > 0):
            raise UsageError(
                f"--shapes {text}: expected a list of rows x columns such as 4096x4096,11008x4096"
            )
        sizes.append((int(rows), int(columns)))
    return sizes


def _row(result: AccuracyResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "m": result.m,
        "k": result.k,
        "bits": result.bits or "t",
        "group_size": result.group_size,
        "n": result.n,
        "isa": result.isa,
        "weights": result.weights,
        "rounding": result.minmax,
    }
    for tables in ("int8", "fast", "exact"):
        error = result.tables.get(tables)
        row[tables] = error and error.against_float
        row[f"{tables}_tables"] = error and error.against_stored
    return row


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("weights", "rounding", "int8", "int8_tables", "fast", "fast_tables", "exact")
    figures = tuple("-" if row[name] is None else f"{row[name]:.2e}" for name in names)
    return (f"{row['m']} x {row['k']}", str(row["bits"]), *figures)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |\n"
