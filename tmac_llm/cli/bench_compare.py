"""The verb `bench compare`: ratios of two runs that `bench -o json` wrote; tmac_llm.bench_compare computes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError

if TYPE_CHECKING:
    from tmac_llm.bench_compare import Ratio

_FIELDS = (
    "test",
    "n_threads",
    "model_filename",
    "model_type",
    "model_n_params",
    "samples_ts",
    "cpu_info",
    "isa",
)


def bench_compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="What `bench -o json` (or jsonl) wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another run of the same tests and model.")],
    as_json: Annotated[bool, typer.Option("--json", help="The ratios as JSON.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Ratio B / A of tokens per second for each test, with its 95 % confidence interval.

    The interval is Welch's t on the logarithms of the repetitions (-r 2 or more); an interval without 1 means a
    difference. Machine drift between the runs is not in it: take turns, A B A B, where that matters.
    """
    from tmac_llm.bench_compare import compare

    rows_a, rows_b = read_rows(a), read_rows(b)
    for field in ("cpu_info", "isa"):
        values = [", ".join(sorted({str(row[field]) for row in rows})) for rows in (rows_a, rows_b)]
        if values[0] != values[1]:
            console.warn(f"{field} differs: {values[0]} and {values[1]}")
    ratios = compare(rows_a, rows_b, (str(a), str(b)))
    if as_json:
        console.out(json.dumps([asdict(ratio) for ratio in ratios], indent=2) + "\n")
    else:
        console.out(_table(ratios))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of `bench -o json` or jsonl. Raises UsageError for any other file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not text; expected what `bench -o json` wrote") from None
    try:
        rows = (
            json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines()]
        )
    except (json.JSONDecodeError, RecursionError):
        raise UsageError(f"{path}: not JSON; expected what `bench -o json` wrote") from None
    if not rows:
        raise UsageError(f"{path}: no tests in it")
    for row in rows:
        _check_row(path, row)
    return rows


def _check_row(path: Path, row: Any) -> None:
    missing = [field for field in _FIELDS if not isinstance(row, dict) or field not in row]
    if missing:
        raise UsageError(f"{path}: not a run of `bench`: {', '.join(missing)} missing; write it with -o json")
    samples = row["samples_ts"]
    numbers = isinstance(samples, list) and samples and all(type(x) in (int, float) for x in samples)
    if not numbers or not all(0 < x < 1e12 for x in samples):
        raise UsageError(f"{path}: {row['test']}: samples_ts: expected tokens per second above 0")


def _table(ratios: list[Ratio]) -> str:
    lines = [["test", "threads", "A tokens/s", "B tokens/s", "B / A", "95 % interval"]]
    lines += [
        [
            ratio.test,
            str(ratio.n_threads),
            f"{ratio.a_ts:.2f}",
            f"{ratio.b_ts:.2f}",
            f"{ratio.ratio:.3f}",
            "one repetition" if ratio.low is None else f"{ratio.low:.3f} - {ratio.high:.3f}",
        ]
        for ratio in ratios
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )
