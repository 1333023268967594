"""The verb `bench`: tokens per second of prefill and decode, in llama-bench's terms.

Knows options and output formats; tmac_llm.bench measures.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError

if TYPE_CHECKING:
    from tmac_llm.bench import BenchResult, WeightFacts
    from tmac_llm.load import Source
    from tmac_llm.model.decoder import Decoder

FORMATS = ("md", "json", "jsonl", "csv")


def bench(
    model: opt.Model = None,
    n_prompt: Annotated[
        str, typer.Option("-p", "--n-prompt", help="Prompt lengths, a list such as 128,512.")
    ] = "512",
    n_gen: Annotated[str, typer.Option("-n", "--n-gen", help="Answer lengths, a list.")] = "128",
    n_depth: Annotated[
        str, typer.Option("-d", "--n-depth", help="Tokens of context before each test, a list.")
    ] = "0",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Samples of each test.")] = 5,
    threads: Annotated[
        str | None,
        typer.Option(
            "-t",
            "--threads",
            envvar="TMAC_THREADS",
            show_default="physical cores that this process may use",
            help="Thread counts, a list such as 1,2,4.",
        ),
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="md, json, jsonl or csv.")] = "md",
    synthetic: Annotated[
        str | None,
        typer.Option(
            "--synthetic", metavar="SHAPE", help="Random weights at a known model's shapes; no checkpoint."
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", "-b", show_default="2", help="Bits of the synthetic weights.")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option("--group-size", "-g", show_default="128", help="Group size of the synthetic weights."),
    ] = None,
    head_bits: Annotated[
        int | None,
        typer.Option("--head-bits", show_default="8", help="Bits of the synthetic embedding and head."),
    ] = None,
    tables: opt.Tables = None,
    fast_aggregation: opt.FastAggregation = False,
    mmap: opt.Mmap = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure tokens per second: pp = prompt processing, tg = token generation.

    Random tokens, no sampling, no text; one full warm-up run of each test is not counted. `bench kernels`
    measures single matrices against the speed of memory.
    """
    if output not in FORMATS:
        raise UsageError(f"-o {output}: expected one of {', '.join(FORMATS)}")
    if model is not None and synthetic is not None:
        raise UsageError("give a model or --synthetic SHAPE, not both")
    if mmap and synthetic is not None:
        raise UsageError("--mmap needs the files of a packed model; synthetic weights have none")
    from tmac_llm import bench as measure
    from tmac_llm import kernels, machine
    from tmac_llm.load import load_decoder

    tests = measure.plan(numbers("-p", n_prompt), numbers("-n", n_gen), numbers("-d", n_depth))
    counts = numbers("-t", threads) if threads else [machine.default_threads()]
    if min(counts) < 1:
        raise UsageError(f"-t {threads}: expected numbers of at least 1")
    name, source, label = _open(model, synthetic, bits, group_size, head_bits, mmap)
    checked = opt.checked_tables(tables, fast_aggregation)
    decoder = load_decoder(source, tables=checked, mmap=mmap)
    facts = measure.weight_facts(source)
    with console.progress(unit="runs") as bar:
        task = bar.add_task("warming up", total=None)

        def on_progress(test: str, done: int, total: int) -> None:
            bar.update(task, description=test, completed=done, total=total)

        results = list(
            measure.run(decoder, tests, threads=counts, repetitions=repetitions, on_progress=on_progress)
        )
    model_type = f"{source.config.model_type} {label}"
    rows = [_row(result, name, model_type, facts) for result in results]
    console.out(_format(rows, output))
    if output == "md":
        peak = console.size(machine.peak_memory())
        weights = _weights_in(decoder, mmap)
        console.note(f"{machine.cpu_name()} · {kernels.isa_selected()} · {weights} · peak memory {peak}")


