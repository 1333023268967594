"""Energy that the CPU packages use, from the counters of Linux's powercap; knows no work."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_POWERCAP = Path("/sys/class/powercap")


class _Counter(NamedTuple):
    path: Path
    wraps_at: int  # microjoules


class EnergyMeter:
    """The counters of all packages together; they count everything that runs on the machine.

    root: a directory laid out as /sys/class/powercap (Linux kernel documentation, power/powercap): zones whose
    `name` is package-N, with energy_uj and max_energy_range_uj. Most systems let only root read energy_uj.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        found = [_counter(zone) for zone in sorted(root.glob("*:*"))] if root.is_dir() else []
        self._counters = [counter for counter in found if counter]

    @property
    def readable(self) -> bool:
        """Whether there is a counter that this process may read."""
        return bool(self._counters)

    def read(self) -> list[int]:
        """Microjoules of each package, from an arbitrary start."""
        return [int(counter.path.read_text()) for counter in self._counters]

    def joules_since(self, before: list[int]) -> float | None:
        """Joules since `before` was read, None where nothing is readable. Counters may wrap once between."""
        if not self._counters:
            return None
        used = 0
        for counter, old, new in zip(self._counters, before, self.read(), strict=True):
            used += new - old if new >= old else new - old + counter.wraps_at
        return used / 1e6


def _counter(zone: Path) -> _Counter | None:
    try:
        if not (zone / "name").read_text().startswith("package-"):
            return None  # parts of a package, or the whole board: counted once only
        int((zone / "energy_uj").read_text())
        return _Counter(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
    except (OSError, ValueError):
        return None
