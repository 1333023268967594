"""Every verb as a script uses it: stdout, stderr, exit codes and one-line errors."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "data" / "tiny-bitnet"
VERBS = ("chat", "generate", "convert", "bench", "eval", "list", "info", "rm", "doctor", "tune")
GREEDY = ("--temperature", "0", "--max-tokens", "8")


@pytest.mark.parametrize("arguments", [(), *((verb,) for verb in VERBS)])
def test_help_names_every_option(arguments: tuple[str, ...], run) -> None:
    done = run(*arguments, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for verb in VERBS if not arguments else ():
        assert f"  {verb} " in done.stdout
    if arguments and arguments[0] not in ("rm", "list", "info", "doctor"):
        assert "TMAC_" in done.stdout  # options say their environment variables


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "tokenizers", "huggingface_hub", "prompt_toolkit", "tmac_llm._native")
    code = f"import sys, tmac_llm.cli; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_version(run) -> None:
    assert run("--version").stdout.startswith("tmac-llm ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("generate", "nowhere", "-p", "x"), 1, "nowhere"),
        (("generate", "./nowhere", "-p", "x"), 1, "no such model directory"),
        (("generate", "no/model", "-p", "x", "-q"), 1, "no/model"),
        (("generate", "~nobody/x", "-p", "x"), 1, "~nobody/x: no such model directory"),
        (("convert", "~nobody/x"), 1, "~nobody/x: no such file or directory"),
        (("eval", "--text", "README.md", "--reference", "~nobody/x"), 1, "~nobody/x"),
        (("info", "~nobody/x"), 1, "~nobody/x: no such model directory"),
        (("generate", "-p", "x", "--cache-type", "q8"), 2, "--cache-type q8: expected f32 or int8"),
        (("bench", "--profile", "-o", "csv"), 2, "md, json or jsonl"),
        (("bench", "--plot", "speed.gif"), 2, ".png or .svg"),
        (("bench", "--plot", "nowhere/speed.png"), 2, "no such directory"),
        (("info", "nowhere"), 1, "nowhere"),
        (("rm", "nowhere", "--yes"), 1, "nowhere"),
        (("bench", "--synthetic", "llama-9"), 2, "llama-2-7b"),
        (("bench", "--synthetic", "llama-2-7b", "-p", "x"), 2, "list of whole numbers"),
        (("bench", "--synthetic", "llama-2-7b", "-p", "0", "-n", "0"), 2, "nothing to measure"),
        (("bench", "--bits", "2"), 2, "--bits belongs to --synthetic"),
        (("bench", "-g", "64"), 2, "--group-size belongs to --synthetic"),
        (("bench", "--head-bits", "4"), 2, "--head-bits belongs to --synthetic"),
        (("bench", "--synthetic", "llama-2-7b", "-g", "0"), 2, "--group-size 0"),
        (("bench", "--synthetic", "llama-2-7b", "--mmap"), 2, "--mmap needs the files"),
        (("bench", "threads", "-t", "0"), 2, "at least 1"),
        (("tune", "--shapes", "llama-9"), 2, "llama-2-7b"),
        (("tune", "--bits", "2"), 2, "--bits belongs to --shapes"),
        (("tune", "-g", "64"), 2, "--group-size belongs to --shapes"),
        (("tune", "x", "--shapes", "llama-2-7b"), 2, "not both"),
        (("tune", "x", "--reset"), 2, "give neither MODEL nor --shapes"),
        (("bench", "-o", "xml"), 2, "md, json, jsonl, csv"),
        (("convert", "nowhere", "--bits", "5"), 2, "1, 2, 3, 4, 8, 16"),
        (("convert", "nowhere", "--bits", "4"), 1, "nowhere"),
        (("chat", "--system", "@missing.txt"), 2, "missing.txt"),
        (("generate",), 2, "no prompt"),
    ],
)
def test_mistakes_get_one_line(arguments: tuple[str, ...], code: int, says: str, run) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()
    assert len(last) == 1, done.stderr
    assert last[0].startswith("error: ")
    assert says in last[0]


def test_unknown_option_is_a_usage_error(run) -> None:
    done = run("chat", "--temprature", "1")
    assert done.returncode == 2
    assert "--temperature" in done.stderr


def test_isa_by_environment(run, packed: Path) -> None:
    done = run("generate", str(packed), "-p", "x", env={"TMAC_ISA": "sse9"})
    assert done.returncode == 1
    assert "sse9" in done.stderr
    assert "scalar" in done.stderr
    same = [
        run("generate", str(packed), "-p", "Hello", "-q", *GREEDY, env={"TMAC_ISA": isa}).stdout
        for isa in ("", "scalar")
    ]
    assert same[0] == same[1] != ""


def test_traceback_only_with_debug(run) -> None:
    assert "Traceback" not in run("info", "nowhere").stderr
    assert "Traceback" in run("info", "nowhere", "--debug").stderr


def test_generate_from_argument_pipe_and_file(run, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Hello there")
    plain = run("generate", str(packed), "-p", "Hello there", *GREEDY)
    assert plain.returncode == 0
    assert " tokens, " in plain.stderr  # no rate where the answer is a single token
    assert plain.stdout.strip()
    for same in (
        run("generate", str(packed), *GREEDY, input="Hello there"),
        run("generate", str(packed), "-p", "-", *GREEDY, input="Hello there\n"),
        run("generate", str(packed), "-p", f"@{tmp_path / 'prompt.txt'}", *GREEDY),
    ):
        assert same.stdout == plain.stdout
    quiet = run("generate", str(packed), "-p", "Hello there", "-q", *GREEDY)
    assert (quiet.stdout, quiet.stderr) == (plain.stdout, "")


def test_generate_json(run, packed: Path) -> None:
    done = run("generate", str(packed), "-p", "Hello", "--json", *GREEDY, "--seed", "3")
    record = json.loads(done.stdout)
    assert record["finish_reason"] in ("stop", "length")
    assert record["usage"]["total_tokens"] == record["usage"]["prompt_tokens"] + len(record["token_ids"])
    assert record["seed"] == 3


def test_same_seed_same_text(run, packed: Path) -> None:
    texts = [
        run(
            "generate", str(packed), "-p", "Hello", "-n", "20", "--temperature", "1", "--seed", str(seed)
        ).stdout
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_chat_from_a_script(run, packed: Path) -> None:
    done = run(
        "chat", str(packed), *GREEDY, input='Hello\n\n/set temperature 0\nAnd "you"?\n"""two\nlines"""\n'
    )
    assert done.returncode == 0
    assert done.stderr.count("tokens/s") == 3
    assert "kept" in done.stderr
    assert run("chat", str(packed), input="").returncode == 0
    stopped = run("chat", str(packed), *GREEDY, input="/exit\nHello\n")
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert run("chat", str(packed), input="/nope\n").returncode == 2
    assert "not closed" in run("chat", str(packed), input='"""open\n').stderr


