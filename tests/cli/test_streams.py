"""Closed, foreign and full standard streams, homes that cannot be written, and what is shown of hostile names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chat_terminal import ChatTerminal

from tmac_llm.cli import console

SHORT = "--temperature 0 -n 8"


def shell(home: Path, command: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The finished command line, run by a shell; `tmac-llm` stands for the program."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TMAC_", "HF_", "PYTHON", "LC_"))}
    return subprocess.run(
        ["bash", "-c", command.replace("tmac-llm", f"{sys.executable} -m tmac_llm")],
        env=environment | {"TMAC_HOME": str(home), "HF_HUB_OFFLINE": "1"} | variables,
        input=b"",
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("closed", "code", "shows_text"), [("<&-", 0, True), (">&-", 0, False), ("2>&-", 0, True)]
)
def test_a_closed_stream_is_an_empty_one(
    home: Path, packed: Path, closed: str, code: int, shows_text: bool
) -> None:
    done = shell(home, f"tmac-llm generate {packed} -p Hello {SHORT} {closed}")
    assert done.returncode == code, done.stderr
    assert bool(done.stdout.strip()) is shows_text
    assert b"error" not in done.stdout + done.stderr


def test_no_prompt_and_no_stdin(home: Path, packed: Path) -> None:
    done = shell(home, f"tmac-llm generate {packed} <&-")
    assert done.returncode == 2
    assert b"no prompt" in done.stderr
    assert shell(home, f"tmac-llm chat {packed} <&-").returncode == 0


def test_a_full_device_is_one_line(home: Path, packed: Path) -> None:
    done = shell(home, f"tmac-llm generate {packed} -p Hello {SHORT} >/dev/full")
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_input_that_is_not_utf8(home: Path, packed: Path, verb: str, locale: str) -> None:
    done = shell(home, rf"printf 'a\377\n' | tmac-llm {verb} {packed} {SHORT}", LC_ALL=locale)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: stdin: expected UTF-8 text")


def test_an_argument_that_is_not_utf8(home: Path, packed: Path) -> None:
    done = shell(home, rf"tmac-llm generate {packed} -p $(printf 'a\377') {SHORT}")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: text: character ")


def test_input_is_utf8_whatever_the_locale(home: Path, packed: Path) -> None:
    command = rf"printf 'Gr\303\274\303\237e' | tmac-llm generate {packed} --json -q --seed 1 -n 2"
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    assert b'"prompt_tokens"' in (
        wanted := shell(home, command, LC_ALL="C.UTF-8").stdout.split(b'"usage"')[-1]
    )
    assert shell(home, command, **ascii_only).stdout.split(b'"usage"')[-1] == wanted


def test_what_the_locale_cannot_show_is_a_question_mark() -> None:
    code = "from tmac_llm.cli import console; console.prepare_streams(); console.out('a\\u4f60b\\n')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.stdout, done.stderr) == (b"a?b\n", b"")


def test_an_error_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.error("a\nb\x1b[31mc\udcff: größer")
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31mc\\udcff: größer\n"


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = shell(tmp_path / "file", f"tmac-llm generate -p Hello {SHORT}")
    assert done.returncode == 1
    assert b"set TMAC_HOME" in done.stderr


def test_an_empty_model_is_a_mistake(home: Path) -> None:
    done = shell(home, "tmac-llm generate '' -p Hello")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: MODEL is empty")


def test_a_history_that_cannot_be_written(home: Path, packed: Path) -> None:
    (home / "chat_history").mkdir()
    terminal = ChatTerminal(home, str(packed), "-n", "4")
    try:
        assert "history is not kept" in terminal.wait_for_prompt()
        terminal.say("Hello")
        assert re.search(r"prompt \d+ new", terminal.wait_for_prompt())
        terminal.key("d")
        assert terminal.end() == 0
    finally:
        terminal.process.close(force=True)
