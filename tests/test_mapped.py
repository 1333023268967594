"""Weights from mapped files: the same logits, shared pages, and copies that are made once, checked, and made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tmac_llm
from tmac_llm import kernels, machine, mapped
from tmac_llm.convert import convert
from tmac_llm.errors import PackedModelError, StoreError, UsageError
from tmac_llm.load import _RESERVE, load_decoder, mapped_names
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.packed.container import PackedModel
from tmac_llm.synthetic import synthetic_model

TINY = Path(__file__).parent / "data" / "tiny-bitnet"
IDS = np.array([1, 5, 9, 2])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ternary model; its output head has bit planes."""
    out = tmp_path_factory.mktemp("packed") / "tiny"
    convert(TINY, out)
    return out


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home."""
    monkeypatch.setenv("TMAC_HOME", str(tmp_path))
    return tmp_path


def logits(model: Path, mmap: bool) -> np.ndarray:
    decoder = load_decoder(PackedModel.open(model), mmap=mmap)
    found = decoder.forward(IDS, KVCache(decoder.config, len(IDS)), logits="all")
    assert found is not None
    return found.copy()


def the_copy(model: Path) -> Path:
    (copy,) = mapped.copies(model)
    return copy


def test_the_same_logits_on_every_instruction_set(isa: str, model: Path) -> None:
    expected = logits(model, mmap=False)
    assert mapped.copies() == []
    for _ in range(2):  # the copy is made, then used
        assert np.array_equal(logits(model, mmap=True), expected)
    assert f"-{isa}." in the_copy(model).name


def test_the_copy_is_made_once_and_holds_for_any_number_of_threads(model: Path, threads: None) -> None:
    packed = PackedModel.open(model)
    names = mapped_names(packed)
    assert mapped.needs_copy(packed, names) > 0
    expected = logits(model, mmap=True)
    assert mapped.needs_copy(packed, names) == 0
    made = the_copy(model).stat()
    kernels.set_threads(kernels.n_threads() + 1)
    assert np.array_equal(logits(model, mmap=True), expected)
    found = the_copy(model).stat()
    assert (found.st_ino, found.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


def test_matrices_in_the_order_of_the_file_need_no_copy(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = PackedModel.open(model)
    names = [name for name in mapped_names(packed) if packed.shape(name).encoding == "planes"]
    assert names
    before = kernels.isa_selected()
    kernels.init("scalar", kernels.n_threads())
    try:
        weights = mapped.MappedWeights(packed, names)
        matrix = weights.matrix(names[0])
        assert weights.copy is None
        assert np.shares_memory(matrix.data, packed.tiles(names[0]))
        shifted = np.concatenate([np.zeros(1, np.uint8), packed.tiles(names[0])])[1:]
        monkeypatch.setattr(packed, "tiles", lambda name: shifted)
        if shifted.ctypes.data % 64:
            with pytest.raises(PackedModelError, match="multiple of 64"):
                weights.matrix(names[0])
    finally:
        kernels.init(before, kernels.n_threads())
    assert not (home / "cache").exists()


def cut(text: bytes) -> bytes:
    return text[: len(text) // 2]


def edit(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """A damage of the JSON at the end."""

    def damaged(text: bytes) -> bytes:
        length = int.from_bytes(text[-16:-8], "little")
        header = json.loads(text[-16 - length : -16])
        change(header)
        new = json.dumps(header).encode()
        return text[: -16 - length] + new + len(new).to_bytes(8, "little") + text[-8:]

    return damaged


def first(field: str, value: object) -> Callable[[bytes], bytes]:
    return edit(lambda header: next(iter(header["matrices"].values())).update({field: value}))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "cut": cut,
    "no magic": lambda text: text[:-8] + bytes(8),
    "length of 2^63": lambda text: text[:-16] + (1 << 63).to_bytes(8, "little") + text[-8:],
    "not JSON": lambda text: text[:-17] + b"?" + text[-16:],
    "a list": lambda text: text[:-16] + b"[]" + (2).to_bytes(8, "little") + text[-8:],
    "deep": lambda text: text[:-16] + b"[" * 99999 + (99999).to_bytes(8, "little") + text[-8:],
    "another version": edit(lambda header: header.update(version="0")),
    "another model": edit(lambda header: header.update(model="0" * 64)),
    "another order": edit(lambda header: header.update(order="0" * 64)),
    "no matrices": edit(lambda header: header.update(matrices={})),
    "matrices a list": edit(lambda header: header.update(matrices=[])),
    "one missing": edit(lambda header: header["matrices"].popitem()),
    "one too many": edit(lambda header: header["matrices"].update(more={"offset": 0})),
    "offset behind the end": first("offset", 1 << 40),
    "offset below 0": first("offset", -64),
    "offset not aligned": first("offset", 32),
    "offset text": first("offset", "0"),
    "offset true": first("offset", True),
    "too short": first("n_bytes", 64),
    "too long": first("n_bytes", 1 << 61),
    "slabs": first("slabs", 1 << 20),
    "slabs of 2^40": first("slabs", 1 << 40),
    "entry a number": edit(lambda header: header["matrices"].update({next(iter(header["matrices"])): 3})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_copy_that_does_not_match_is_made_again(model: Path, damage: Callable[[bytes], bytes]) -> None:
    expected = logits(model, mmap=True)
    copy = the_copy(model)
    sound = copy.read_bytes()
    wrong = damage(sound)
    assert wrong != sound
    copy.write_bytes(wrong)
    packed = PackedModel.open(model)
    assert mapped.needs_copy(packed, mapped_names(packed)) > 0
    assert np.array_equal(logits(model, mmap=True), expected)
    assert copy.read_bytes() == sound


def test_verify_finds_one_flipped_bit(model: Path) -> None:
    logits(model, mmap=True)
    copy = the_copy(model)
    mapped.verify(copy)
    data = bytearray(copy.read_bytes())
    data[1234] ^= 1
    copy.write_bytes(data)
    with pytest.raises(PackedModelError, match="damaged; remove it"):
        mapped.verify(copy)
    copy.write_bytes(b"")
    with pytest.raises(PackedModelError, match="damaged"):
        mapped.verify(copy)


def test_copies_are_found_and_removed(model: Path, home: Path) -> None:
    logits(model, mmap=True)
    other = mapped.directory() / "other-000000000000-avx2.weights"
    other.write_bytes(b"")
    assert set(mapped.copies()) == {the_copy(model), other}
    mapped.remove(the_copy(model))
    assert mapped.copies() == [other]
    assert [path.name for path in mapped.directory().iterdir()] == [other.name]


def test_a_removed_copy_serves_who_holds_it(model: Path) -> None:
    decoder = load_decoder(PackedModel.open(model), mmap=True)
    before = decoder.forward(IDS, KVCache(decoder.config, len(IDS))).copy()
    mapped.remove(the_copy(model))
    assert np.array_equal(decoder.forward(IDS, KVCache(decoder.config, len(IDS))), before)


def test_a_failed_copy_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PackedModel, "tiles", full)
    packed = PackedModel.open(model)
    with pytest.raises(StoreError, match="No space left on device; set TMAC_HOME"):
        mapped.MappedWeights(packed, mapped_names(packed))
    assert [path.suffix for path in mapped.directory().iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(model: Path, home: Path) -> None:
    (home / "cache").write_text("a file where the directory should be")
    with pytest.raises(StoreError, match=r"cannot be made: .*; set TMAC_HOME"):
        logits(model, mmap=True)


def test_only_files_can_be_mapped() -> None:
    with pytest.raises(UsageError, match="mmap needs the files"):
        load_decoder(synthetic_model("qwen2.5-0.5b"), mmap=True)


def test_mapped_weights_need_no_memory_of_their_own(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: _RESERVE + 1)
    with pytest.raises(PackedModelError, match="weights need"):
        logits(model, mmap=False)
    logits(model, mmap=True)


def test_the_python_interface(model: Path) -> None:
    with tmac_llm.load(model) as llm, tmac_llm.load(model, mmap=True) as same:
        assert same.generate("Once", seed=1, max_tokens=8) == llm.generate("Once", seed=1, max_tokens=8)


# Loads with mmap, says so, then waits for a line and answers with a line of what it sees.
CHILD = """
import sys
from pathlib import Path
import numpy as np
from tmac_llm import kernels, mapped
from tmac_llm.load import load_decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.packed.container import PackedModel

