"""Charts of `bench`: bars in the terminal, lines in a file. Knows the rows of bench, measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmac_llm.errors import UsageError

Row = dict[str, Any]

_SUFFIXES = (".png", ".svg")
_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bars(rows: list[Row]) -> str:
    """A bar per row, the tests in groups, each scaled to its fastest row."""
    names = [f"{row['model_type']}, {row['n_threads']} threads" for row in rows]
    width = max(len(name) for name in names)
    lines: list[str] = []
    for test in dict.fromkeys(row["test"] for row in rows):
        chosen = [(name, row) for name, row in zip(names, rows, strict=True) if row["test"] == test]
        fastest = max(row["median_ts"] for _, row in chosen)
        lines += ["", f"{test}, tokens/s"]
        lines += [
            f"  {name.ljust(width)} {_bar(row['median_ts'] / fastest)} {row['median_ts']:.2f}"
            for name, row in chosen
        ]
    return "\n".join(lines) + "\n"


def _bar(share: float) -> str:
    whole, eighths = divmod(round(share * _BAR * 8), 8)
    return ("█" * whole + (_EIGHTHS[eighths] if eighths else "")).ljust(_BAR)


def check(path: Path) -> None:
    """Raises UsageError, before the work, for a file that could not be drawn."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--plot {path}: expected a name that ends in .png or .svg")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: no such directory")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib: pip install 'tmac-llm[plot]'; --chart draws in the terminal without it"
        ) from None


def draw(rows: list[Row], path: Path) -> None:
    """Tokens/s against threads, one line per model; with several models also against bits, one line per
    number of threads. A column of axes per test; error bars from the slowest to the fastest repetition."""
    from matplotlib.figure import Figure

    tests = list(dict.fromkeys(row["test"] for row in rows))
    kinds = list(dict.fromkeys(row["model_type"] for row in rows))
    threads = sorted({row["n_threads"] for row in rows})
    n_rows = 2 if len(kinds) > 1 else 1
    figure = Figure(figsize=(4.5 * len(tests), 3.6 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, len(tests), squeeze=False)
    for column, test in enumerate(tests):
        for kind in kinds:
            chosen = [row for row in rows if (row["test"], row["model_type"]) == (test, kind)]
            _line(axes[0, column], [row["n_threads"] for row in chosen], chosen, kind)
        _label(axes[0, column], test, "threads", threads)
        if n_rows == 1:
            continue
        for n in threads:
            chosen = [row for row in rows if (row["test"], row["n_threads"]) == (test, n)]
            _line(axes[1, column], [kinds.index(row["model_type"]) for row in chosen], chosen, f"{n} threads")
        _label(axes[1, column], test, "weights", list(range(len(kinds))))
        axes[1, column].set_xticklabels(kinds)
    figure.suptitle(f"{rows[0]['model_filename']}, {rows[0]['cpu_info']}, {rows[0]['isa']}", fontsize=9)
    figure.savefig(path)


def _line(axes: Any, x: list[int], rows: list[Row], label: str) -> None:
    y = [row["median_ts"] for row in rows]
    below = [row["median_ts"] - row["min_ts"] for row in rows]
    above = [row["max_ts"] - row["median_ts"] for row in rows]
    axes.errorbar(x, y, yerr=(below, above), marker="o", capsize=3, label=label)


def _label(axes: Any, test: str, x: str, ticks: list[int]) -> None:
    axes.set(title=test, xlabel=x, ylabel="tokens/s")
    axes.set_xticks(ticks)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
