"""The verb `bench threads`: what threads bring and cost.

Knows options and the table; tmac_llm.bench_threads measures.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError


def bench_threads(
    threads: opt.ThreadCounts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure the thread pool: a product of 64 tokens in the cache against one thread, the cost of starting and ending
    a job beyond its work, and the CPU time of an idle process after a product."""
    from tmac_llm import bench_threads as measure
    from tmac_llm import machine
    from tmac_llm.cli.bench import numbers

    counts = numbers("-t", threads) if threads else [machine.default_threads()]
    if min(counts) < 1:
        raise UsageError(f"-t {threads}: expected numbers of at least 1")
    if not as_json:
        console.out("threads  speed-up  fork and join, us  idle CPU, ms of ms\n")
    for count in counts:
        result = measure.run(count)
        if as_json:
            console.out(json.dumps(asdict(result)) + "\n")
        else:
            idle = f"{result.idle_seconds * 1e3:.2f} of {result.rest * 1e3:.0f}"
            console.out(f"{count:>7}{result.speedup:>9.2f}x{result.fork_seconds * 1e6:>19.2f}{idle:>20}\n")
