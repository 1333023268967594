"""What the machine tells, and how many threads follow from it."""

from pathlib import Path

import psutil
import pytest

from tmac_llm import machine


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Four cores, eight hyper-threads, no control group, nothing in the environment; returns the cgroup directory."""
    for name in ("TMAC_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    return tmp_path


def test_physical_cores_are_the_default() -> None:
    assert machine.default_threads() == 4


def test_no_more_than_the_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 1024)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(1024)))
    assert machine.default_threads() == machine.MAX_THREADS


def test_affinity_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 5, 6})
    assert machine.default_threads() == 3


@pytest.mark.parametrize(
    ("quota", "threads"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("nonsense", 4)]
)
def test_control_group_limits(four_cores: Path, quota: str, threads: int) -> None:
    (four_cores / "cpu.max").write_text(quota)
    assert machine.default_threads() == threads


def test_control_group_of_the_first_version(four_cores: Path) -> None:
    (four_cores / "cpu").mkdir()
    (four_cores / "cpu" / "cpu.cfs_quota_us").write_text("300000")
    (four_cores / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert machine.default_threads() == 3
    (four_cores / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert machine.default_threads() == 4


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert machine.default_threads() == 3
    monkeypatch.setenv("TMAC_THREADS", "7")
    assert machine.default_threads() == 7


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("always [madvise] never", "madvise"),
        ("[always] madvise never", "always"),
        ("", "unavailable"),
        (None, "unavailable"),
    ],
)
def test_huge_pages(text: str | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        (tmp_path / "enabled").write_text(text)
    monkeypatch.setattr(machine, "_HUGE_PAGES", tmp_path / "enabled")
    assert machine.huge_pages() == state


def test_figures_of_this_machine() -> None:
    assert machine.cpu_name()
    assert 0 < machine.available_memory() <= machine.total_memory()
    assert 1 << 20 < machine.peak_memory() < 1 << 50
    assert machine.huge_page_memory() >= 0
