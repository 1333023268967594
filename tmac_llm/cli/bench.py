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
    from tmac_llm.bench import BenchResult, BenchTest, WeightFacts
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
        str | None,
        typer.Option(
            "-d",
            "--n-depth",
            show_default="0; with --profile 0,512,2048",
            help="Tokens of context before each test, a list.",
        ),
    ] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Samples of each test.")] = 5,
    threads: opt.ThreadCounts = None,
    output: Annotated[str, typer.Option("-o", "--output", help="md, json, jsonl or csv.")] = "md",
    synthetic: Annotated[
        str | None,
        typer.Option(
            "--synthetic", metavar="SHAPE", help="Random weights at a known model's shapes; no checkpoint."
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", "-b", show_default="2", help="Bits of the synthetic weights, a list."),
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
    cache_type: opt.CacheType = "f32",
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Show where the time of a token goes, instead; with -o md, json or jsonl."
        ),
    ] = False,
    chart: Annotated[bool, typer.Option("--chart", help="Draw the speeds in the terminal, too.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            show_default=False,
            help="Draw tokens/s against threads and bits into FILE.png or FILE.svg (needs matplotlib).",
        ),
    ] = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure tokens per second: pp = prompt processing, tg = token generation.

    Random tokens, no sampling, no text; one full warm-up run of each test is not counted. `bench kernels`
    measures single matrices against the speed of memory, `bench compare A.json B.json` gives the ratios of two
    runs with -o json.
    """
    _check_options(output, profile, model, synthetic, mmap)
    from tmac_llm import bench as measure
    from tmac_llm import machine
    from tmac_llm.cli import bench_plot, bench_profile
    from tmac_llm.load import load_decoder

    depths = n_depth or ("0,512,2048" if profile else "0")
    tests = measure.plan(numbers("-p", n_prompt), numbers("-n", n_gen), numbers("-d", depths))
    counts = numbers("-t", threads) if threads else [machine.default_threads()]
    if min(counts) < 1:
        raise UsageError(f"-t {threads}: expected numbers of at least 1")
    if plot:
        bench_plot.check(plot)
    checked = opt.checked_tables(tables, fast_aggregation)
    rows: list[dict[str, Any]] = []
    for width in numbers("--bits", bits) if bits else [None]:
        name, source, label = _open(model, synthetic, width, group_size, head_bits, mmap)
        decoder = load_decoder(source, tables=checked, mmap=mmap)
        setup = {
            "model_filename": name,
            "model_type": f"{source.config.model_type} {label}",
            "cache_type": opt.checked_cache_type(cache_type),
            "weights_in": _weights_in(decoder, mmap),
        }
        if profile:
            rows += bench_profile.measure(decoder, source, tests, counts, setup)
        else:
            rows += _measure(decoder, tests, counts, repetitions, setup, measure.weight_facts(source))
    if profile:
        console.out(bench_profile.text(rows) if output == "md" else _format(rows, output))
        return
    console.out(_format(rows, output))
    if output == "md":
        console.note(_machine_line(rows))
    if chart:
        console.out(bench_plot.bars(rows))
    if plot:
        bench_plot.draw(rows, plot)


def _check_options(output: str, profile: bool, model: str | None, synthetic: str | None, mmap: bool) -> None:
    if output not in FORMATS:
        raise UsageError(f"-o {output}: expected one of {', '.join(FORMATS)}")
    if profile and output == "csv":
        raise UsageError("-o csv: --profile has parts within parts; take md, json or jsonl")
    if model is not None and synthetic is not None:
        raise UsageError("give a model or --synthetic SHAPE, not both")
    if mmap and synthetic is not None:
        raise UsageError("--mmap needs the files of a packed model; synthetic weights have none")


def _measure(
    decoder: Decoder,
    tests: list[BenchTest],
    threads: list[int],
    repetitions: int,
    setup: dict[str, Any],
    facts: WeightFacts,
) -> list[dict[str, Any]]:
    """The rows of one model."""
    from tmac_llm import bench as measure
    from tmac_llm.energy import EnergyMeter

    with console.progress(unit="runs") as bar:
        task = bar.add_task("warming up", total=None)

        def on_progress(test: str, done: int, total: int) -> None:
            bar.update(task, description=test, completed=done, total=total)

        results = measure.run(
            decoder,
            tests,
            threads=threads,
            repetitions=repetitions,
            cache_type=setup["cache_type"],
            meter=EnergyMeter(),
            on_progress=on_progress,
        )
        return [_row(result, setup, facts) for result in results]


def _machine_line(rows: list[dict[str, Any]]) -> str:
    from tmac_llm import machine

    last = rows[-1]
    runs = f"1 warm-up run and {len(last['samples_ns'])} counted of each test"
    energy = "" if last["joules_per_token"] is not None else " · energy not readable"
    peak = console.size(machine.peak_memory())
    return f"{last['cpu_info']} · {last['isa']} · {last['weights_in']} · {runs} · peak memory {peak}{energy}"


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


def _row(result: BenchResult, setup: dict[str, Any], facts: WeightFacts) -> dict[str, Any]:
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
        **setup,
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
        "min_ts": round(min(result.samples_ts), 3),
        "max_ts": round(max(result.samples_ts), 3),
        "ts_per_core": round(result.median_ts / min(result.n_threads, machine.physical_cores()), 3),
        "first_token_ns": result.first_token_ns,
        "joules_per_token": result.joules_per_token,
        "warmup_ns": result.warmup_ns,
        "samples_ns": result.samples_ns,
        "samples_ts": [round(sample, 3) for sample in result.samples_ts],
        "samples_j": result.samples_j,
        "huge_pages": machine.huge_pages(),
        "huge_page_memory": machine.huge_page_memory(),
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


def _joules(row: dict[str, Any]) -> str:
    return "" if row["joules_per_token"] is None else f"{row['joules_per_token']:.3g}"


def _markdown(rows: list[dict[str, Any]]) -> str:
    header = ["model", "type", "size", "params", "threads", "test", "tokens/s", "median", "ms/token"]
    header += ["min - max", "per core", "first token"]
    with_energy = any(row["joules_per_token"] is not None for row in rows)
    header += ["J/token"] if with_energy else []
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
            f"{row['min_ts']:.2f} - {row['max_ts']:.2f}",
            f"{row['ts_per_core']:.2f}",
            "" if row["first_token_ns"] is None else f"{row['first_token_ns'] / 1e6:.0f} ms",
            *([_joules(row)] if with_energy else []),
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
