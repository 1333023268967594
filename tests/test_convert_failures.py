"""convert: what is refused, and that nothing is left of one that was stopped, killed or out of space."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.numpy
from checkpoints import TERNARY, write_checkpoint
from packed_models import everything, nmse, stored_matrix

from tmac_llm.convert import COPIED, convert
from tmac_llm.errors import CheckpointError, ConvertError, TmacError, UnsupportedError
from tmac_llm.packed.container import PackedModel

# ---- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TERNARY)
@pytest.mark.parametrize("bits", [1, 3, 4, 8, 16])
def test_ternary_weights_are_not_requantised_unless_forced(tmp_path, kind, bits):
    made = write_checkpoint(tmp_path / "source", kind)
    with pytest.raises(ConvertError, match="ternary") as error:
        convert(made.path, tmp_path / "out", bits=bits)
    assert "--force" in str(error.value)
    assert not (tmp_path / "out").exists()
    report = convert(made.path, tmp_path / "out", bits=bits, force=True)
    name = "model.layers.0.mlp.down_proj"
    stored = stored_matrix(PackedModel.open(report.path), name)
    assert report.bits == bits
    bound = {1: 0.3634, 3: 0.03744, 4: 0.01154, 8: 1e-4, 16: 1e-12}  # of Gaussian weights, which are harder
    assert nmse(stored, made.weights[name]) < bound[bits]


@pytest.mark.parametrize("kind", TERNARY)
def test_two_bits_is_what_ternary_weights_have(tmp_path, kind):
    made = write_checkpoint(tmp_path / "source", kind)
    for bits in (None, 2):
        convert(made.path, tmp_path / str(bits), bits=bits)
    contents = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("None", "2")}
    assert len(contents) == 1


GPTQ = {"method": "gptq", "calibration": "a brave frog and a red ball " * 100}


@pytest.mark.parametrize(
    ("options", "instead"),
    [({"bits": 1}, "2 or more"), ({"bits": 2}, "gptq"), ({"bits": 1} | GPTQ, "2 or more")],
)
def test_hopeless_bits_are_refused_for_ordinary_weights(tmp_path, options, instead):
    """With what was measured, and what to take instead; calibrated, 2 bits are not hopeless."""
    made = write_checkpoint(tmp_path / "source")
    with pytest.raises(ConvertError, match="not trained for it") as error:
        convert(made.path, tmp_path / "out", **options)
    for said in (f"--bits {options['bits']}", "perplexity", instead, "--force"):
        assert said in str(error.value)
    assert not (tmp_path / "out").exists()
    assert convert(made.path, tmp_path / "out", force=True, **options).bits == options["bits"]
    assert convert(made.path, tmp_path / "calibrated", bits=2, **GPTQ).bits == 2


def test_an_existing_target_needs_force(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    convert(made.path, tmp_path / "out", bits=3)
    with pytest.raises(ConvertError, match=r"exists; --force"):
        convert(made.path, tmp_path / "out")
    assert PackedModel.open(tmp_path / "out").quantization["bits"] == 3
    convert(made.path, tmp_path / "out", force=True)
    assert PackedModel.open(tmp_path / "out", verify=True).quantization["bits"] == 4
    with pytest.raises(ConvertError, match="not a packed model"):
        convert(made.path, made.path, force=True)


def test_a_target_is_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(ConvertError, match="exists"):
        convert("nobody/nothing", tmp_path)


def test_a_packed_model_is_no_source(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    convert(made.path, tmp_path / "out")
    with pytest.raises(UnsupportedError, match="already a packed"):
        convert(tmp_path / "out", tmp_path / "again")


def test_tokenizers(tmp_path):
    made = write_checkpoint(tmp_path / "source", tokenizer=False)
    with pytest.raises(ConvertError, match=r"no tokenizer\.json, no tokenizer\.model; copy one"):
        convert(made.path, tmp_path / "out")
    (made.path / "tokenizer.json").write_text("{")
    with pytest.raises(ConvertError, match="not a tokenizer"):
        convert(made.path, tmp_path / "out")
    (made.path / "tokenizer.json").unlink()
    (made.path / "tokenizer.model").write_bytes(b"pieces")
    with pytest.raises(ConvertError, match="not a sentencepiece model"):
        convert(made.path, tmp_path / "out")
    pieces = b"\x0a\x09\x0a\x05<unk>\x18\x02\x12\x02\x18\x02"  # one piece of type unknown, model type bpe
    (made.path / "tokenizer.model").write_bytes(pieces)
    convert(made.path, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == pieces


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("generation_config.json", '{"temperature": "hot"}', "temperature"),
        ("generation_config.json", '{"top_p": 7}', "top_p"),
        ("generation_config.json", "{", "not JSON"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "chat template"),
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        ("chat_template.jinja", "{{", "chat template"),
    ],
)
def test_what_load_refuses_convert_refuses_too(tmp_path, name, content, match):
    made = write_checkpoint(tmp_path / "source")
    (made.path / name).write_text(content)
    with pytest.raises(ConvertError, match=match):
        convert(made.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path):
    made = write_checkpoint(tmp_path / "source", vocab_size=261)
    with pytest.raises(ConvertError, match=r"ids up to 261 but the model's vocabulary ends at 260"):
        convert(made.path, tmp_path / "out")
    convert(made.path, tmp_path / "out", force=True)
    exact = write_checkpoint(tmp_path / "exact", vocab_size=262)
    convert(exact.path, tmp_path / "fits")


def test_files_are_copied_byte_by_byte(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    for name in COPIED:
        if not (made.path / name).exists():
            (made.path / name).write_bytes(b"{}\r\n")
    for name in ("README.md", "LICENSE", "pytorch_model.bin"):
        (made.path / name).write_text("not needed")
    convert(made.path, tmp_path / "out")
    for name in COPIED:
        assert (tmp_path / "out" / name).read_bytes() == (made.path / name).read_bytes()
    assert set(everything(tmp_path / "out")) == {
        *COPIED,
        "config.json",
        "model.safetensors",
        "tmac_manifest.json",
    }


def test_a_single_file_takes_its_directory_along(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    convert(made.path / "model.safetensors", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
@pytest.mark.parametrize("bits", [3, 16])
def test_numbers_that_are_none(tmp_path, name, value, bits):
    made = write_checkpoint(tmp_path / "source")
    stored = safetensors.numpy.load_file(made.path / "model.safetensors")
    stored[name].reshape(-1)[-1] = value
    safetensors.numpy.save_file(stored, made.path / "model.safetensors")
    with pytest.raises(CheckpointError, match=name) as error:
        convert(made.path, tmp_path / "out", bits=bits)
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == [f"source{'/' if n else ''}{n}" for n in ["", *everything(made.path)]]


def test_weights_beyond_a_float16_scale_name_their_matrix(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    stored = safetensors.numpy.load_file(made.path / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"][3, :2] = [1e30, -1e30]
    safetensors.numpy.save_file(stored, made.path / "model.safetensors")
    with pytest.raises(ConvertError, match=r"model\.layers\.1\.mlp\.gate_up_proj, rows from 0: "):
        convert(made.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_cut_while_it_is_read(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    weights = made.path / "model.safetensors"

    def cut(name: str, done: int, total: int) -> None:
        os.truncate(weights, 1000)

    with pytest.raises(CheckpointError):
        convert(made.path, tmp_path / "out", progress=cut)
    assert everything(tmp_path) == [f"source{'/' if n else ''}{n}" for n in ["", *everything(made.path)]]


# ---- interruptions ----------------------------------------------------------------------------------------


def test_an_interrupt_leaves_nothing(tmp_path):
    made = write_checkpoint(tmp_path / "source")

    def stop(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(made.path, tmp_path / "deep" / "out", progress=stop)
    assert everything(tmp_path / "deep") == []


# Runs conversions in forked children, each killed at another step: a write, a sync, a rename, a directory.
KILLER = """
import os, signal, sys
from pathlib import Path
from tmac_llm.convert import convert
from tmac_llm.packed import writer

