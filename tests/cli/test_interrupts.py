"""Ctrl-C at moments when no verb is there yet to handle it, and at a question."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pexpect
import pytest

from tmac_llm.convert import convert

TINY = Path(__file__).parents[1] / "data" / "tiny-bitnet"


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_during_imports(run, tmp_path: Path, module: str) -> None:
    """A module that interrupts the program while it is being imported; rich is imported later, by the verb."""
    interrupting = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    (tmp_path / f"{module}.py").write_text(interrupting)
    done = run("list" if module == "typer" else "bench", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.fixture
def question(home: Path):
    """`rm tiny` in a terminal, at its question."""
    convert(TINY, home / "models" / "tiny")
    environment = {**os.environ, "TMAC_HOME": str(home)}
    process = pexpect.spawn(
        sys.executable, ["-m", "tmac_llm", "rm", "tiny"], env=environment, encoding="utf-8", timeout=60
    )
    process.expect_exact("[y/N]: ")
    yield process
    process.close(force=True)


def end(process: pexpect.spawn) -> tuple[int | None, str]:
    process.expect(pexpect.EOF)
    process.close()
    return process.exitstatus, process.before


def test_ctrl_c_at_a_question(question: pexpect.spawn, home: Path) -> None:
    question.sendintr()
    code, shown = end(question)
    assert code == 130
    assert "Traceback" not in shown
    assert (home / "models" / "tiny").is_dir()


@pytest.mark.parametrize(("answer", "removed"), [("y", True), ("YES", True), ("n", False), ("", False)])
def test_answers(question: pexpect.spawn, home: Path, answer: str, removed: bool) -> None:
    question.sendline(answer)
    code, shown = end(question)
    assert code == (0 if removed else 1)
    assert ("nothing removed" in shown) != removed
    assert (home / "models" / "tiny").is_dir() != removed


def test_the_end_of_input_is_a_no(question: pexpect.spawn, home: Path) -> None:
    question.sendeof()
    assert end(question)[0] == 1
    assert (home / "models" / "tiny").is_dir()
