"""The verb `convert` with a calibration text: what it says, what it refuses, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

LLAMA = Path(__file__).parents[1] / "data" / "tiny-llama"
STORIES = LLAMA / "stories.txt"
GPTQ = ("--method", "gptq", "--calibration", str(STORIES))


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What stderr says, by the names of its lines."""
    assert done.returncode == 0, done.stderr
    return {line[:16].strip(): line[16:] for line in done.stderr.splitlines()}


def test_a_calibrated_conversion_tells_what_it_did_and_what_it_cost(run, tmp_path: Path) -> None:
    shared = ("--bits", "2", "--force", "--check", str(STORIES), "-t", "1")
    plain = lines(run("convert", str(LLAMA), str(tmp_path / "plain"), *shared))
    done = run("convert", str(LLAMA), str(tmp_path / "out"), *shared, *GPTQ, "--calibration-tokens", "8192")
    told = lines(done)
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert "gptq, calibrated" in run("info", str(tmp_path / "out")).stdout
    assert "gptq" not in run("info", str(tmp_path / "plain")).stdout
    assert list(told) == [
        "source",
        "packed",
        "calibration",
        "took",
        "checked on",
        "perplexity",
        "reference",
        "ln ratio",
        "KL divergence",
        "p of true token",
        "same top token",
    ]
    assert "less error of what the layers put out" in told["calibration"]
    assert "bits per weight" in told["packed"]
    assert told["checked on"].startswith("stories.txt: 2040 tokens scored in 8 chunks of 512")
    kl = [float(each["KL divergence"].split()[0]) for each in (plain, told)]
    assert kl[1] < 0.6 * kl[0]
    assert "scale search" in plain
    # The warning comes with the plain conversion alone, and says what would help.
    warning = [text for name, text in plain.items() if name.startswith("warning")]
    assert len(warning) == 1
    assert "--method gptq" in warning[0]


def test_mistakes_get_one_line(run, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a brave frog")
    base = ("convert", str(LLAMA), str(tmp_path / "out"))
    for arguments, code, says in (
        (("--method", "gptq"), 2, "--method gptq needs --calibration FILE"),
        (("--calibration", str(STORIES)), 2, "--calibration belongs to --method gptq"),
        (("--method", "awq"), 2, "method awq: expected one of search, gptq"),
        (("--method", "gptq", "--calibration", str(tmp_path / "no.txt")), 2, "--calibration"),
        (("--method", "gptq", "--calibration", str(tmp_path / "short.txt")), 2, "the text has 5 tokens"),
        ((*GPTQ, "--bits", "16"), 1, "float weights and 1 to 8 bits"),
    ):
        done = run(*base, *arguments)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert says in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"home", "short.txt"}
    shown = " ".join(run("convert", "--help").stdout.split())
    for said in ("--calibration-tokens", "TMAC_METHOD", "--check", "[default: 32768;"):
        assert said in shown


def test_ctrl_c_keeps_finished_layers_and_the_same_command_goes_on(tmp_path: Path, home: Path) -> None:
    source = write_checkpoint(
        tmp_path / "source", num_hidden_layers=8, hidden_size=128, intermediate_size=512
    ).path
    command = [sys.executable, "-m", "tmac_llm", "convert", source, tmp_path / "out", "--bits", "3", *GPTQ]
    environment = os.environ | {"TMAC_HOME": str(home)}
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    progress = tmp_path / ".out.unfinished" / "progress.json"
    limit = time.monotonic() + 300
    while not progress.exists() or not json.loads(progress.read_text())["n_done"]:
        assert time.monotonic() < limit
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.005)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=300)[1]
    assert first.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    n_done = json.loads(progress.read_text())["n_done"]
    assert 1 <= n_done < 8
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert again.returncode == 0, again.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out", "home"}


@pytest.mark.parametrize("bits", ["1"])
def test_hopeless_bits_are_refused_with_what_was_measured(run, tmp_path: Path, bits: str) -> None:
    done = run("convert", str(LLAMA), str(tmp_path / "out"), "--bits", bits)
    assert done.returncode == 1
    assert "perplexity" in done.stderr
    assert "--force" in done.stderr
    assert not (tmp_path / "out").exists()
