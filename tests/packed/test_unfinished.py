"""The state of an unfinished conversion: kept, verified, refused, never mistaken for a model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tmac_llm.errors import ConvertError
from tmac_llm.packed.unfinished import Unfinished, directory
from tmac_llm.packed.writer import remove_leftovers

RECIPE = {"bits": 2, "text": "abc", "files": [["model.safetensors", 12, 34]]}


def names(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()}


def start(tmp_path: Path, n_done: int = 2) -> Path:
    """A state of n_done steps; returns the target."""
    target = tmp_path / "model"
    with Unfinished(target, RECIPE, force=False) as work:
        assert work.n_done == 0
        for i in range(n_done):
            arrays = {f"codes-{i}": np.arange(10, dtype=np.uint8) + i, f"x-{i + 1}": np.full((2, 3), i + 0.5)}
            work.save(i + 1, arrays, drop=[f"x-{i}"])
    return target


def test_a_state_is_taken_up_where_it_was_left(tmp_path):
    target = start(tmp_path)
    assert names(directory(target)) == {"progress.json", "codes-0", "codes-1", "x-2"}
    assert not target.exists()
    with Unfinished(target, RECIPE, force=False) as work:
        assert work.n_done == 2
        assert work.load("codes-1").tolist() == list(range(1, 11))
        assert work.load("x-2", np.float64).tolist() == [1.5] * 6
        assert not work.load("codes-0").flags.writeable
        work.remove()
    assert names(tmp_path) == set()


def test_nothing_stays_of_a_conversion_that_finished_no_step(tmp_path):
    start(tmp_path, 0)
    assert names(tmp_path) == set()
    with pytest.raises(KeyboardInterrupt), Unfinished(tmp_path / "model", RECIPE, force=False):
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


def test_an_interrupt_keeps_the_steps_that_were_finished(tmp_path):
    target = start(tmp_path)
    with pytest.raises(KeyboardInterrupt), Unfinished(target, RECIPE, force=False):
        raise KeyboardInterrupt
    with Unfinished(target, RECIPE, force=False) as work:
        assert work.n_done == 2


def test_other_conversions_leave_it_alone(tmp_path):
    start(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {".model.unfinished"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 3}, "another bits: expected 2, found 3"),
        ({"text": "abd"}, 'another text: expected "abc", found "abd"'),
        ({"files": []}, "another files"),
        ({"more": 1}, "another more: expected null, found 1"),
    ],
)
def test_another_recipe_is_refused(tmp_path, change, says):
    target = start(tmp_path)
    with pytest.raises(ConvertError, match=says) as error, Unfinished(target, RECIPE | change, force=False):
        pass
    assert "--force" in str(error.value)
    assert "\n" not in str(error.value)
    with Unfinished(target, RECIPE, force=False) as work:  # the state survived the refusal
        assert work.n_done == 2
    with Unfinished(target, RECIPE | change, force=True) as work:
        assert work.n_done == 0
        assert names(work.path) == {"progress.json"}


def test_force_goes_on_with_the_same_recipe(tmp_path):
    with Unfinished(start(tmp_path), RECIPE, force=True) as work:
        assert work.n_done == 2


def spoil(path: Path, change: str) -> None:
    file = path / "codes-1"
    if change == "a bit":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 4]) + file.read_bytes()[1:])
    elif change == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    elif change == "gone":
        file.unlink()
    else:
        (path / "progress.json").write_text(change)


def progress(**changes: object) -> str:
    entry = {"size": 10, "sha256": "0" * 64}
    good = {"version": 1, "n_done": 1, "recipe": RECIPE, "files": {"codes-1": entry}}
    return json.dumps(good | changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("a bit", "codes-1: damaged: size or SHA-256"),
        ("shorter", "codes-1: damaged"),
        ("gone", "codes-1: No such file"),
        ("{", "progress.json: damaged"),
        ("[]", "progress.json: damaged"),
        (progress(files=[1]), "progress.json: damaged"),
        (progress(files={"codes-1": {"size": 10}}), "progress.json: damaged"),
        (progress(files={"../model": {"size": 1, "sha256": ""}}), "names files elsewhere"),
        (progress(n_done="many"), "progress.json: damaged"),
        (progress(version=2), "another version"),
    ],
)
def test_damage_is_refused(tmp_path, change, says):
    target = start(tmp_path)
    spoil(directory(target), change)
    with pytest.raises(ConvertError, match=says) as error, Unfinished(target, RECIPE, force=False):
        pass
    assert "--force" in str(error.value)
    with Unfinished(target, RECIPE, force=True) as work:
        assert work.n_done == 0


def test_a_directory_of_somebody_else_is_left_as_it_is(tmp_path):
    path = directory(tmp_path / "model")
    path.mkdir()
    (path / "letter.txt").write_text("dear")
    for force in (False, True):
        with (
            pytest.raises(ConvertError, match="not an unfinished conversion"),
            Unfinished(tmp_path / "model", RECIPE, force=force),
        ):
            pass
    assert (path / "letter.txt").read_text() == "dear"
    (path / "letter.txt").unlink()
    path.rmdir()
    path.write_text("a file")
    with (
        pytest.raises(ConvertError, match="cannot be used"),
        Unfinished(tmp_path / "model", RECIPE, force=True),
    ):
        pass


def test_one_process_at_a_time(tmp_path):
    target = start(tmp_path)
    code = f"""
