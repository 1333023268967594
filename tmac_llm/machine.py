"""What this machine is and how much of it we may use; knows neither kernels nor models."""

import os
import platform
import resource
import sys
from pathlib import Path

import psutil

from tmac_llm.errors import UsageError

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CPU_INFO = Path("/proc/cpuinfo")
MAX_THREADS = 256  # of the thread pool of the kernels
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def cpu_name() -> str:
    """Marketing name of the CPU, or its architecture where the system keeps none."""
    try:
        for line in _CPU_INFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def physical_cores() -> int:
    """Cores without their hyper-threads; at least 1."""
    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def cgroup_cpus() -> float | None:
    """CPUs that the control group and those above it grant (2.5 = two and a half), None for no limit."""
    granted = []
    for folder in _cgroups("cpu"):
        words = _words(folder / "cpu.max", 2)
        words = words or _words(folder / "cpu.cfs_quota_us", 1) + _words(folder / "cpu.cfs_period_us", 1)
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            granted.append(int(words[0]) / int(words[1]))
    return min(granted, default=None)


def cgroup_memory() -> int | None:
    """Bytes that the control group and those above it still leave to us, files that can be dropped not counted as
    used; None for no limit."""
    left = []
    for folder in _cgroups("memory"):
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            (most,) = _words(folder / limit, 1) or ("max",)
            (used,) = _words(folder / usage, 1) or ("0",)
            if most.isdecimal() and used.isdecimal() and int(most) < total_memory():
                left.append(max(0, int(most) - int(used) + _droppable(folder / "memory.stat")))
    return min(left, default=None)


def address_space() -> int | None:
    """Bytes of address space that RLIMIT_AS (`ulimit -v`) and RLIMIT_DATA still leave to us; None for no limit."""
    process = psutil.Process().memory_info()
    limits = ((resource.RLIMIT_AS, process.vms), (resource.RLIMIT_DATA, getattr(process, "data", 0)))
    left = [
        max(0, soft - used)
        for kind, used in limits
        if (soft := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY
    ]
    return min(left, default=None)


def thread_reasons() -> list[str]:
    """What `default_threads` follows, for people: the first line decides where there is one of the environment."""
    for variable in ("TMAC_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable):
            return [f"{variable}={os.environ[variable]}"]
    reasons = [f"{physical_cores()} physical cores"]
    if hasattr(os, "sched_getaffinity"):
        reasons.append(f"the affinity mask allows {len(os.sched_getaffinity(0))} CPUs")
    granted = cgroup_cpus()
    reasons.append(
        "no control group limit" if granted is None else f"the control group grants {granted:g} CPUs"
    )
    return reasons


def default_threads() -> int:
    """Threads to use when none are asked for: TMAC_THREADS, else OMP_NUM_THREADS, else what affinity mask,
    control group and physical cores all allow.

    Raises UsageError for a TMAC_THREADS that is not a positive number.
    """
    text = os.environ.get("TMAC_THREADS", "")
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"TMAC_THREADS={text}: expected a number of threads, 1 or more")
        return int(text)
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical_cores()
    granted = cgroup_cpus()
    if granted is not None:
        allowed = min(allowed, max(1, int(granted)))
    return max(1, min(allowed, physical_cores(), MAX_THREADS))


def total_memory() -> int:
    """Bytes of main memory."""
    return psutil.virtual_memory().total


def available_memory() -> int:
    """Bytes that can be had without swapping, within the limits of control groups and of the process."""
    limits = (psutil.virtual_memory().available, cgroup_memory(), address_space())
    return min(limit for limit in limits if limit is not None)


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def huge_pages() -> str:
    """State of transparent huge pages: "always", "madvise", "never", or "unavailable"."""
    try:
        text = _HUGE_PAGES.read_text()
    except OSError:
        return "unavailable"
    return text.partition("[")[2].partition("]")[0] or "unavailable"


def huge_pages_disabled() -> bool:
    """Whether this process may not have transparent huge pages (PR_SET_THP_DISABLE, as some containers set)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("THP_enabled:"):
                return line.split()[1] == "0"
    except OSError:
        pass
    return False


def huge_page_memory() -> int:
    """Bytes of this process that lie in huge pages at the moment; 0 where the system does not tell."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("AnonHugePages:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _cgroups(controller: str) -> list[Path]:
    """The folders of our control group and of all above it: of version 2, then of version 1 for a controller."""
    try:
        lines = [line.split(":", 2) for line in _OWN_CGROUP.read_text().splitlines()]
    except OSError:
        lines = []
    own = {
        name: path
        for _, names, path in (line for line in lines if len(line) == 3)
        for name in names.split(",")
    }
    found = []
    for root, name in ((_CGROUP, ""), (_CGROUP / controller, controller)):
        parts = [part for part in own.get(name, "").split("/") if part and part != ".."]
        found += [root.joinpath(*parts[:i]) for i in range(len(parts), -1, -1)]
    return found


def _words(path: Path, n: int) -> tuple[str, ...]:
    """The words of a file that has exactly n, else none."""
    try:
        words = tuple(path.read_text().split())
    except (OSError, ValueError):
        return ()
    return words if len(words) == n else ()


def _droppable(path: Path) -> int:
    """Bytes of a control group's files that the system drops when memory runs short."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return 0
    return sum(
        int(pair[1]) for pair in pairs if pair[0] == "inactive_file" and pair[1:] and pair[1].isdecimal()
    )