def test_broken_pipe_is_quiet(packed: Path, home: Path) -> None:
    command = f"{sys.executable} -m tmac_llm generate {packed} -p Hello -n 200 -q | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        errors="replace",  # the first byte may be half a character
        env={**os.environ, "TMAC_HOME": str(home)},
    )
    assert "Traceback" not in done.stderr


def test_convert_list_info_rm(run, home: Path) -> None:
    done = run("convert", str(TINY))
    assert done.returncode == 0, done.stderr
    for word in ("bits per weight", "peak memory", "took", "smaller"):
        assert word in done.stderr
    path = Path(done.stdout.strip())
    assert path.is_dir()
    name = path.name
    assert name in run("list").stdout
    assert json.loads(run("list", "--json").stdout)[0]["name"] == name
    info = run("info", name, "--verify")
    assert "BitNet" in info.stdout or "bitnet" in info.stdout
    assert "SHA-256" in info.stdout
    assert json.loads(run("info", name, "--json").stdout)["vocabulary"] > 0
    again = run("convert", str(TINY))
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert run("convert", str(TINY), "--force", "-q").returncode == 0
    assert run("generate", "tiny-bitnet", "-p", "Hello", "-q", *GREEDY).stdout.strip()
    assert "--yes" in run("rm", name).stderr
    assert "freed" in run("rm", name, "--yes").stderr
    assert not path.exists()
    assert "no models" in run("list").stderr


def test_a_source_is_converted_on_first_use(run) -> None:
    first = run("generate", str(TINY), "-p", "Hello", *GREEDY)
    assert "not converted yet" in first.stderr
    second = run("generate", str(TINY), "-p", "Hello", *GREEDY)
    assert "not converted yet" not in second.stderr
    assert second.stdout == first.stdout != ""


def test_a_damaged_model_is_one_line(run, packed: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(packed, tmp_path / "broken"))
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    done = run("generate", str(broken), "-p", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.strip().splitlines()) == 1


def test_known_models(run) -> None:
    names = [row["name"] for row in json.loads(run("list", "--known", "--json").stdout)]
    for name in ("llama-2-7b", "bitnet-2b-4t", "bitnet-3b", "llama-3-8b", "llama-3.2-1b", "tinyllama-1.1b"):
        assert name in names


BENCH = (
    "bench",
    "--synthetic",
    "qwen2.5-0.5b",
    "--bits",
    "2",
    "-p",
    "8",
    "-n",
    "2",
    "-r",
    "2",
    "-t",
    "1,2",
    "-q",
)


def test_bench_formats(run) -> None:
    rows = json.loads(run(*BENCH, "-o", "json").stdout)
    assert [(row["n_prompt"], row["n_gen"], row["n_threads"]) for row in rows] == [
        (8, 0, 1),
        (8, 0, 2),
        (0, 2, 1),
        (0, 2, 2),
    ]
    for row in rows:
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        tokens = row["n_prompt"] or row["n_gen"]
        assert row["samples_ts"][0] == pytest.approx(tokens * 1e9 / row["samples_ns"][0], rel=1e-2)
        assert row["model_n_params"] == 494_032_768 - 24 * (896 + 2 * 128) - 49 * 896
        assert row["peak_memory"] > row["model_size"] > 1e8
        if row["n_gen"]:
            assert row["bytes_per_token"] == row["model_size"]
            assert row["gb_per_s"] == pytest.approx(row["model_size"] * row["median_ts"] / 1e9, rel=1e-2)
            assert row["read_gb_per_s"] > 0 < row["share_of_read"]
        else:
            assert row["bytes_per_token"] is row["gb_per_s"] is row["share_of_read"] is None