from pathlib import Path
from tmac_llm.packed.unfinished import Unfinished
with Unfinished(Path({str(target)!r}), {RECIPE!r}, force=True): pass
"""
    with Unfinished(target, RECIPE, force=False):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another conversion is at work" in done.stderr


def test_scratch_has_no_name_and_a_full_disk_is_told(tmp_path):
    with Unfinished(tmp_path / "model", RECIPE, force=False) as work:
        array = work.scratch(1000)
        array[:] = 3
        assert names(work.path) == {"progress.json"}
        assert (array.dtype, float(array.sum())) == (np.float32, 3000)
        with pytest.raises(ConvertError, match="of disk for activations"):
            work.scratch(1 << 60)


# Every conversion runs in a forked child; the first one of a target is killed at its step `limit`.
KILLER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tmac_llm.packed import unfinished
steps, limit = 0, 0

def counted(function):
    def call(*arguments, **options):
        global steps
        steps += 1
        if steps == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

unfinished.os.fsync = counted(os.fsync)
for name in ("rename", "mkdir", "unlink"):
    setattr(Path, name, counted(getattr(Path, name)))
unfinished.Unfinished._write = counted(unfinished.Unfinished._write)

def convert(target):
    with unfinished.Unfinished(target, {"bits": 2}, force=False) as work:
        for i in range(work.n_done, 3):
            before = work.load(f"x-{i}", np.int64) if i else np.zeros(4, np.int64)
            work.save(i + 1, {f"codes-{i}": before.astype(np.uint8), f"x-{i + 1}": before + 1}, drop=[f"x-{i}"])

def in_child(target):
    child = os.fork()
    if child == 0:
        convert(target)
        os._exit(0)
    return os.waitpid(child, 0)[1]

point = 0
while True:
    point += 1
    target = Path(sys.argv[1]) / str(point) / "model"
    limit = point
    status = in_child(target)
    limit = 0
    assert in_child(target) == 0
    if not os.WIFSIGNALED(status):
        sys.exit(status)
"""


def test_killed_at_any_step_it_goes_on_from_a_sound_state(tmp_path):
    command = [sys.executable, "-c", KILLER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(names(tmp_path)) > 20
    for point in tmp_path.iterdir():
        with Unfinished(point / "model", {"bits": 2}, force=False) as work:
            assert work.n_done == 3
            assert [work.load(f"codes-{i}").tolist() for i in range(3)] == [[i] * 4 for i in range(3)]
            assert work.load("x-3", np.int64).tolist() == [3] * 4
            assert names(work.path) == {"progress.json", "codes-0", "codes-1", "codes-2", "x-3"}