source, out, force = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "force"
steps, limit = 0, None

def counted(function):
    def call(*arguments, **options):
        global steps
        steps += 1
        if steps == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

writer._HashedFile.write = counted(writer._HashedFile.write)
writer.os.fsync = counted(os.fsync)
Path.rename = counted(Path.rename)
Path.mkdir = counted(Path.mkdir)
writer.shutil.rmtree = counted(writer.shutil.rmtree)

point = 0
while True:
    point += 1
    child = os.fork()
    if child == 0:
        limit = point
        target = out / str(point) / "model"
        convert(source, target, bits=8, force=force)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(point, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)
    if not os.WIFSIGNALED(status):
        sys.exit(status)
"""


@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_any_step_leaves_no_model_and_the_next_conversion_cleans_up(tmp_path, force):
    """With force an older model is replaced: it stays, or it is gone, but there is never a damaged one."""
    made = write_checkpoint(tmp_path / "source", num_hidden_layers=1)
    out = tmp_path / "out"
    if force:
        old = convert(made.path, tmp_path / "old", bits=3).path
        for point in range(1, 100):
            shutil.copytree(old, out / str(point) / "model")
    command = [sys.executable, "-c", KILLER, made.path, out, "force" if force else "keep"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    killed = [point for point, reason in lines if int(reason) == signal.SIGKILL]
    assert len(killed) > 20
    bits = set()
    for point in killed:
        parent = out / point
        bits.add(bits_of(parent / "model"))
        for left in parent.iterdir() if parent.exists() else ():
            if left.name != "model":
                with pytest.raises(TmacError):
                    PackedModel.open(left)
    assert bits == ({None, 8, 3} if force else {None, 8})
    for point in killed[:: len(killed) // 4]:
        convert(made.path, out / point / "model", bits=4, force=True)
        assert [path.name for path in (out / point).iterdir()] == ["model"]
        assert bits_of(out / point / "model") == 4


def bits_of(path: Path) -> int | None:
    """Bits of a sound packed model; None where there is nothing."""
    if not path.exists():
        return None
    return PackedModel.open(path, verify=True).quantization["bits"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_in_the_middle(tmp_path):
    """A real disk of 1 MB, which something else fills while the conversion runs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this environment does not allow mounting")
    try:
        made = write_checkpoint(tmp_path / "source", num_hidden_layers=4)

        def fill(name: str, done: int, total: int) -> None:
            with open(disk / "other", "ab") as file:
                file.write(bytes(shutil.disk_usage(disk).free // 2))

        with pytest.raises(ConvertError, match=os.strerror(errno.ENOSPC)) as error:
            convert(made.path, disk / "out", bits=8, progress=fill)
        assert "\n" not in str(error.value)
        assert everything(disk) == ["other"]
        with pytest.raises(ConvertError, match=r"needs .* MB of disk, .* MB are free"):
            convert(made.path, disk / "out", bits=8)
        assert everything(disk) == ["other"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
