"""What `bench` shows beside speeds: profile, charts, energy, and the comparison of two runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tmac_llm.cli import bench, bench_plot
from tmac_llm.errors import UsageError

SMALL = ("-p", "4", "-n", "2", "-r", "2", "-t", "1", "-q")


def test_rows_tell_the_experiment(run, packed: Path) -> None:
    rows = json.loads(run("bench", str(packed), *SMALL, "-o", "json").stdout)
    assert [row["test"] for row in rows] == ["pp4", "tg2"]
    for row in rows:
        assert row["min_ts"] <= row["median_ts"] <= row["max_ts"]
        assert row["ts_per_core"] == row["median_ts"]
        assert row["warmup_ns"] > 0
        assert row["cache_type"] == "f32"
        assert row["huge_pages"] in ("always", "madvise", "never", "unavailable")
        assert len(row["samples_ts"]) == 2
    assert rows[0]["first_token_ns"] == sum(rows[0]["samples_ns"]) / 2
    assert rows[1]["first_token_ns"] is None


def test_the_table_names_the_machine(run, packed: Path) -> None:
    done = run("bench", str(packed), *SMALL[:-1], "--chart", "--cache-type", "int8")
    assert done.returncode == 0
    header = done.stdout.splitlines()[0]
    for column in ("tokens/s", "min - max", "per core", "first token"):
        assert f"| {column} " in header
    assert "of weights in" in done.stderr
    assert "1 warm-up run and 2 counted" in done.stderr
    assert done.stdout.count("█") > 40
    assert "tg2, tokens/s" in done.stdout


def test_energy_has_a_column_where_it_is_known() -> None:
    row = {
        "model_filename": "m", "model_type": "2 bit", "model_size": 1, "model_n_params": 1, "n_threads": 1,
        "test": "tg1", "avg_ts": 1.0, "stddev_ts": 0.0, "median_ts": 1.0, "min_ts": 1.0, "max_ts": 1.0,
        "ts_per_core": 1.0, "first_token_ns": None, "joules_per_token": None, "share_of_read": None,
    }  # fmt: skip
    assert "J/token" not in bench._markdown([row])
    table = bench._markdown([row, row | {"joules_per_token": 0.25}])
    assert "J/token" in table.splitlines()[0]
    assert "0.25" in table.splitlines()[3]


def test_profile(run, packed: Path) -> None:
    arguments = ("bench", str(packed), "--profile", "-p", "4", "-n", "2", "-d", "0,9,100000", "-t", "1,2")
    shown = run(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert "pp4 @ d100000 left out" in shown.stderr
    for part in ("qkv_proj", "lm_head", "attention", "norms", "rest", "total", "outside the linears"):
        assert f"| {part} " in shown.stdout
    assert "1 threads" in shown.stdout
    assert "2 threads" in shown.stdout
    rows = json.loads(run(*arguments, "-o", "json", "-q").stdout)
    assert [row["test"] for row in rows] == 2 * ["pp4", "pp4 @ d9", "tg2", "tg2 @ d9"]
    for row in rows:
        assert sum(row["parts_ns"].values()) == pytest.approx(row["pass_ns"], abs=20)


def test_compare(run, packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(run("bench", str(packed), *SMALL, "-o", "json").stdout)
    rows = json.loads(path.read_text())
    faster = tmp_path / "b.jsonl"
    for row in rows:
        row["samples_ts"] = [2 * sample for sample in row["samples_ts"]]
        row["isa"] = "avx1024"
    faster.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("bench", "compare", str(path), str(faster))
    assert done.returncode == 0, done.stderr
    assert "isa differs" in done.stderr
    assert done.stdout.count("| 2.000 | ") == 2
    (first, _) = json.loads(run("bench", "compare", str(path), str(path), "--json").stdout)
    assert (first["test"], first["ratio"]) == ("pp4", 1)
    assert first["low"] <= 1 <= first["high"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "not text"),
        (b"| model |", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no tests in it"),
        (b'[{"test": "tg1"}]', "n_threads"),
        (b"[3]", "not a run of `bench`"),
        (b'{"test": 1}\n', "missing"),
        (
            b'[{"test": "tg1", "n_threads": 1, "model_filename": "m", "model_type": "", "model_n_params": 1,'
            b' "samples_ts": [0], "cpu_info": "", "isa": ""}]',
            "above 0",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(run, tmp_path: Path, text: bytes | None, says: str) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_bytes(text)
    done = run("bench", "compare", str(path), str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


ROWS = [
    {
        "test": test, "model_type": f"{bits} bit", "n_threads": n, "median_ts": 10.0 * n / bits,
        "min_ts": 9.0 * n / bits, "max_ts": 11.0 * n / bits, "model_filename": "m", "cpu_info": "c", "isa": "i",
    }
    for test in ("pp8", "tg8") for bits in (2, 4) for n in (1, 2)
]  # fmt: skip


def test_bars_are_as_long_as_the_speed() -> None:
    lines = bench_plot.bars(ROWS).splitlines()
    lengths = [line.count("█") for line in lines if "█" in line]
    assert lengths == 2 * [20, 40, 10, 20]
    assert sum(line.endswith(", tokens/s") for line in lines) == 2


def test_plot_without_matplotlib_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'tmac-llm\[plot\]'; --chart"):
        bench_plot.check(tmp_path / "x.png")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"speed{suffix}"
    bench_plot.check(path)
    bench_plot.draw(ROWS, path)
    assert path.read_bytes().startswith(magic)
    bench_plot.draw(ROWS[:2], path)  # one model: threads only
    assert path.read_bytes().startswith(magic)
