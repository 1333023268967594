"""The verb `convert`: a checkpoint becomes a packed model.

Knows how to show a conversion; the work is tmac_llm.convert.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError

if TYPE_CHECKING:
    from tmac_llm.convert import ConvertReport

# Below this share of equal top tokens a conversion has cost most of what the model could do.
_RUINED = 0.6


def convert(
    source: Annotated[
        str, typer.Argument(help="A Hub id such as org/model, a local directory, or a .gguf file.")
    ],
    out: Annotated[
        Path | None, typer.Argument(help="Directory to write. Default: the local store.", show_default=False)
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits",
            "-b",
            envvar="TMAC_BITS",
            show_default="4; BitNet keeps its own",
            help="Bits of a weight: 1, 2, 3, 4, 8, or 16 to keep float.",
        ),
    ] = None,
    group_size: Annotated[
        int,
        typer.Option(
            "--group-size", "-g", envvar="TMAC_GROUP_SIZE", help="Weights that share a scale: 32, 64 or 128."
        ),
    ] = 128,
    head_bits: Annotated[
        int | None,
        typer.Option(
            "--head-bits",
            envvar="TMAC_HEAD_BITS",
            show_default="8",
            help="Bits of embedding and output head: 2 to 8, or 16.",
        ),
    ] = None,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="No zero points: 16 bits less per group, larger error.")
    ] = False,
    file: Annotated[
        str | None,
        typer.Option("--file", help="Which of several GGUF files of the source.", show_default=False),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            envvar="TMAC_METHOD",
            help="How float weights become codes. search: least error of the weights, minutes. gptq: least error of "
            "what the layers put out on the calibration text, hours for large models; better at 2 to 4 bits.",
        ),
    ] = "search",
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            show_default=False,
            help="Text for --method gptq, UTF-8: 100 kB or more like what the model is for; special tokens of the "
            "model in it are read as such.",
        ),
    ] = None,
    calibration_tokens: Annotated[
        int,
        typer.Option(
            "--calibration-tokens", min=1, help="Tokens of it, spread over the file: time grows with them."
        ),
    ] = 32768,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", envvar="TMAC_REVISION", help="Branch, tag or commit of the Hub repository."
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", envvar="HF_TOKEN", help="Access token for gated repositories.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing target; allow bits that ruin the model.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written and stop.")] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            show_default=False,
            help="Then measure, on this text, what the conversion cost (perplexity, KL divergence); `eval` does more.",
        ),
    ] = None,
    threads: opt.Threads = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Convert a checkpoint into a packed model, once and offline."""
    from tmac_llm import kernels
    from tmac_llm.cli.eval import read_text

    if check and dry_run:
        raise UsageError("--check needs a model; leave out --dry-run")
    if check:
        read_text(check, "--check")  # mistakes are told before the work
    if calibration and method != "gptq":
        raise UsageError("--calibration belongs to --method gptq")
    if method == "gptq" and not calibration:
        raise UsageError("--method gptq needs --calibration FILE, a text of 100 kB or more")
    if threads is not None:
        kernels.set_threads(threads)
    report = run_conversion(
        source,
        out,
        bits=bits,
        group_size=group_size,
        head_bits=head_bits,
        symmetric=symmetric,
        file=file,
        method=method,
        calibration=read_text(calibration, "--calibration") if calibration else None,
        calibration_tokens=calibration_tokens,
        revision=revision,
        token=token,
        force=force,
        dry_run=dry_run,
    )
    show_report(report, dry_run=dry_run)
    if check:
        show_price(report, source, check, group_size=group_size, file=file, revision=revision, token=token)
    console.out(f"{report.path}\n")


def show_price(report: ConvertReport, source: str, text: Path, **arguments: object) -> None:
    """What the conversion cost on the first chunks of a text, against a temporary float conversion.

    Linear layers that were kept exactly (BitNet) are so in the reference too.
    """
    from tmac_llm.cli.eval import CHECK_CHUNKS, measure, read_text, scored, summary

    exact = report.is_exact
    bits = None if exact and report.bits < 16 else 16
    with TemporaryDirectory(prefix=f".{report.path.name}.check-", dir=report.path.parent) as directory:
        reference: Path | None = None
        if not exact or report.head_bits < 16:  # otherwise the model is its own reference
            reference = Path(directory) / "reference"
            run_conversion(source, reference, bits=bits, head_bits=16, force=True, **arguments)
        result = measure(report.path, read_text(text, "--check"), reference, at_most=CHECK_CHUNKS)
    rows = [("checked on", f"{text.name}: {scored(result)}"), *summary(result)]
    for name, value in rows:
        console.note(f"{name:<16}{value}")
    against = result.comparison
    if against and against.top1_agreement.value < _RUINED:
        remedy = "take more bits" if report.output else "take more bits, or --method gptq --calibration FILE"
        console.warn(f"most answers will differ from the original model's; {remedy}")


def run_conversion(source: str, out: Path | None = None, **arguments: object) -> ConvertReport:
    """Convert with a progress bar over the bytes of the source."""
    from tmac_llm.convert import convert as run

    with console.progress() as bar:
        task = bar.add_task("reading the source", total=None)

        def on_progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        try:
            return run(source, out, progress=on_progress, **arguments)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            if arguments.get("method") == "gptq":
                console.note("layers that were finished are kept: the same command goes on after them")
            raise


def show_report(report: ConvertReport, *, dry_run: bool) -> None:
    """What was found, what it became, and what that took."""
    rows = [("source", f"{report.format}, {console.size(report.bytes_before)}")]
    rows += [("", text) for text in report.notes]
    smaller = report.bytes_before / max(report.bytes_after, 1)
    packed = f"{console.size(report.bytes_after)}, {report.bits_per_weight:.2f} bits per weight"
    rows += [("packed", f"{packed} ({smaller:.2f}x smaller)")]
    if not dry_run:
        rows += _added_errors(report)
        if report.gain is not None:
            less = f"{report.gain:.1%} less squared error than min-max rounding"
            rows += [("scale search", f"{less}; NMSE {report.nmse:.2e}")]
        if report.output is not None and report.output.gain is not None:
            less = f"{report.output.gain:.1%} less error of what the layers put out"
            rows += [("calibration", f"{less} than by the scale search alone")]
        took = f"{console.duration(report.seconds)}, peak memory {console.size(report.peak_memory)}"
        rows += [("took", took)]
    for name, value in rows:
        console.note(f"{name:<16}{value}")


def _added_errors(report: ConvertReport) -> list[tuple[str, str]]:
    """What codes lost that were not kept exactly: a line for each kind of matrix and bits; config.json has each."""
    kinds: dict[tuple[str, str, int], list[float]] = {}
    for m in report.matrices:
        if m.origin != "float" and m.relative_rms:
            kinds.setdefault((m.origin, m.name.rpartition(".")[2], m.bits), []).append(m.relative_rms)
    return [
        (
            origin,
            f"{name}: {bits} bits in {len(errors)} {'matrices' if errors[1:] else 'matrix'},"
            f" relative RMS error up to {max(errors):.1e}",
        )
        for (origin, name, bits), errors in kinds.items()
    ]
