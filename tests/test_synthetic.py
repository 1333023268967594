"""Random models at real shapes: valid tiles, finite activations, the loader's refusals."""

from dataclasses import replace

import numpy as np
import pytest
from reference_forward import CONFIG

from tmac_llm import bench, kernels, machine
from tmac_llm.errors import PackedModelError, UsageError
from tmac_llm.load import _RESERVE, _held, load_decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.synthetic import SyntheticModel, synthetic_model

LLAMA = replace(
    CONFIG, vocab_size=100, hidden_size=192, intermediate_size=320, num_hidden_layers=20, qkv_bias=True
)
BITNET = replace(
    LLAMA,
    model_type="bitnet",
    int8_activations=True,
    sub_norms=True,
    hidden_act="relu2",
    tie_word_embeddings=True,
    qkv_bias=False,
)


def logits(model: SyntheticModel, **options: object) -> np.ndarray:
    decoder = load_decoder(model, **options)
    cache = KVCache(model.config, 64)
    return decoder.forward(np.arange(50), cache, "all")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("group_size", [32, 128])
def test_activations_stay_finite_and_alive(bits, group_size):
    found = logits(SyntheticModel(LLAMA, bits, group_size, head_bits=min(bits + 2, 8)))
    assert np.isfinite(found).all()
    assert 0.1 < found.std() < 10
    assert found.std(axis=0).mean() > 0.1  # tokens differ


@pytest.mark.parametrize("tables", [None, "int8", "exact"])
def test_bitnet_is_ternary(tables):
    model = SyntheticModel(BITNET, head_bits=6)
    shape = model.shape("model.layers.0.mlp.down_proj")
    codes, scales, _ = kernels.unpack(shape, model.tiles("model.layers.0.mlp.down_proj"))
    assert set(np.unique(codes)) == {0, 1, 2}
    weights = (codes - 1.0) * scales[:, None]
    assert (weights**2).mean() * shape.k == pytest.approx(1, rel=0.1)
    found = logits(model, tables=tables)
    assert np.isfinite(found).all()
    assert 0.1 < found.std() < 10


def test_fast_aggregation(monkeypatch):
    """A model runs with averages of table entries, nearly as it does with their sums; refused where it cannot."""
    model = SyntheticModel(LLAMA, 4, 32, head_bits=8)
    if kernels.has_fast_aggregation():
        fast, exact = logits(model, tables="fast"), logits(model)
        assert (fast != exact).any()
        assert np.corrcoef(fast.ravel(), exact.ravel())[0, 1] > 0.99
    with pytest.raises(UsageError, match="this model's products are exact"):
        load_decoder(SyntheticModel(BITNET, head_bits=6), tables="fast")
    monkeypatch.setattr(kernels, "has_fast_aggregation", lambda: False)
    with pytest.raises(UsageError, match="has no kernel for it, avx2 and neon have"):
        load_decoder(model, tables="fast")


def test_the_same_seed_gives_the_same_model_and_matrices_differ():
    first, again, other = SyntheticModel(LLAMA), SyntheticModel(LLAMA), SyntheticModel(LLAMA, seed=1)
    name, next_name = "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"
    np.testing.assert_array_equal(first.tiles(name), again.tiles(name))
    assert (first.tiles(name) != other.tiles(name)).any()
    assert (first.tiles(name) != first.tiles(next_name)).any()
    assert not first.has("model.layers.20.self_attn.o_proj.tiles")
    assert first.has("model.layers.19.self_attn.qkv_proj.bias")
    with pytest.raises(PackedModelError, match="no tensor"):
        first.tensor("model.layers.0.self_attn.o_proj.bias")


@pytest.mark.parametrize("name", ["llama-2-7b", "bitnet-2b-4t", "bitnet-3b", "llama-3-8b", "llama-3.2-1b"])
def test_known_shapes(name):
    model = synthetic_model(name)
    parameters = {
        "llama-2-7b": 6.7,
        "bitnet-2b-4t": 2.4,
        "bitnet-3b": 3.3,
        "llama-3-8b": 8.0,
        "llama-3.2-1b": 1.24,
    }
    in_layers = sum(m.m * m.k for m in model._linears.values())
    assert in_layers / 1e9 == pytest.approx(parameters[name], rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, "--bits 9: expected 1 to 8, or 16"),
        ({"head_bits": 0}, "--head-bits 0: expected 1 to 8, or 16"),
        ({"group_size": 48}, "--group-size 48: expected one of"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(UsageError, match=message):
        SyntheticModel(LLAMA, **options)


def test_bits_of_bitnet_and_unknown_names():
    with pytest.raises(UsageError, match="--bits 4: a BitNet model is ternary"):
        SyntheticModel(BITNET, 4)
    with pytest.raises(UsageError, match=r"no shapes are known for 'llama-9'; known: .*llama-2-7b"):
        synthetic_model("llama-9")


def test_weights_larger_than_memory_are_refused(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 10**9)
    with pytest.raises(PackedModelError, match=r"the weights need 2\.\d GB of memory .* 1\.0 GB are left"):
        load_decoder(synthetic_model("llama-2-7b"))


def test_float_weights_are_counted_as_float32(monkeypatch):
    weights = 4 * sum(linear.m * linear.k for linear in _held(SyntheticModel(LLAMA, 16, head_bits=16)))
    monkeypatch.setattr(machine, "available_memory", lambda: weights + _RESERVE - 1)
    with pytest.raises(PackedModelError, match="the weights need"):
        load_decoder(SyntheticModel(LLAMA, 16, head_bits=16))
    monkeypatch.setattr(machine, "available_memory", lambda: weights + _RESERVE)
    load_decoder(SyntheticModel(LLAMA, 16, head_bits=16))


def test_ternary_weights_are_counted_as_memory_holds_them(monkeypatch):
    model = SyntheticModel(BITNET, 2)
    weights = sum(kernels.memory_size(model.shape(linear.name)) for linear in _held(model))
    assert weights == bench.weight_facts(model).n_bytes
    monkeypatch.setattr(machine, "available_memory", lambda: weights + _RESERVE - 1)
    with pytest.raises(PackedModelError, match="the weights need"):
        load_decoder(model)
    monkeypatch.setattr(machine, "available_memory", lambda: weights + _RESERVE)
    load_decoder(model)


def test_tables():
    with pytest.raises(UsageError, match='tables "exact" needs a model trained with int8 activations'):
        load_decoder(SyntheticModel(LLAMA), tables="exact")
    with pytest.raises(UsageError, match='expected "int8", "exact" or "fast"'):
        load_decoder(SyntheticModel(LLAMA), tables="int4")
