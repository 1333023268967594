"""What counts as a ceiling: the best of all plain reads."""

from __future__ import annotations

import numpy as np
import pytest

from tmac_llm import ceiling
from tmac_llm.bench_kernels import random_tiles
from tmac_llm.kernels import Matrix, MatrixShape

SHAPE = MatrixShape(128, 256, 2, 64, True, 0.0)


def test_the_fastest_number_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {1: [3.0, 3.0, 3.0], 2: [9.0, 2.0, 9.0], 4: [2.5, 2.5, 2.5], 8: [4.0, 4.0, 4.0]}
    monkeypatch.setattr(ceiling, "read_seconds", lambda matrices, n: times[n].pop())
    assert ceiling.best_streams([], rounds=3) == 2


def test_every_matrix_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [Matrix(SHAPE, random_tiles(SHAPE, np.random.default_rng(i))) for i in range(3)]
    read = []
    monkeypatch.setattr(Matrix, "read", lambda self, n: read.append((self, n)))
    assert ceiling.read_seconds(matrices, 2) >= 0
    assert read == [(matrix, 2) for matrix in matrices]
