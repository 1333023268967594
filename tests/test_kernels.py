"""Products through the kernel wall, against numpy, on every instruction set; instruction sets and threads."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_parts import GROUP_SIZES, Array, dequantized, nmse, parts, random_matrix

from tmac_llm import kernels, machine
from tmac_llm.errors import KernelError, UsageError
from tmac_llm.kernels import Encoding, Matrix, MatrixShape

ALL_BITS = range(1, 9)


# ---- products --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", ["int8", "exact"])
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_matmul_against_float64(
    isa: str, bits: int, group_size: int, has_zeros: bool, tables: Any, rng: np.random.Generator
) -> None:
    """Rounding tables (or activations) to int8 costs at most 1.2e-4 of the energy of the addends."""
    matrix, weights = random_matrix(MatrixShape(67, 300, bits, group_size, has_zeros, 2 ** (bits - 1)), rng)
    for n in (1, 3, 65) if isa != "scalar" else (1, 3):
        x = rng.normal(size=(n, 300)).astype(np.float32)
        error = ((matrix.matmul(x, tables=tables) - x @ weights.T) ** 2).sum()
        assert error <= 1.2e-4 * (x.astype(np.float64) ** 2 @ (weights**2).T).sum()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_nmse_of_a_linear_on_gaussian_activations(isa: str, bits: int, rng: np.random.Generator) -> None:
    """The budget of int8 tables for a linear layer: NMSE <= 1e-4 at every bit width.

    Measured (512 x 1024 Gaussian weights with zero points, 64 tokens), for 1, 2, 3, 4 .. 8 bits: 3.5, 4.2,
    4.4, 4.3 e-5 with groups of 32, 4.1, 5.0, 5.6, 5.7 e-5 with 64, 4.7, 5.8, 6.6, 7.2 e-5 with 128.
    """
    w = rng.normal(size=(128, 1024)).astype(np.float32)
    found = kernels.quantize(w, bits, 128, zeros=True)
    shape = MatrixShape(128, 1024, bits, 128, True, 0)
    weights = dequantized(shape, found.codes, found.scales, found.zeros)
    matrix = Matrix(shape, kernels.pack(shape, found.codes, found.scales, found.zeros))
    x = rng.normal(size=(4, 1024)).astype(np.float32)
    assert nmse(matrix.matmul(x), x @ weights.T) <= 1e-4


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_error_of_fast_aggregation(isa: str, bits: int, group_size: int, rng: np.random.Generator) -> None:
    """Averages of four: NMSE <= 3e-4 on Gaussian activations, no bias, and no products of another kind."""
    if not kernels.has_fast_aggregation():
        pytest.skip(f"{isa} has no fast aggregation")
    matrix, weights = random_matrix(MatrixShape(128, 1024, bits, group_size, False, (2**bits - 1) / 2), rng)
    x = rng.normal(size=(3, 1024)).astype(np.float32)
    expected, fast = x @ weights.T, matrix.matmul(x, tables="fast")
    assert nmse(matrix.matmul(x), expected) < nmse(fast, expected) <= 3e-4
    error = fast - expected
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(error.size)
    np.testing.assert_array_equal(matrix.matmul(x[1], tables="fast"), fast[1])


def test_fast_aggregation_is_refused_where_there_is_no_kernel(rng: np.random.Generator) -> None:
    matrix, _ = random_matrix(MatrixShape(64, 128, 2, 32, True, 0), rng)
    matrix._has_fast = False
    with pytest.raises(KernelError, match='tables "fast": the instruction set of this matrix has no kernel'):
        matrix.matmul(np.ones(128, np.float32), tables="fast")


def integer_recipe(
    shape: MatrixShape, codes: Array, scales: Array, zeros: Array | None, x: Array, x_scales: Array
) -> Array:
    """Exact tables, stated in integers and float32 as csrc/kernels.h orders them: y (n, m) float32.

    x: int8 (n, k), group_size 0: y = scale * (dot / 2 + c * sum) * x_scale; what is fused there is exact in
    float64 here, for these sizes.
    """
    centre = np.float32((2**shape.bits - 1) / 2)
    constant = centre - (np.float32(shape.zero) if zeros is None else zeros.astype(np.float32))
    dot = x.astype(np.int64) @ (2 * codes.astype(np.int64) - (2**shape.bits - 1)).T
    total = x.astype(np.int64).sum(1, keepdims=True).astype(np.float64)
    inner = (np.broadcast_to(constant, (shape.m,)) * total + dot * 0.5).astype(np.float32)
    return np.asarray((scales * inner) * x_scales[:, None], np.float32)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize("fill", ["random", "lowest", "highest"])
def test_exact_tables_equal_the_integer_recipe(
    isa: str, bits: int, has_zeros: bool, fill: str, rng: np.random.Generator
) -> None:
    """int8 activations, a scale per row: every bit of the result, also at the extremes."""
    shape = MatrixShape(70, 290, bits, 0, has_zeros, 1.0)
    codes, scales, zeros = parts(shape, rng)
    if zeros is not None:
        zeros = np.rint(zeros)
    matrix = Matrix(shape, kernels.pack(shape, codes, scales, zeros))
    x = rng.integers(-128, 128, (5, 290)).astype(np.int8)
    if fill != "random":
        x[:] = -128 if fill == "lowest" else 127
    x_scales = rng.uniform(0.001, 0.1, 5).astype(np.float32)
    expected = integer_recipe(shape, codes, scales, zeros, x, x_scales)
    np.testing.assert_array_equal(matrix.matmul(x, tables="exact", x_scales=x_scales), expected)
    np.testing.assert_array_equal(matrix.matmul(x[0], tables="exact", x_scales=x_scales[:1]), expected[0])


def test_exact_tables_quantise_float_activations_per_token(isa: str, rng: np.random.Generator) -> None:
    """amax / 127 per token, rounded half to even, as BitNet's int8 activations."""
    matrix, _ = random_matrix(MatrixShape(70, 290, 2, 0, False, 1.0), rng)
    x = rng.normal(size=(3, 290)).astype(np.float32)
    amax = np.maximum(np.abs(x).max(1), np.float32(1e-5))
    q = np.clip(np.rint(x * (np.float32(127) / amax)[:, None]), -128, 127).astype(np.int8)
    np.testing.assert_array_equal(
        matrix.matmul(x, tables="exact"), matrix.matmul(q, tables="exact", x_scales=amax / np.float32(127))
    )