kernels.explain_bus_errors("error: the file is gone")
kernels.set_threads(4)
model = Path(sys.argv[1])
decoder = load_decoder(PackedModel.open(model), mmap=True)
for matrix in decoder.matrices:
    matrix.read()
print("loaded", flush=True)
for line in sys.stdin:
    logits = decoder.forward(np.array([1, 5, 9, 2]), KVCache(decoder.config, 4))
    seen, fields = False, {}
    for row in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = row.partition(":")
        if "-" in row.split()[0]:
            seen = row.endswith(mapped.copy_path(model).name)
        elif seen and value.endswith("kB"):
            fields[name] = fields.get(name, 0) + int(value.split()[0])
    print(fields, flush=True)
"""


def start(model: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(model)]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ))


def test_processes_make_one_copy_and_share_its_pages(model: Path) -> None:
    """Rss counts a page in every process, Pss divides it by the processes that map it."""
    children = [start(model) for _ in range(3)]
    try:
        assert [child.stdout.readline() for child in children] == ["loaded\n"] * 3
        (copy,) = mapped.copies(model)
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
            fields = json.loads(child.stdout.readline().replace("'", '"'))
            assert fields["Rss"] * 1024 > 0.9 * copy.stat().st_size
            assert fields["Anonymous"] == fields["Private_Dirty"] == fields["Shared_Dirty"] == 0
            assert fields["Private_Clean"] == 0
            assert fields["Pss"] <= 0.4 * fields["Rss"]
    finally:
        for child in children:
            child.communicate()
    assert [child.returncode for child in children] == [0, 0, 0]


def test_a_file_that_is_cut_short_ends_with_a_line(model: Path) -> None:
    child = start(model)
    assert child.stdout.readline() == "loaded\n"
    os.truncate(the_copy(model), 0)
    _, errors = child.communicate("\n")
    assert (child.returncode, errors) == (1, "error: the file is gone\n")
