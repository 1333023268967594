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
    """CPUs that the control group grants (2.5 = two and a half), None where it sets no limit."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((_CGROUP / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((_CGROUP / "cpu" / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


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
    """Bytes that can be had without swapping."""
    return psutil.virtual_memory().available


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


def huge_page_memory() -> int:
    """Bytes of this process that lie in huge pages at the moment; 0 where the system does not tell."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("AnonHugePages:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