def numbers(option: str, text: str) -> list[int]:
    """The whole numbers of a list option such as 128,512; UsageError for anything else."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: expected a list of whole numbers such as 128,512") from None
    if min(found) < 0:
        raise UsageError(f"{option} {text}: expected numbers of at least 0")
    return found


def _open(
    model: str | None,
    synthetic: str | None,
    bits: int | None,
    group_size: int | None,
    head_bits: int | None,
    mmap: bool,
) -> tuple[str, Source, str]:
    if synthetic is None:
        from tmac_llm.cli.model_argument import packed_path, prepare_mmap
        from tmac_llm.packed.container import PackedModel

        given = {"--bits": bits, "--group-size": group_size, "--head-bits": head_bits}
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} belongs to --synthetic; a packed model has its own")
        path = packed_path(model)
        if mmap:
            prepare_mmap(path)
        packed = PackedModel.open(path)
        return path.name, packed, f"{packed.bits_per_weight:.2f} bpw"
    from tmac_llm.synthetic import synthetic_model

    made = synthetic_model(
        synthetic,
        bits=bits,
        group_size=128 if group_size is None else group_size,
        head_bits=8 if head_bits is None else head_bits,
    )
    return f"{synthetic} (random)", made, made.label


def _row(result: BenchResult, name: str, model_type: str, facts: WeightFacts) -> dict[str, Any]:
    """One test in llama-bench's field names, plus what it does not have."""
    import time

    import tmac_llm
    from tmac_llm import kernels, machine

    average_ns = sum(result.samples_ns) / len(result.samples_ns)
    return {
        "build_commit": tmac_llm.__version__,
        "cpu_info": machine.cpu_name(),
        "backends": "tmac",
        "isa": kernels.isa_selected(),
        "model_filename": name,
        "model_type": model_type,
        "model_size": facts.n_bytes,
        "model_n_params": facts.n_params,
        "n_threads": result.n_threads,
        "n_prompt": result.test.n_prompt,
        "n_gen": result.test.n_gen,
        "n_depth": result.test.n_depth,
        "test": result.test.name,
        "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "avg_ns": round(average_ns),
        "stddev_ns": round(result.stddev_ts / result.avg_ts * average_ns),
        "avg_ts": round(result.avg_ts, 3),
        "stddev_ts": round(result.stddev_ts, 3),
        "median_ts": round(result.median_ts, 3),
        "samples_ns": result.samples_ns,
        "samples_ts": [round(sample, 3) for sample in result.samples_ts],
        "peak_memory": machine.peak_memory(),
        **_bandwidth(result, facts),
    }


def _weights_in(decoder: Decoder, mmap: bool) -> str:
    """What kind of memory the packed weights lie in; `doctor` says why not another."""
    n_bytes = sum(matrix.n_bytes for matrix in decoder.matrices)
    huge = sum(matrix.huge_bytes for matrix in decoder.matrices)
    kind = "mapped from files" if mmap else "in huge pages" if huge > 0.9 * n_bytes else "in ordinary pages"
    return f"{console.size(n_bytes)} of weights {kind}"


def _bandwidth(result: BenchResult, facts: WeightFacts) -> dict[str, Any]:
    """What decoding reads, and how fast a plain read of the same weights is; None for prompts."""
    found = result.bandwidth(facts.n_bytes) or (None, None, None)
    gb_per_s, read_gb_per_s = (None if rate is None else round(rate / 1e9, 3) for rate in found[:2])
    return {
        "bytes_per_token": facts.n_bytes if found[0] else None,
        "gb_per_s": gb_per_s,
        "read_gb_per_s": read_gb_per_s,
        "share_of_read": None if found[2] is None else round(found[2], 4),
    }


def _format(rows: list[dict[str, Any]], output: str) -> str:
    if output == "json":
        return json.dumps(rows, indent=2) + "\n"
    if output == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if output == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    return _markdown(rows)


def _bandwidth_cells(row: dict[str, Any]) -> list[str]:
    if row["share_of_read"] is None:
        return ["", "", ""]
    share = f"{row['share_of_read']:.0%} of {row['read_gb_per_s']:.1f}"
    return [f"{row['bytes_per_token'] / 1e9:.3g}", f"{row['gb_per_s']:.1f}", share]


def _markdown(rows: list[dict[str, Any]]) -> str:
    header = ["model", "type", "size", "params", "threads", "test", "tokens/s", "median", "ms/token"]
    header += ["GB/token", "GB/s", "of read"]
    cells = [
        [
            Path(row["model_filename"]).name,
            row["model_type"],
            console.size(row["model_size"]),
            f"{row['model_n_params'] / 1e6:.1f} M"
            if row["model_n_params"] < 1e9
            else f"{row['model_n_params'] / 1e9:.2f} G",
            str(row["n_threads"]),
            row["test"],
            f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
            f"{row['median_ts']:.2f}",
            f"{1000 / row['median_ts']:.2f}",
            *_bandwidth_cells(row),
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *cells]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )
