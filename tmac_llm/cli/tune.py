"""The verb `tune`: measure how matrices are multiplied fastest here, and remember it.

Knows options and the table; tmac_llm.tune measures, tmac_llm.tuning stores.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError

if TYPE_CHECKING:
    from tmac_llm.kernels import MatrixShape, Tables
    from tmac_llm.tune import Found


def tune(
    model: opt.Model = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            "--shapes", help="Known models instead of MODEL, a list such as llama-2-7b,bitnet-2b-4t."
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", "-b", show_default="2,4", help="Widths for --shapes, a list of 1 to 8."),
    ] = None,
    group_size: Annotated[
        int | None, typer.Option("--group-size", "-g", show_default="128", help="Group size for --shapes.")
    ] = None,
    tables: opt.Tables = None,
    reset: Annotated[bool, typer.Option("--reset", help="Forget what was stored for this CPU.")] = False,
    threads: opt.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure how each matrix of a model is multiplied fastest on this machine, and store it for later runs.

    No choice changes a result. The defaults are good; a choice is stored only where it is at least 3 % faster.
    """
    from tmac_llm import kernels, machine, tuning
    from tmac_llm import tune as measure

    if reset:
        if model is not None or shapes is not None:
            raise UsageError("--reset forgets all shapes of this CPU; give neither MODEL nor --shapes")
        console.note(
            f"removed {tuning.path()}" if tuning.reset() else f"nothing is stored in {tuning.path()}"
        )
        return
    if threads is not None:
        kernels.set_threads(threads)
    found_shapes = _shapes(model, shapes, bits, group_size, tables)
    if not as_json:
        console.out(f"{machine.cpu_name()}, {kernels.isa_selected()}, {kernels.n_threads()} threads\n")
        console.out(_line(HEADER))
    choices = {}
    for found in measure.run(found_shapes):
        choices[tuning.key(found.shape, found.tables)] = found.tuning
        console.out(json.dumps(_row(found)) + "\n" if as_json else _line(_cells(found)))
    largest = max(found_shapes, key=lambda pair: pair[0].packed_size)
    if not as_json:
        speeds = measure.thread_speeds(*largest)
        shown = ", ".join(f"{n}: {speed / 1e9:.1f} GB/s" for n, speed in speeds.items())
        console.out(f"one token at a time by threads, {tuning.key(*largest)}: {shown}\n")
    console.note(f"stored in {tuning.save(choices)}; `tmac-llm tune --reset` forgets it")


HEADER = ("matrix", "decode us", "tuned", "by", "prefill us", "tuned", "by", "prefetch", "panel")
_WIDTHS = (28, 10, 9, 5, 10, 9, 5, 8, 7)


def _shapes(
    model: str | None, shapes: str | None, bits: str | None, group_size: int | None, tables: str | None
) -> list[tuple[MatrixShape, Tables]]:
    from tmac_llm import tune as measure
    from tmac_llm.cli.bench import numbers
    from tmac_llm.cli.model_argument import packed_path
    from tmac_llm.packed.container import PackedModel
    from tmac_llm.synthetic import synthetic_model

    checked = opt.checked_tables(tables)
    if shapes is None:
        for option, value in (("--bits", bits), ("--group-size", group_size)):
            if value is not None:
                raise UsageError(f"{option} belongs to --shapes; a packed model has its own")
        return measure.shapes_of(PackedModel.open(packed_path(model)), checked)
    if model is not None:
        raise UsageError("give a model or --shapes, not both")
    found: dict[tuple[MatrixShape, Tables], None] = {}
    for name in shapes.split(","):
        ternary = synthetic_model(name).config.int8_activations
        for width in [2] if ternary else numbers("--bits", bits or "2,4"):
            source = synthetic_model(name, bits=width, group_size=group_size or 128)
            found |= dict.fromkeys(measure.shapes_of(source, checked if ternary else None))
    return list(found)


def _row(found: Found) -> dict[str, Any]:
    from tmac_llm import tuning

    return {
        "matrix": tuning.key(found.shape, found.tables),
        "decode_seconds": found.decode[0],
        "decode_seconds_tuned": found.decode[1],
        "prefill_seconds": found.prefill[0],
        "prefill_seconds_tuned": found.prefill[1],
        **found.tuning._asdict(),
    }


def _cells(found: Found) -> tuple[str, ...]:
    row = _row(found)
    cells = [row["matrix"]]
    for default, tuned in (found.decode, found.prefill):
        cells += [f"{default * 1e6:.0f}", f"{tuned * 1e6:.0f}", f"{default / tuned - 1:.0%}"]
    choice = found.tuning
    prefetch = (
        "off" if choice.prefetch < 0 else console.size(choice.prefetch) if choice.prefetch else "default"
    )
    return (*cells, prefetch, console.size(choice.panel_bytes) if choice.panel_bytes else "default")


def _line(cells: tuple[str, ...]) -> str:
    right = (cell.rjust(width) for cell, width in zip(cells[1:], _WIDTHS[1:], strict=True))
    return "  ".join((cells[0].ljust(_WIDTHS[0]), *right)) + "\n"