@pytest.mark.parametrize("encoding", ["planes", "ternary"])
def test_memory_size_is_what_a_matrix_holds(isa: str, encoding: Encoding) -> None:
    shape = MatrixShape(200, 1230, 2, 0, False, 1.0, encoding)
    matrix = Matrix(shape, np.zeros(shape.packed_size, np.uint8))
    assert matrix.n_bytes == kernels.memory_size(shape)
    if encoding == "ternary":  # a float32 scale per row, padding to 256 rows and to 1248 columns
        assert matrix.n_bytes <= 256 * (1248 * 5 / 3 / 8 + 4)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("fill", ["random", "lowest", "highest"])
def test_ternary_products_are_integer_ones(isa: str, fill: str, rng: np.random.Generator) -> None:
    """Five codes in a byte: every bit of the integer recipe, and of two planes, whatever tables are asked for."""
    shape = MatrixShape(330, 290, 2, 0, False, 1.0, "ternary")
    planes = replace(shape, encoding="planes")
    codes = rng.integers(0, 3, (330, 290), dtype=np.uint8)
    scales = rng.normal(size=330).astype(np.float32)
    x = rng.integers(-128, 128, (65, 290)).astype(np.int8)
    if fill != "random":
        codes[:100] = 0
        codes[100:200] = 2
        x[:] = -128 if fill == "lowest" else 127
    x_scales = rng.uniform(0.001, 0.1, 65).astype(np.float32)
    expected = integer_recipe(shape, codes, scales, None, x, x_scales)
    for n_threads in (1, 2, 3):
        kernels.init(isa, n_threads)
        matrix = Matrix(shape, kernels.pack(shape, codes, scales))
        two = Matrix(planes, kernels.pack(planes, codes, scales))
        for n in (1, 2, 20, 65) if isa != "scalar" else (1, 2):
            found = matrix.matmul(x[:n], tables="exact", x_scales=x_scales[:n])
            np.testing.assert_array_equal(found, expected[:n])
            floats = rng.normal(size=(n, 290)).astype(np.float32)
            exact = two.matmul(floats, tables="exact")
            np.testing.assert_array_equal(matrix.matmul(floats, tables="exact"), exact)
            np.testing.assert_array_equal(matrix.matmul(floats), exact)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("tables", ["int8", "exact", "fast"])
