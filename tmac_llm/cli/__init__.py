"""The command line `tmac-llm`: one file per verb; the only package that prints or exits.

Knows no arithmetic, no file format and no token: it parses arguments, calls the package and shows results.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tmac_llm.cli import (
    bench,
    bench_accuracy,
    bench_compare,
    bench_kernels,
    bench_threads,
    chat,
    console,
    convert,
    doctor,
    eval,
    generate,
    info,
    list_models,
    rm,
    tune,
)
from tmac_llm.errors import TmacError


class BenchGroup(TyperGroup):
    """`bench` measures a model unless the next word is another of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the name of the command that was left out."""
        return super().parse_args(
            ctx, args if args and args[0] in self.commands.keys() - {"model"} else ["model", *args]
        )


benches = typer.Typer(name="bench", cls=BenchGroup, help="Measure tokens per second, or single kernels.")
benches.command("model")(bench.bench)
benches.command("kernels")(bench_kernels.bench_kernels)
benches.command("accuracy")(bench_accuracy.bench_accuracy)
benches.command("threads")(bench_threads.bench_threads)
benches.command("compare")(bench_compare.bench_compare)

app = typer.Typer(
    name="tmac-llm",
    help="Low-bit language models on an ordinary CPU by table lookup: no dequantisation, no GPU.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.command("convert")(convert.convert)
app.add_typer(benches)
app.command("eval")(eval.evaluate)
app.command("list")(list_models.list_models)
app.command("info")(info.info)
app.command("rm")(rm.rm)
app.command("tune")(tune.tune)
app.command("doctor")(doctor.doctor)


def _show_version(value: bool) -> None:
    if value:
        import tmac_llm

        console.out(f"tmac-llm {tmac_llm.__version__}\n")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Low-bit language models on an ordinary CPU by table lookup: no dequantisation, no GPU."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Every failure is one line on stderr; a traceback only with --debug.
    """
    try:
        console.prepare_streams()
        app(args=arguments, prog_name="tmac-llm")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if console.state.debug:
            traceback.print_exc()
        console.error(_one_line(error))
        console.drop_unwritten()
        sys.exit(error.exit_code if isinstance(error, TmacError) else 1)


def _one_line(error: Exception) -> str:
    if isinstance(error, TmacError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory; a smaller model, fewer bits or a shorter --context needs less"
    return f"internal error: {type(error).__name__}: {error}; --debug shows where"
