"""convert with method gptq: what is stored, that a killed conversion goes on to the same bytes, what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TERNARY, write_checkpoint
from packed_models import everything, stored_linear

from tmac_llm import kernels
from tmac_llm.calibration import LayerCalibration
from tmac_llm.checkpoint import open_checkpoint
from tmac_llm.convert import convert
from tmac_llm.convert_gptq import calibration_windows
from tmac_llm.errors import ConvertError, UsageError
from tmac_llm.evaluation import encode, evaluate, windows
from tmac_llm.load import load_decoder
from tmac_llm.packed import unfinished
from tmac_llm.packed.container import PackedModel
from tmac_llm.packed.unfinished import Unfinished
from tmac_llm.tokenizer import Tokenizer

LLAMA = Path(__file__).parent / "data" / "tiny-llama"
TEXT = "".join(f"Once upon a time there were {n} brave frogs and a red ball.\n" for n in range(200))
GPTQ = {"method": "gptq", "calibration": TEXT, "calibration_tokens": 2048, "group_size": 32}


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in everything(path)}


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_kind_and_every_number_of_bits(tmp_path, kind, bits):
    made = write_checkpoint(tmp_path / "source", kind, dtype="f32" if kind == "llama" else "bf16")
    report = convert(made.path, tmp_path / "out", bits=bits, symmetric=bits == 3, force=True, **GPTQ)
    model = PackedModel.open(report.path, verify=True)
    assert everything(tmp_path) == sorted({*everything(tmp_path), "out"})
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
    assert model.quantization["method"] == "gptq"
    shape = model.shape("model.layers.1.mlp.down_proj")
    assert (shape.bits, shape.group_size, shape.has_zeros) == (bits, 32, bits != 3)
    assert report.output.gain > 0.3
    assert not report.is_exact
    assert report.gain is None
    for name, expected in made.weights.items():
        if not name.startswith("model.layers"):
            plain = convert(
                made.path, tmp_path / "plain", bits=bits, group_size=32, force=True, symmetric=bits == 3
            )
            assert np.array_equal(
                stored_linear(model, name), stored_linear(PackedModel.open(plain.path), name)
            )
            continue
        if bits == 8:
            found = stored_linear(model, name)
            assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_parts_of_different_types_are_quantised_each(tmp_path):
    import safetensors.numpy

    made = write_checkpoint(tmp_path / "source", dtype="f32")
    stored = safetensors.numpy.load_file(made.path / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj"
    stored[f"{name}.weight"] = stored[f"{name}.weight"].astype(np.float16)
    safetensors.numpy.save_file(stored, made.path / "model.safetensors")
    report = convert(made.path, tmp_path / "out", bits=4, **GPTQ)
    model = PackedModel.open(report.path)
    assert model.shape(name).bits == 4
    found, expected = stored_linear(model, name), made.weights[name]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


def test_the_same_bytes_every_time_and_for_every_number_of_threads(tmp_path, threads, monkeypatch):
    monkeypatch.setattr("tmac_llm.gptq.ROWS", 64)  # several portions
    made = write_checkpoint(tmp_path / "source", intermediate_size=200)
    for n in (1, 2, 3):
        kernels.set_threads(n)
        convert(made.path, tmp_path / str(n), bits=2, **GPTQ)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_progress_goes_up_to_the_end(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    calls = []
    report = convert(made.path, tmp_path / "out", bits=3, progress=lambda *call: calls.append(call), **GPTQ)
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert calls[-1][1:] == (report.bytes_before, report.bytes_before)
    assert len(set(done)) > 40
    assert {call[0] for call in calls} >= {m.name for m in report.matrices if "layers" in m.name}


def test_windows_are_spread_over_the_text():
    tokenizer = Tokenizer.from_dir(LLAMA)
    config = open_checkpoint(LLAMA).config
    text = (LLAMA / "stories.txt").read_text()
    ids, bos = encode(tokenizer, text)
    every = windows(ids, 512, bos)
    assert len(every) > 40
    found = calibration_windows(tokenizer, text, 10 * 512 + 100, config)
    assert np.array_equal(found, every[np.arange(10) * len(every) // 10])
    assert np.array_equal(calibration_windows(tokenizer, text, 1 << 30, config), every)
    assert len(calibration_windows(tokenizer, text, 1, config)) == 1
    talk = "<|user|>Hello frog<|end|>" * 300
    assert np.count_nonzero(calibration_windows(tokenizer, talk, 1 << 30, config)[:, 1:] == 1) > 200


@pytest.mark.parametrize("head_bits", [2, 16])
def test_both_streams_start_from_the_embedding(tmp_path, monkeypatch, head_bits):
    """As the packed model has it, and as the checkpoint has it; whatever chunks it is read in."""
    monkeypatch.setattr("tmac_llm.quantize.CHUNK_WEIGHTS", 64 * 64)
    made = write_checkpoint(tmp_path / "source")
    seen = []

    class Watched(LayerCalibration):
        def __init__(self, layer, linears, quantized, float_, inputs):
            seen.append((quantized.copy(), float_.copy()))
            super().__init__(layer, linears, quantized, float_, inputs)

    monkeypatch.setattr("tmac_llm.convert_gptq.LayerCalibration", Watched)
    model = PackedModel.open(convert(made.path, tmp_path / "out", bits=2, head_bits=head_bits, **GPTQ).path)
    cut = calibration_windows(Tokenizer.from_dir(made.path), TEXT, 2048, model.config)
    quantized, of_float = seen[0]
    assert np.array_equal(of_float, made.weights["model.embed_tokens"][cut])
    assert np.array_equal(quantized, stored_linear(model, "model.embed_tokens")[cut])
    assert np.array_equal(quantized, of_float) == (head_bits == 16)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def killed_after(monkeypatch):
    """killed_after(n): the n-th step that is saved is the last thing that happens."""

    def arrange(n: int) -> None:
        save, count = Unfinished.save, 0

        def last(self, *arguments, **options):
            nonlocal count
            save(self, *arguments, **options)
            count += 1
            if count == n:
                raise Killed

        monkeypatch.setattr(Unfinished, "save", last)

    yield arrange
    monkeypatch.undo()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path, killed_after, monkeypatch, n):
    made = write_checkpoint(tmp_path / "source", num_hidden_layers=3)
    whole = convert(made.path, tmp_path / "whole", bits=2, **GPTQ)
    killed_after(n)
    with pytest.raises(Killed):
        convert(made.path, tmp_path / "out", bits=2, **GPTQ)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    state = unfinished.directory(tmp_path / "out")
    with pytest.raises(Exception, match="tmac_manifest"):
        PackedModel.open(state)
    shares = []
    again = convert(
        made.path, tmp_path / "out", bits=2, progress=lambda _, a, b: shares.append(a / b), **GPTQ
    )
    assert shares[0] == pytest.approx(n / 3 if n == 1 else 1 / 3, abs=0.05)
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")
    assert again.output == whole.output
    assert not state.exists()


def test_what_was_left_is_not_taken_for_something_else(tmp_path, killed_after, monkeypatch):
    made = write_checkpoint(tmp_path / "source")
    killed_after(1)
    with pytest.raises(Killed):
        convert(made.path, tmp_path / "out", bits=2, **GPTQ)
    monkeypatch.undo()
    for change, says in (
        ({"bits": 3}, "another bits"),
        ({"group_size": 64}, "another group size"),
        ({"head_bits": 4}, "another head bits"),
        ({"symmetric": True}, "another symmetric"),
        ({"calibration": TEXT.replace("frogs", "toads")}, "another calibration text"),
        ({"calibration_tokens": 1024}, "another calibration shape"),
    ):
        with pytest.raises(ConvertError, match=says):
            convert(made.path, tmp_path / "out", **({"bits": 2} | GPTQ | change))
    weights = made.path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ConvertError, match="another files"):
        convert(made.path, tmp_path / "out", bits=2, **GPTQ)
    forced = convert(made.path, tmp_path / "out", bits=2, force=True, **GPTQ)
    assert contents(forced.path) == contents(convert(made.path, tmp_path / "new", bits=2, **GPTQ).path) | {
        name: data for name, data in contents(forced.path).items() if name in ("config.json",)
    }


def test_an_interrupt_in_the_first_layer_leaves_nothing(tmp_path):
    made = write_checkpoint(tmp_path / "source")

    def stop(name: str, done: int, total: int) -> None:
        if done > total // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(made.path, tmp_path / "deep" / "out", bits=2, progress=stop, **GPTQ)
    assert everything(tmp_path / "deep") == []


@pytest.mark.parametrize("kind", TERNARY)
def test_ternary_weights_are_refused(tmp_path, kind):
    made = write_checkpoint(tmp_path / "source", kind)
    with pytest.raises(ConvertError, match="gptq is for float weights"):
        convert(made.path, tmp_path / "out", **GPTQ)
    assert everything(tmp_path) == [f"source{'/' if n else ''}{n}" for n in ["", *everything(made.path)]]


def test_mistakes(tmp_path):
    made = write_checkpoint(tmp_path / "source")
    for arguments, error, says in (
        ({"method": "gptq"}, UsageError, "needs a calibration text"),
        ({"calibration": TEXT}, UsageError, "belongs to the method gptq"),
        ({"method": "awq"}, UsageError, "method awq: expected one of search, gptq"),
        (GPTQ | {"calibration": "a few words"}, UsageError, "needs at least"),
        (GPTQ | {"calibration_tokens": 0}, UsageError, "calibration_tokens 0"),
        (GPTQ | {"bits": 16}, ConvertError, "16 bits"),
    ):
        with pytest.raises(error, match=says):
            convert(made.path, tmp_path / "out", **arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
    assert convert(made.path, tmp_path / "out", dry_run=True, bits=2, **GPTQ).output is None
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_the_store_tells_the_methods_apart(tmp_path, monkeypatch):
    from tmac_llm import store

    monkeypatch.setenv("TMAC_HOME", str(tmp_path / "home"))
    made = write_checkpoint(tmp_path / "Some Model")
    convert(made.path, bits=2, group_size=32, force=True)
    report = convert(made.path, bits=2, **GPTQ)
    assert report.path.name == "Some--Model-2bit-g32-gptq"
    assert {entry.name for entry in store.matches("Some Model")} == {
        "Some--Model-2bit-g32",
        "Some--Model-2bit-g32-gptq",
    }


MEMORY = """
import resource, sys
from pathlib import Path
from tmac_llm.convert import convert
text = Path(sys.argv[3]).read_text()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2], bits=4, method="gptq", calibration=text, calibration_tokens=512)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_layers(tmp_path):
    """Megabytes beyond the start, for 2 and 10 layers of 3.1 MB of float32 each."""
    (tmp_path / "text").write_text(TEXT)
    found = []
    for layers in (2, 12):
        made = write_checkpoint(
            tmp_path / f"m{layers}",
            num_hidden_layers=layers,
            hidden_size=256,
            intermediate_size=768,
            head_dim=64,
        )
        command = [sys.executable, "-c", MEMORY, made.path, tmp_path / f"out{layers}", tmp_path / "text"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(int(done.stdout))
    assert found[1] < found[0] + 20  # ten layers more are 31 MB


@pytest.fixture(scope="module")
def llama_text() -> tuple[str, str]:
    """Stories to calibrate on, and others to measure on."""
    text = (LLAMA / "stories.txt").read_text()
    return text[: len(text) // 2], text[len(text) // 2 :]


@pytest.mark.parametrize("bits", [2, 3])
def test_it_closes_half_of_the_gap_to_float(tmp_path, llama_text, bits):
    """Perplexity of a trained model on a text that it was not calibrated on, against the scale search."""
    calibration, held_out = llama_text
    ids, bos = encode(Tokenizer.from_dir(LLAMA), held_out)
    cut = windows(ids, 256, bos)
    found = {}
    for name, options in (
        ("float", {"bits": 16}),
        ("search", {"bits": bits}),
        ("gptq", {"bits": bits, "method": "gptq", "calibration": calibration}),
    ):
        model = PackedModel.open(convert(LLAMA, tmp_path / name, force=True, **options).path)
        found[name] = evaluate(load_decoder(model), cut).perplexity.value
    assert found["search"] > 1.02 * found["float"]
    assert found["gptq"] < (found["search"] + found["float"]) / 2
