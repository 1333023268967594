"""The verb `bench accuracy`, and where --fast-aggregation is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tmac_llm import kernels

SMALL = ("bench", "accuracy", "--shapes", "64x256,100x128")


def test_json_and_table_tell_the_same(run) -> None:
    done = run(*SMALL, "--bits", "2,t", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["m"], row["k"], row["bits"]) for row in rows] == [
        (64, 256, 2),
        (64, 256, "t"),
        (100, 128, 2),
        (100, 128, "t"),
    ]
    assert 0 < rows[0]["int8_tables"] < rows[0]["weights"] < rows[0]["rounding"]
    assert rows[1]["int8"] is None
    assert rows[1]["exact"] < 1e-12
    lines = run(*SMALL, "--bits", "2,t").stdout.splitlines()
    assert lines[0].startswith("| m x k | bits | weights | rounding | int8 |")
    assert lines[2].startswith(f"| 64 x 256 | 2 | {rows[0]['weights']:.2e} | {rows[0]['rounding']:.2e} |")
    assert len(lines) == 2 + len(rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--shapes", "64"), "expected a list of rows x columns"),
        (("--shapes", "64x0"), "expected a list of rows x columns"),
        (("--bits", "9"), "--bits 9"),
        (("--group-size", "16"), "--group-size 16"),
    ],
)
def test_mistakes_get_one_line(run, arguments: tuple[str, ...], says: str) -> None:
    done = run("bench", "accuracy", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_fast_aggregation(run, packed: Path) -> None:
    """One line where it would do nothing, or contradicts --tables; a benchmark runs with it."""
    for verb in (("generate", str(packed), "-p", "x"), ("chat", str(packed)), ("bench", str(packed))):
        done = run(*verb, "--fast-aggregation")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "fast aggregation: this model's products are exact" in done.stderr
        assert "give one of them" in run(*verb, "--fast-aggregation", "--tables", "exact").stderr
    options = ("--shapes", "tinyllama-1.1b", "-b", "2", "-n", "2", "-t", "1", "--json")
    done = run("bench", "kernels", *options, "--fast-aggregation")
    if kernels.has_fast_aggregation():
        assert {json.loads(line)["tables"] for line in done.stdout.splitlines()} == {"fast"}
    else:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "has no kernel" in done.stderr