def test_same_bits_everywhere(tables: Any, rng: np.random.Generator) -> None:
    """Every instruction set and number of threads, one token and many, returns the same floats."""
    shape = MatrixShape(330, 500, 3, 64, True, 0)
    made, x = kernels.pack(shape, *parts(shape, rng)), rng.normal(size=(70, 500)).astype(np.float32)
    results = {}
    before = kernels.isa_selected()
    for info in kernels.isas():
        for n in (1, 2, 3):
            if info.supported:
                kernels.init(info.name, n)
                if tables == "fast" and not kernels.has_fast_aggregation():
                    continue
                results[info.name, n] = Matrix(shape, made).matmul(x, tables=tables)
    kernels.init(before)
    first = next(iter(results.values()))
    for key, result in results.items():
        np.testing.assert_array_equal(result, first, err_msg=str(key))
    kernels.init(next(iter(results))[0])
    one_by_one = np.stack([Matrix(shape, made).matmul(row, tables=tables) for row in x])
    kernels.init(before)
    np.testing.assert_array_equal(one_by_one, first)


def test_float16_activations_and_strided_rows(rng: np.random.Generator) -> None:
    matrix, _ = random_matrix(MatrixShape(20, 100, 4, 32, True, 0), rng)
    x = rng.normal(size=(6, 128)).astype(np.float16)
    wide = np.full((6, 50), 7, np.float32)
    matrix.matmul(x[::2, :100], out=wide[::2, :20])
    np.testing.assert_array_equal(wide[::2, :20], matrix.matmul(x[::2, :100].astype(np.float32)))
    assert (wide[1::2] == 7).all()
    assert (wide[:, 20:] == 7).all()


def test_bind_reads_its_arrays_when_called(rng: np.random.Generator) -> None:
    matrix, _ = random_matrix(MatrixShape(20, 100, 2, 32, True, 0), rng)
    x, out = np.zeros(100, np.float32), np.empty(20, np.float32)
    call = matrix.bind(x, out)
    for _ in range(3):
        x[:] = rng.normal(size=100)
        call()
        np.testing.assert_array_equal(out, matrix.matmul(x))
    expected = out.copy()
    matrix.close()  # the bound call keeps the memory
    out[:] = 0
    call()
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(KernelError, match="closed"):
        matrix.matmul(x)


def test_a_bound_call_reads_ahead_in_a_matrix_that_may_be_closed(rng: np.random.Generator) -> None:
    first, _ = random_matrix(MatrixShape(200, 100, 2, 32, True, 0), rng)
    other, _ = random_matrix(MatrixShape(100_000, 100, 2, 32, True, 0), rng)
    x, out = rng.normal(size=100).astype(np.float32), np.empty(200, np.float32)
    expected = first.matmul(x)
    first.precede(other)
    call = first.bind(x, out)
    other.close()
    del other
    for _ in range(20):
        out[:] = 0
        call()
        np.testing.assert_array_equal(out, expected)
    closed, _ = random_matrix(MatrixShape(20, 100, 2, 32, True, 0), rng)
    closed.close()
    with pytest.raises(KernelError, match="closed"):
        first.precede(closed)


def test_matrix_keeps_no_reference_to_tiles(rng: np.random.Generator) -> None:
    shape = MatrixShape(20, 100, 2, 32, True, 0)
    tiles = kernels.pack(shape, *parts(shape, rng))
    matrix, x = Matrix(shape, tiles), rng.normal(size=100).astype(np.float32)
    before = matrix.matmul(x)
    tiles[:] = 0xFF
    np.testing.assert_array_equal(matrix.matmul(x), before)
    assert matrix.n_bytes == shape.packed_size
    assert 0 <= matrix.huge_bytes <= matrix.n_bytes


