"""Matrices over foreign memory, tunings and plain reads: the same bits as a loaded matrix on every instruction set."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from kernel_parts import parts

from tmac_llm import kernels
from tmac_llm.errors import KernelError
from tmac_llm.kernels import Matrix, MatrixShape, Tuning

SHAPES = (
    MatrixShape(130, 260, 2, 32, True, 0.0),
    MatrixShape(130, 260, 5, 0, False, 3.0),
    MatrixShape(200, 330, 2, 0, False, 1.0, "ternary"),
)


def tiles_of(shape: MatrixShape, rng: np.random.Generator) -> np.ndarray:
    codes, scales, zeros = parts(shape, rng)
    return kernels.pack(shape, np.minimum(codes, 2) if shape.encoding == "ternary" else codes, scales, zeros)


def aligned(data: np.ndarray, offset: int = 0) -> np.ndarray:
    """A copy at an address that is `offset` after a multiple of 64."""
    space = np.zeros(data.nbytes + 192, np.uint8)
    begin = -space.ctypes.data % 64 + offset
    out = space[begin : begin + data.nbytes]
    out[:] = data
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", [1, 9])
def test_a_view_multiplies_as_the_loaded_matrix(
    isa: str, shape: MatrixShape, n: int, rng: np.random.Generator
) -> None:
    loaded = Matrix(shape, tiles_of(shape, rng))
    view = Matrix.view(shape, aligned(loaded.data), loaded.slabs)
    gc.collect()  # the view keeps its memory
    x = rng.standard_normal((n, shape.k)).astype(np.float32)
    expected = loaded.matmul(x)
    assert np.array_equal(view.matmul(x), expected)
    assert (view.n_bytes, view.huge_bytes) == (loaded.n_bytes, 0)
    out = np.empty_like(expected)
    call = view.bind(x, out)
    view.close()
    del view
    gc.collect()
    call()
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_serve_where_the_order_is_kept(isa: str, shape: MatrixShape, rng: np.random.Generator) -> None:
    tiles = tiles_of(shape, rng)
    loaded = Matrix(shape, tiles)
    if kernels.keeps_order(shape):
        assert np.array_equal(loaded.data, tiles)
    assert kernels.keeps_order(shape) == (isa in ("avx512", "scalar") and shape.encoding == "planes")


def test_what_cannot_be_a_view(rng: np.random.Generator) -> None:
    for shape in SHAPES:
        loaded = Matrix(shape, tiles_of(shape, rng))
        data, slabs = aligned(loaded.data), loaded.slabs
        with pytest.raises(KernelError, match="multiple of 64"):
            Matrix.view(shape, aligned(data, 32), slabs)
        for wrong in (data[:-64], data[:0], np.zeros(data.nbytes + 64, np.uint8)):
            with pytest.raises(KernelError, match=r"slabs|multiple"):
                Matrix.view(shape, wrong, slabs)
        for wrong_slabs in (-1, slabs + 1000):
            with pytest.raises(KernelError, match="slabs"):
                Matrix.view(shape, data, wrong_slabs)
        with pytest.raises(KernelError, match="uint8"):
            Matrix.view(shape, data.view(np.int8), slabs)


def test_the_bytes_of_a_matrix_are_read_only_and_stay(rng: np.random.Generator) -> None:
    matrix = Matrix(SHAPES[0], tiles_of(SHAPES[0], rng))
    data, expected = matrix.data, matrix.data.copy()
    matrix.close()
    del matrix
    gc.collect()
    assert np.array_equal(data, expected)
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", [1, 70])
def test_no_tuning_changes_a_result(isa: str, shape: MatrixShape, n: int, rng: np.random.Generator) -> None:
    matrix = Matrix(shape, tiles_of(shape, rng))
    x = rng.standard_normal((n, shape.k)).astype(np.float32)
    expected = matrix.matmul(x)
    for tuning in (Tuning(-1), Tuning(64), Tuning(1 << 20), Tuning(0, 1), Tuning(0, 1 << 30)):
        matrix.tune(tuning)
        assert np.array_equal(matrix.matmul(x), expected), tuning


@pytest.mark.parametrize(
    "tuning", [Tuning(-2), Tuning((1 << 20) + 1), Tuning(0, -1), Tuning(0, (1 << 30) + 1)]
)
def test_senseless_tunings_are_refused(tuning: Tuning, rng: np.random.Generator) -> None:
    with pytest.raises(KernelError, match="Tuning"):
        Matrix(SHAPES[0], tiles_of(SHAPES[0], rng)).tune(tuning)


def test_every_number_of_streams_reads_everything(rng: np.random.Generator) -> None:
    # Several portions, the last no multiple of 8 streams; without padding, whose bytes are 0.
    shape = MatrixShape(64064, 128, 1, 128, False, 0.0)
    matrix = Matrix(shape, tiles_of(shape, rng))
    expected = int(np.bitwise_xor.reduce(matrix.data.view(np.uint64)))
    assert [matrix.read(n) for n in (1, 2, 4, 8)] == [expected] * 4
    with pytest.raises(KernelError, match="3 streams"):
        matrix.read(3)


def test_the_time_of_jobs_holds_their_work(threads: None) -> None:
    for n in (1, 2):
        kernels.set_threads(n)
        assert kernels.fork_join_time(20, 1e-4) >= 20 * 1e-4
    with pytest.raises(KernelError, match="0 jobs"):
        kernels.fork_join_time(0, 1e-6)
