"""The table of `bench --profile`: where the time of a token goes; tmac_llm.profiling measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tmac_llm.cli import console

if TYPE_CHECKING:
    from tmac_llm.bench import BenchTest
    from tmac_llm.load import Source
    from tmac_llm.model.decoder import Decoder
    from tmac_llm.profiling import Profile


def measure(
    decoder: Decoder, source: Source, tests: list[BenchTest], threads: list[int], setup: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows of one model; depths beyond its context are left out, with a note."""
    from tmac_llm import kernels, profiling

    limit = decoder.config.max_position_embeddings
    fitting = [test for test in tests if test.n_depth + test.n_tokens <= limit]
    for test in tests:
        if test not in fitting:
            console.note(f"{test.name} left out: the context has {limit} tokens")
    before, rows = kernels.n_threads(), []
    try:
        with console.progress(unit="tests") as bar:
            task = bar.add_task("profile", total=None)

            def on_progress(test: str, done: int, total: int) -> None:
                bar.update(task, description=test, completed=done, total=total)

            for n in threads:
                kernels.set_threads(n)
                profiles = profiling.run(
                    decoder, source, fitting, cache_type=setup["cache_type"], on_progress=on_progress
                )
                rows += [_row(profile, setup) for profile in profiles]
    finally:
        kernels.set_threads(before)
    return rows


def _row(profile: Profile, setup: dict[str, Any]) -> dict[str, Any]:
    from tmac_llm import kernels, machine

    test = profile.test
    return {
        "cpu_info": machine.cpu_name(),
        "isa": kernels.isa_selected(),
        **setup,
        "n_threads": profile.n_threads,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "test": test.name,
        "tokens_per_pass": profile.n_tokens,
        "pass_ns": round(profile.total_ns),
        "parts_ns": {name: round(ns) for name, ns in profile.parts_ns.items()},
        "tables_ns": None if profile.tables_ns is None else round(profile.tables_ns),
        "outside_share": round(profile.outside_share, 4),
        "outside_layer_us": round(profile.outside_layer_us, 1),
    }


def text(rows: list[dict[str, Any]]) -> str:
    """A table for each model and number of threads: parts below each other, tests side by side."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model_filename"], row["model_type"], row["n_threads"]), []).append(row)
    return "\n".join(_table(*key, group) for key, group in groups.items())


def _table(name: str, kind: str, threads: int, rows: list[dict[str, Any]]) -> str:
    lines = [["us per token", *(row["test"] for row in rows)]]
    lines += [[part, *(_cell(row, row["parts_ns"][part]) for row in rows)] for part in rows[0]["parts_ns"]]
    lines.append(["total", *(f"{_us(row, row['pass_ns']):.1f}      " for row in rows)])
    if rows[0]["tables_ns"] is not None:
        lines.append(["tables, part of the linears", *(_cell(row, row["tables_ns"]) for row in rows)])
    lines.append(["outside the linears", *(f"{100 * row['outside_share']:.0f} %" for row in rows)])
    lines.append(["  us per layer and pass", *(f"{row['outside_layer_us']:.1f}      " for row in rows)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(rows) + 1)]
    lines.insert(1, ["-" * width for width in widths])
    shown = [
        "| "
        + " | ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    return f"{name}, {kind}, {threads} threads\n\n" + "".join(f"{line} |\n" for line in shown)


def _us(row: dict[str, Any], ns: float) -> float:
    return float(ns / row["tokens_per_pass"] / 1e3)


def _cell(row: dict[str, Any], ns: float) -> str:
    return f"{_us(row, ns):.1f} {100 * ns / row['pass_ns']:3.0f} %"