def test_matmul_refuses(rng: np.random.Generator) -> None:
    matrix, _ = random_matrix(MatrixShape(20, 100, 2, 32, True, 0), rng)
    x, read_only = np.ones((2, 100), np.float32), np.empty((2, 20), np.float32)
    read_only.flags.writeable = False
    whole = np.zeros(300, np.float32)
    for arguments, message in (
        (
            {"x": x[:, :99]},
            r"x: expected float32 or float16 or int8 \(n, 100\) or \(100,\), found float32 \(2, 99\)",
        ),
        ({"x": x.astype(np.float64)}, "found float64"),
        ({"x": [1.0] * 100, "out": None}, "x: expected a numpy array, found list"),
        ({"x": x[:0]}, "at least one token"),
        ({"x": np.ones((100, 2), np.float32).T}, "contiguous"),
        ({"x": x, "out": np.empty((3, 20), np.float32)}, r"out: expected shape \(2, 20\)"),
        ({"x": x, "out": np.empty((2, 20))}, "out: expected float32"),
        ({"x": x, "out": read_only}, "writeable"),
        ({"x": whole[:100], "out": whole[90:110]}, "overlap"),
        ({"x": x, "tables": "int4"}, "tables: expected"),
        ({"x": x.astype(np.int8)}, 'int8 x needs tables="exact"'),
        ({"x": x, "tables": "exact", "x_scales": np.ones(2, np.float32)}, "x_scales belong to int8"),
        (
            {"x": x.astype(np.int8), "tables": "exact", "x_scales": np.ones(3, np.float32)},
            r"x_scales: expected",
        ),
    ):
        with pytest.raises(KernelError, match=message):
            matrix.matmul(**arguments)  # type: ignore[arg-type]
    for tables in ("int8", "exact"):
        for bad in (np.nan, np.inf):
            x[1, 99] = bad
            with pytest.raises(KernelError, match="matmul: NaN or infinity"):
                matrix.matmul(x, tables=tables)  # type: ignore[arg-type]


# ---- instruction set and threads -------------------------------------------------------------------------


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SELECTED = "from tmac_llm import kernels; print(kernels.isa_selected(), kernels.n_threads())"


def test_isa_and_threads_from_the_environment(isa: str) -> None:
    assert run_python(SELECTED, TMAC_ISA=isa, TMAC_THREADS="3").stdout == f"{isa} 3\n"


def test_best_supported_isa_is_the_default() -> None:
    best = next(info.name for info in kernels.isas() if info.supported)
    assert run_python(SELECTED, TMAC_ISA="", TMAC_THREADS="").stdout.split()[0] == best


def test_unknown_isa_is_an_error_that_lists_what_there_is() -> None:
    result = run_python(SELECTED, TMAC_ISA="nope")
    assert result.returncode
    message = result.stderr.splitlines()[-1]
    assert message.startswith(
        "tmac_llm.errors.KernelError: TMAC_ISA=nope: no such instruction set; this build has "
    )
    for info in kernels.isas():
        assert info.name in message
    with pytest.raises(KernelError, match="isa=AVX512: no such"):
        kernels.init("AVX512")


def test_unsupported_isa_is_an_error_that_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [kernels.IsaInfo("avx9", False, "AVX 9"), kernels.IsaInfo("scalar", True, "any CPU")]
    monkeypatch.setattr("tmac_llm.kernels.library.isas", lambda: known)
    with pytest.raises(KernelError, match=r"isa=avx9: this CPU lacks it \(needs AVX 9\); it can run scalar"):
        kernels.init("avx9")


@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5"])
def test_bad_thread_counts(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMAC_THREADS", threads)
    with pytest.raises(UsageError, match=f"TMAC_THREADS={threads}: expected a number of threads"):
        kernels.init()
    for n in (0, machine.MAX_THREADS + 1):
        with pytest.raises(KernelError, match=f"n_threads={n}: expected 1 to {machine.MAX_THREADS}"):
            kernels.set_threads(n)


def test_most_threads_are_those_of_the_pool() -> None:
    header = (Path(__file__).parents[1] / "csrc" / "threadpool.h").read_text()
    assert f"TMAC_MAX_THREADS = {machine.MAX_THREADS} " in header


def test_products_in_a_forked_child(rng: np.random.Generator) -> None:
    """The child has none of the threads; it starts its own."""
    code = """
import os, sys, numpy as np
from tmac_llm import kernels
kernels.set_threads(3)
shape = kernels.MatrixShape(640, 256, 2, 32, False, 1.5)
matrix = kernels.Matrix(shape, np.arange(shape.packed_size).astype(np.uint8) & 0x3F)
x = np.ones(256, np.float32)
before = matrix.matmul(x)
child = os.fork()
if child == 0:
    os._exit(0 if (matrix.matmul(x) == before).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