def test_bench_of_a_packed_model(run, packed: Path) -> None:
    arguments = ("bench", str(packed), "-p", "4", "-n", "4", "-d", "0,8", "-r", "1")
    shown = run(*arguments)
    assert shown.returncode == 0, shown.stderr
    for test in ("pp4", "tg4", "pp4 @ d8", "tg4 @ d8"):
        assert f"| {test} " in shown.stdout
    lines = [json.loads(line) for line in run(*arguments, "-o", "jsonl").stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "-o", "csv").stdout)))
    assert len(lines) == len(rows) == 4
    assert list(rows[0]) == list(lines[0])
    assert "context has" in run("bench", str(packed), "-p", "100000").stderr


def test_doctor(run) -> None:
    facts = json.loads(run("doctor", "--json").stdout)
    assert "agree" in facts["self-test"]
    assert any("in use" in line for line in facts["instruction set"])
    assert "huge pages" in run("doctor").stdout
    assert any("in huge pages" in line for line in facts["huge pages"]) == (
        facts["huge pages"][0].startswith(("always", "madvise")) and "forbidden" not in facts["huge pages"][1]
    )
    assert "physical cores" in facts["threads"]
    assert facts["mapped copies"][0].startswith("none in")
    assert facts["tuning"].startswith("nothing stored")
    assert run("doctor", "-t", "3", "--json").stdout.count("3: --threads") == 1


def test_mmap(run, packed: Path, home: Path, tmp_path: Path) -> None:
    """The same answer; the copy is announced, listed, checked and removed with its model."""
    model = home / "models" / "mine"
    shutil.copytree(packed, model)
    generate = ("generate", "mine", "-p", "Once", "--temperature", "0", "-n", "12")
    assert "when first used" in run("info", "mine").stdout
    expected = run(*generate)
    first, second = run(*generate, "--mmap"), run(*generate, env={"TMAC_MMAP": "1"})
    assert first.stdout == second.stdout == expected.stdout != ""
    assert "once" in first.stderr
    assert "copying" not in second.stderr
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a frog. " * 20)
    evaluate = ("eval", "mine", "--text", str(text), "-c", "32")
    assert run(*evaluate, "--mmap").stdout == run(*evaluate).stdout
    bench = ("bench", "mine", "-p", "4", "-n", "0", "-r", "1")
    assert "of weights mapped from files" in run(*bench, "--mmap").stderr
    assert "of weights in ordinary pages" in run(*bench).stderr  # each matrix is smaller than a huge page
    assert run("chat", "mine", "--mmap", "--temperature", "0", "-n", "4", input="Hello\n").returncode == 0
    (copy,) = (home / "cache" / "weights").glob("*.weights")
    assert str(copy) in run("info", "mine", "--verify").stdout
    assert str(copy) in run("doctor").stdout
    copy.write_bytes(copy.read_bytes()[64:])
    assert "damaged" in run("info", "mine", "--verify").stderr
    assert run("rm", "mine", "--yes").returncode == 0
    assert not copy.exists()


def test_tune(run, packed: Path, home: Path) -> None:
    shown = run("tune", str(packed), "-t", "1")
    assert shown.returncode == 0, shown.stderr
    (stored,) = (home / "cache" / "tuning").glob("*.json")
    keys = list(json.loads(stored.read_text())["choices"])
    assert keys
    assert all(key in shown.stdout for key in keys)
    rows = [json.loads(line) for line in run("tune", str(packed), "--json").stdout.splitlines()]
    assert [row["matrix"] for row in rows] != []
    assert {row["matrix"] for row in rows} == set(keys)
    assert "shapes measured" in run("doctor").stdout
    stored.write_text("{")
    refused = run("generate", str(packed), "-p", "Once", "-n", "2")
    assert refused.returncode == 1
    assert "tune --reset" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "tune --reset" in run("doctor").stdout
    assert "removed" in run("tune", "--reset").stderr
    assert not stored.exists()
    assert "nothing is stored" in run("tune", "--reset").stderr


def test_bench_threads(run) -> None:
    rows = [json.loads(line) for line in run("bench", "threads", "-t", "1,2", "--json").stdout.splitlines()]
    assert [row["n_threads"] for row in rows] == [1, 2]
    assert len(run("bench", "threads", "-t", "2").stdout.splitlines()) == 2


def test_bench_kernels(run) -> None:
    arguments = ("bench", "kernels", "--shapes", "qwen2.5-0.5b", "-b", "2", "-n", "1,8", "-t", "1")
    rows = [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]
    assert len(rows) == 4 * 2
    for row in rows:
        assert row["ceiling"] in ("read", "cache")
        assert min(row["share"], row["read_gb_per_s"], row["cache_gmac_per_s"]) > 0
