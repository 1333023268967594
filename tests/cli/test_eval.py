"""The verb `eval`, `convert --check`, and that a kernel with one wrong instruction does not go unnoticed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tmac_llm.convert import convert
from tmac_llm.generation import PREFILL_CHUNK

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-bitnet"
TEXT = "".join(f"Once upon a time there were {n} brave frogs and a red ball.\n" for n in range(80))
SMALL = ("--context", "64", "--chunks", "4", "-t", "1")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "frogs.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in float, which runs without lookup kernels."""
    out = tmp_path_factory.mktemp("reference") / "tiny-float"
    convert(TINY, out, bits=16, head_bits=16, force=True)
    return out


def test_perplexity(run, packed: Path, text: Path) -> None:
    done = run("eval", str(packed), "--text", str(text), *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "text", "perplexity"]
    assert "124 tokens scored in 4 chunks of 64" in lines[1]
    facts = json.loads(run("eval", str(packed), "--text", str(text), *SMALL, "--json").stdout)
    assert facts["comparison"] is None
    assert (facts["context"], facts["n_windows"], facts["n_scored"]) == (64, 4, 124)
    shown = f"{facts['perplexity']['value']:.5f} ± {facts['perplexity']['error']:.5f}"
    assert lines[2].split(maxsplit=1)[1] == shown
    whole = json.loads(run("eval", str(packed), "-f", str(text), "-c", "64", "--json", "-q").stdout)
    assert whole["n_windows"] > 4


def test_comparison(run, packed: Path, reference: Path, text: Path) -> None:
    arguments = ("eval", str(packed), "--text", str(text), *SMALL, "--reference", str(reference))
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        "reference",
        "perplexity",
        "ln ratio",
        "KL divergence",
        "median",
        "true token",
        "same top token",
    ):
        assert word in done.stdout
    got = json.loads(run(*arguments, "--json").stdout)["comparison"]
    assert 0 < got["kl_median"] < got["kl"]["value"] + got["kl_p99"] < 2 * got["kl_max"] < 0.1
    assert got["top1_agreement"]["value"] > 0.85
    rounded = json.loads(run(*arguments, "--json", "--tables", "int8").stdout)["comparison"]
    assert rounded == got  # products of ternary weights are exact whatever tables are asked for


def test_the_price_of_an_int8_cache(run, packed: Path, text: Path) -> None:
    """Beside itself a model diverges by what the cache rounds, and not at all with float32."""
    arguments = ("eval", str(packed), "--text", str(text), *SMALL, "--reference", str(packed), "--json")
    same, rounded = (
        json.loads(run(*arguments, "--cache-type", kind).stdout)["comparison"] for kind in ("f32", "int8")
    )
    assert same["kl_max"] == 0
    assert 0 < rounded["kl"]["value"] < 0.05


