"""What the machine tells, and how many threads follow from it."""

import resource
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
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "fs")
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    (tmp_path / "fs").mkdir()
    return tmp_path / "fs"


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


def test_the_tightest_group_above_us_limits(four_cores: Path) -> None:
    (four_cores.parent / "own").write_text("0::/slice/inner\n")
    inner = four_cores / "slice" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000")
    (four_cores / "slice" / "cpu.max").write_text("150000 100000")
    assert machine.cgroup_cpus() == 1.5
    (inner / "cpu.max").write_text("250000 100000")
    assert machine.cgroup_cpus() == 1.5
    (inner / "cpu.max").write_text("50000 100000")
    assert machine.cgroup_cpus() == 0.5
    (four_cores.parent / "own").write_text("0::/../more\nnonsense\n")
    (four_cores.parent / "cpu.max").write_text("10000 100000")
    assert machine.cgroup_cpus() is None


def test_control_group_memory(four_cores: Path) -> None:
    assert machine.cgroup_memory() is None
    (four_cores.parent / "own").write_text("4:cpuset,memory:/a\n0::/b\n")
    for folder in (four_cores / "b", four_cores / "memory" / "a"):
        folder.mkdir(parents=True)
    (four_cores / "b" / "memory.max").write_text("max\n")
    assert machine.cgroup_memory() is None
    (four_cores / "b" / "memory.max").write_text("1000000\n")
    (four_cores / "b" / "memory.current").write_text("700000\n")
    (four_cores / "b" / "memory.stat").write_text("anon 5\ninactive_file 200000\nbroken\n")
    assert machine.cgroup_memory() == machine.available_memory() == 500_000
    (four_cores / "memory" / "a" / "memory.limit_in_bytes").write_text("900000\n")
    (four_cores / "memory" / "a" / "memory.usage_in_bytes").write_text("800000\n")
    assert machine.cgroup_memory() == 100_000
    (four_cores / "memory" / "a" / "memory.usage_in_bytes").write_text("9000000\n")
    assert machine.cgroup_memory() == 0


def test_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    limits = {resource.RLIMIT_AS: unlimited, resource.RLIMIT_DATA: unlimited}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    assert machine.address_space() is None
    used = psutil.Process().memory_info().vms
    limits[resource.RLIMIT_AS] = (used + (1 << 30), resource.RLIM_INFINITY)
    left = machine.address_space()
    assert left is not None
    assert abs(left - (1 << 30)) < 1 << 28
    limits[resource.RLIMIT_AS] = (1, 1)
    assert machine.address_space() == machine.available_memory() == 0


def test_reasons_for_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, four_cores: Path) -> None:
    (four_cores / "cpu.max").write_text("250000 100000")
    assert machine.thread_reasons() == [
        "4 physical cores",
        "the affinity mask allows 8 CPUs",
        "the control group grants 2.5 CPUs",
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.thread_reasons() == ["OMP_NUM_THREADS=3"]
    monkeypatch.setenv("TMAC_THREADS", "5")
    assert machine.thread_reasons() == ["TMAC_THREADS=5"]


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
