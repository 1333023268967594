"""Energy from a tree laid out as /sys/class/powercap."""

from pathlib import Path

import pytest

from tmac_llm.energy import EnergyMeter


def zone(root: Path, directory: str, name: str, microjoules: str, wraps_at: int = 1_000_000) -> Path:
    path = root / directory
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return path


def test_packages_are_summed_their_parts_are_not(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", "100000")
    second = zone(tmp_path, "intel-rapl:1", "package-1", "900000")
    core = zone(tmp_path, "intel-rapl:0:0", "core", "5")
    board = zone(tmp_path, "intel-rapl:2", "psys", "5")
    meter = EnergyMeter(tmp_path)
    assert meter.readable
    before = meter.read()
    (first / "energy_uj").write_text("350000\n")
    (second / "energy_uj").write_text("150000\n")  # it wrapped at 1 J: 0.25 J
    for other in (core, board):
        (other / "energy_uj").write_text("999999\n")
    assert meter.joules_since(before) == pytest.approx(0.25 + 0.25)


@pytest.mark.parametrize("damage", ["absent", "no energy", "words", "no range"])
def test_what_cannot_be_read_is_not_there(tmp_path: Path, damage: str) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", "one" if damage == "words" else "1")
    if damage == "no energy":  # as for users that may not read it
        (path / "energy_uj").unlink()
    if damage == "no range":
        (path / "max_energy_range_uj").unlink()
    meter = EnergyMeter(tmp_path / "nothing" if damage == "absent" else tmp_path)
    assert not meter.readable
    assert meter.read() == []
    assert meter.joules_since([]) is None