def test_mistakes_get_one_line(run, packed: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"frogs \xe9t\xe9 " * 100)
    (tmp_path / "short.txt").write_text("a brave frog")
    base = ("eval", str(packed), "--text")
    for arguments, code, says in (
        ((*base, str(tmp_path / "missing.txt")), 2, "missing.txt: No such file"),
        ((*base, str(tmp_path / "latin1.txt")), 2, "not UTF-8 at byte 6"),
        ((*base, str(tmp_path / "short.txt")), 2, "has 5 tokens, a context of 512 needs at least 1024"),
        ((*base, str(text), "-c", "4096"), 2, "a context of 4096 needs at least 8192"),
        ((*base, str(text), "-c", "64", "--chunks", "999"), 2, "--chunks 999: the text has "),
        ((*base, str(text), "-c", "64", "--reference", "nowhere"), 1, "nowhere"),
        ((*base, str(text), "-c", "64", "--reference", str(TINY)), 1, "tmac_manifest.json"),
        ((*base, str(text), "-c", "64", "--tables", "float"), 2, "expected int8 or exact"),
        (("convert", str(TINY), "--check", str(tmp_path / "missing.txt")), 2, "missing.txt: No such file"),
        (("convert", str(TINY), "--check", str(text), "--dry-run"), 2, "--dry-run"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert says in done.stderr


def test_another_tokenizer_is_refused(
    run, packed: Path, golden_dir: Path, text: Path, tmp_path: Path
) -> None:
    convert(golden_dir / "qwen2", tmp_path / "other", bits=16)
    done = run("eval", str(packed), "-f", str(text), "-c", "64", "--reference", str(tmp_path / "other"))
    assert done.returncode == 1
    assert "different tokenizers" in done.stderr


def price(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The lines of `convert --check`, by their names."""
    assert done.returncode == 0, done.stderr
    return {line[:16].strip(): line[16:] for line in done.stderr.splitlines()}


def test_convert_tells_the_price(run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "tiny"
    done = run("convert", str(TINY), str(out), "--head-bits", "4", "--check", str(text))
    told = price(done)
    assert float(told["KL divergence"].split()[0]) > 0.001
    assert "%" in told["same top token"]
    assert done.stdout == f"{out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]  # the float reference is gone
    exact = price(run("convert", str(TINY), str(tmp_path / "16"), "--head-bits", "16", "--check", str(text)))
    assert "perplexity" in exact
    assert "KL divergence" not in exact  # nothing was rounded


def test_the_price_falls_with_the_bits(run, golden_dir: Path, tmp_path: Path, text: Path) -> None:
    found = {}
    for bits in ("8", "4", "2"):
        arguments = (
            "convert",
            str(golden_dir / "qwen3"),
            str(tmp_path / bits),
            "--bits",
            bits,
            "-g",
            "32",
            "--force",
        )
        found[bits] = float(price(run(*arguments, "--check", str(text)))["KL divergence"].split()[0])
    assert 0 < 3 * found["8"] < found["4"] < found["2"] / 3


DECODING = "decoding leaves out half of the columns"
# Name: (file of csrc/arch/scalar, what is there, what the compiler sees instead).
MUTANTS = {
    "a sum of tables became a difference": (
        "ternary_gemm.c",
        "EXACT_SPLIT * hi[code & 0x7f] + lo[code & 0x7f]",
        "EXACT_SPLIT * hi[code & 0x7f] - lo[code & 0x7f]",
    ),
    "a ternary sign in the wrong bit": ("ternary_gemm.c", "code & 0x80 ?", "code & 0x40 ?"),
    "one bit of an index is masked away": ("scalar.h", "vector[i] >> shift & 15", "vector[i] >> shift & 7"),
    "a sign in the int8 tables": ("lut_build.c", "v & 8 ? group[3]", "v & 4 ? group[3]"),
    "the constant of a row is left out": ("scalar.h", "row_constant(shape, tail, r) * sum)", "sum)"),
    DECODING: ("lut_gemv.c", "tmac_n_segments(shape), y", "tmac_n_segments(shape) / 2, y"),
}

RUN_WITH = """
import importlib.util, sys
import tmac_llm
spec = importlib.util.spec_from_file_location("tmac_llm._native", sys.argv.pop(1))
tmac_llm._native = sys.modules["tmac_llm._native"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tmac_llm._native)
from tmac_llm.cli import main
main()
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory):
    """build(mutant) -> a native module of the plain C kernels alone, with one change, or none."""
    beside = Path(sys.executable).parent / "cmake"
    cmake = str(beside) if beside.exists() else shutil.which("cmake")
    if not cmake or not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("needs cmake and a C compiler")
    top = tmp_path_factory.mktemp("build")
    source = shutil.copytree(
        ROOT / "csrc", top / "csrc", ignore=shutil.ignore_patterns("avx*", "neon", "tests")
    )
    subprocess.run(
        [cmake, "-S", source, "-B", top / "out", "-DTMAC_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"],
        check=True,
        capture_output=True,
    )

    def make(mutant: str | None) -> Path:
        if mutant:
            name, old, new = MUTANTS[mutant]
            file = source / "arch" / "scalar" / name
            sound = file.read_text()
            assert sound.count(old) == 1, f"{name}: {old!r} is not there once; take another line"
            file.write_text(sound.replace(old, new))
        try:
            subprocess.run([cmake, "--build", top / "out"], check=True, capture_output=True)
        finally:
            if mutant:
                file.write_text(sound)
        (module,) = (top / "out").glob("_native*.so")
        return Path(shutil.copy(module, tmp_path_factory.mktemp("module")))

    return make


def test_a_kernel_with_one_wrong_instruction_is_caught(build, packed, reference, text, home) -> None:
    def compare(mutant: str | None) -> dict:
        batch = ("--batch", "1") if mutant == DECODING else ()
        arguments = ("eval", packed, "--text", text, "--reference", reference, *SMALL, *batch, "--json")
        done = subprocess.run(
            [sys.executable, "-c", RUN_WITH, str(build(mutant)), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=True,
            env={"TMAC_HOME": str(home), "TMAC_ISA": "scalar"},
        )
        return json.loads(done.stdout)["comparison"]

    sound = compare(None)
    assert sound["top1_agreement"]["value"] > 0.85
    for mutant in MUTANTS:
        broken = compare(mutant)
        assert broken["top1_agreement"]["value"] < 0.6, mutant
        assert broken["kl"]["value"] > 10 * sound["kl"]["value"], mutant


def test_help_states_the_protocol(run) -> None:
    shown = " ".join(run("eval", "--help").stdout.split())
    for said in ("llama.cpp", "second half", "bos", "empty cache", "TMAC_REFERENCE", "--chunks"):
        assert said in shown
    assert f"[default: {PREFILL_CHUNK}; x>=1]" in shown
    assert "--check" in run("convert", "--help").stdout
    assert "  eval " in run("--help").stdout
