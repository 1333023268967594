"""The test vectors of every packing, and round trips through writers that work bit by bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantised import pack, pack_awq

from tmac_llm.checkpoint.unpack import n_words, transposed, unpack, unpack_awq


def words(text: str) -> np.ndarray:
    return np.array([[int(word, 16) for word in text.split()]], np.uint32)


@pytest.mark.parametrize(
    ("text", "bits", "order", "codes"),
    [
        ("e4e4e4e4", 2, "stream", np.arange(16) % 4),
        ("76543210", 4, "stream", np.arange(8)),
        ("03020100", 8, "stream", np.arange(4)),
        ("88fac688 c688fac6 fac688fa", 3, "stream", np.arange(32) % 8),
        ("08fac688 1a23eb1a 2c688fac 0000003e", 3, "fields", np.arange(32) % 8),
        ("e4e4e4e4 e4e4e4e4 f0f0f0f0", 3, "planar", np.arange(32) % 8),
        ("55555555", 2, "stream", np.full(16, 1)),
        ("aaaaaaaa", 2, "stream", np.full(16, 2)),
        ("88888888", 4, "stream", np.full(8, 8)),
        ("7f7f7f7f", 8, "stream", np.full(4, 127)),
        ("77777777", 4, "planar", np.full(8, 7)),
        ("80808080", 8, "fields", np.full(4, 128)),
    ],
)
def test_vectors(text: str, bits: int, order: str, codes: np.ndarray) -> None:
    assert n_words(len(codes), bits, order) == len(text.split())
    np.testing.assert_array_equal(unpack(words(text), bits, len(codes), order), [codes])
    np.testing.assert_array_equal(pack(codes[None], bits, order).view(np.uint32), words(text))


def test_awq_vector() -> None:
    np.testing.assert_array_equal(unpack_awq(words("75316420")).T, [np.arange(8)])
    np.testing.assert_array_equal(pack_awq(np.arange(8)[None]).view(np.uint32), words("75316420"))


@given(st.data())
def test_round_trips(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 8))
    order = data.draw(st.sampled_from(["stream", "fields", "planar"]))
    shape = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 100))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 1 << bits, shape)
    packed = pack(codes, bits, order) if shape[0] else np.empty((0, n_words(shape[1], bits, order)), np.int32)
    assert packed.shape == (shape[0], n_words(shape[1], bits, order))
    found = unpack(packed.view(np.uint32), bits, shape[1], order)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_more_rows_than_one_block(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (70, 64))
    many = np.tile(pack(codes, bits).view(np.uint32), (100, 10 if bits == 4 else 1))
    found = unpack(many, bits, many.shape[1] * 32 // bits)
    np.testing.assert_array_equal(found, np.tile(codes, (100, 10 if bits == 4 else 1)))


@pytest.mark.parametrize("shape", [(1, 1), (16, 3), (17, 5), (100, 33)])
def test_transposed(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).integers(0, 2**32, shape, np.uint32)
    found = transposed(matrix)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, matrix.T)
