"""Reference checkpoints, converted and run: logits of another program, and of a plain forward pass."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_forward
from cached_keys import key_tiles
from reference_forward import relative_rms

from tmac_llm import kernels
from tmac_llm.convert import convert
from tmac_llm.errors import KernelError
from tmac_llm.load import load_decoder
from tmac_llm.model.decoder import Decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.packed.container import PackedModel

DENSE = (
    "llama_dense_f32",
    "llama_dense_bf16_sharded",
    "llama3_rope",
    "yarn_rope",
    "llama_attention_bias",
    "qwen2",
    "qwen3",
    "mistral_sliding",
    "llama_linear_rope_old_config",
)
BITNET = ("bitnet_offline", "bitnet_online", "llama_bitlinear")
CODED = (
    "gptq_v1_4bit_g32",
    "gptq_v2_3bit_g32",
    "gptq_v1_2bit_g64_desc_act",
    "awq_4bit_g32",
    "compressed_tensors_4bit_g32",
    "hqq_axis1_2bit_g64",
)

# Tables of int8 allow each linear an NMSE of 1e-4: a relative error of 1e-2. Nine linears follow each other in
# two layers, and random weights amplify: 5e-2. A decoder with one wrong sign is off by 0.4 and more.
TABLES_BOUND = 5e-2
# Float arithmetic in another order: 1e-6. It may flip the rounding of a table entry, or of a BitNet activation.
ORDER_BOUND = {16: 1e-5, "tables": 1.5e-2, "exact": 5e-3}


class Case:
    """A golden checkpoint, packed with the given bits (16: float; None: BitNet with a float head)."""

    def __init__(self, path: Path, out: Path, bits: int | None, force: bool = False) -> None:
        self.path, self.bits = path, bits
        head_bits = 16 if bits is None or force else None
        convert(path, out, bits=bits, group_size=32, head_bits=head_bits, force=force or bits == 2)
        self.packed = PackedModel.open(out)
        self.decoder = load_decoder(self.packed)
        self.ids = np.array(json.loads((path / "input_ids.json").read_text()))
        self.logits = np.load(path / "logits_fp32.npy")
        self.order_bound = ORDER_BOUND["exact" if bits is None else 16 if bits == 16 else "tables"]

    def cache(self) -> KVCache:
        return KVCache(self.decoder.config, 200)


@pytest.fixture(scope="session")
def packed(golden_dir, tmp_path_factory):
    """packed(name, bits) -> Case, each made once."""
    cases: dict[tuple[str, int | None], Case] = {}

    def make(name: str, bits: int | None) -> Case:
        if (name, bits) not in cases:
            out = tmp_path_factory.mktemp(name) / "packed"
            cases[name, bits] = Case(golden_dir / name, out, bits)
        return cases[name, bits]

    return make


def run(decoder: Decoder, ids: np.ndarray, cache: KVCache, chunk: int | None = None) -> np.ndarray:
    """Logits (n, vocab_size) after every token, fed in chunks."""
    step = chunk or len(ids)
    parts = [decoder.forward(ids[i : i + step], cache, "all") for i in range(0, len(ids), step)]
    return np.concatenate(parts)


def greedy(decoder: Decoder, ids: np.ndarray, n: int) -> list[int]:
    cache, found = KVCache(decoder.config, len(ids) + n), []
    for _ in range(n):
        ids = np.array([int(decoder.forward(ids, cache).argmax())])
        found.append(int(ids[0]))
    return found


def respelled(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of transformers 4 in the spelling of transformers 5, or the reverse."""
    config = dict(config)
    if "rope_parameters" in config:
        rope = dict(config.pop("rope_parameters"))
        theta, dtype = rope.pop("rope_theta"), config.pop("dtype")
        scaling = None if rope["rope_type"] == "default" else rope
        return {**config, "rope_theta": theta, "rope_scaling": scaling, "torch_dtype": dtype}
    rope = {
        **(config.pop("rope_scaling", None) or {"type": "default"}),
        "rope_theta": config.pop("rope_theta"),
    }
    rope["rope_type"], dtype = rope.pop("type"), config.pop("torch_dtype")
    return {**config, "rope_parameters": rope, "dtype": dtype}


@pytest.mark.parametrize("name", DENSE)
def test_float_weights(packed, name):
    case = packed(name, 16)
    found = run(case.decoder, case.ids, case.cache())
    assert relative_rms(found, case.logits) <= 1e-4
    np.testing.assert_array_equal(found.argmax(1), case.logits.argmax(1))


@pytest.mark.parametrize("name", BITNET)
def test_bitnet(packed, name):
    case = packed(name, None)
    found = run(case.decoder, case.ids, case.cache())
    assert relative_rms(found, case.logits) <= (5e-3 if name == "bitnet_online" else 1e-3)
    np.testing.assert_array_equal(found.argmax(1), case.logits.argmax(1))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_bitnet_requantised_keeps_int8_activations(golden_dir, tmp_path, bits):
    case = Case(golden_dir / "bitnet_offline", tmp_path / "packed", bits, force=True)
    model = reference_forward.dequantized(case.packed, reference_forward.load(case.path))
    expected, _ = reference_forward.forward(model, case.ids)
    assert relative_rms(run(case.decoder, case.ids, case.cache()), expected) <= 5e-3


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("name", DENSE)
def test_tables_equal_a_plain_forward_pass_over_the_dequantised_weights(packed, name, bits):
    case = packed(name, bits)
    model = reference_forward.dequantized(case.packed, reference_forward.load(case.path))
    expected, _ = reference_forward.forward(model, case.ids)
    found = run(case.decoder, case.ids, case.cache())
    assert relative_rms(found, expected) <= TABLES_BOUND


@pytest.mark.parametrize("name", CODED)
def test_stored_codes_in_float_arithmetic(golden_dir, tmp_path, name):
    source = golden_dir / name
    convert(source, tmp_path / "packed", bits=16, force=True)
    decoder = load_decoder(PackedModel.open(tmp_path / "packed"))
    ids, logits = json.loads((source / "input_ids.json").read_text()), np.load(source / "logits_fp32.npy")
    found = run(decoder, np.array(ids), KVCache(decoder.config, 200))
    assert relative_rms(found, logits) <= 1e-4
    np.testing.assert_array_equal(found.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("name", CODED)
def test_stored_codes_are_packed_as_they_are(golden_dir, tmp_path, name):
    source = golden_dir / name
    convert(source, tmp_path / "packed", head_bits=16)
    packed = PackedModel.open(tmp_path / "packed", verify=True)
    model = reference_forward.dequantized(packed, reference_forward.load(source))
    references = list(source.glob("dense_*.npy"))
    assert references
    for path in references:
        weight = model.weights[path.stem.removeprefix("dense_")]
        np.testing.assert_array_equal(weight.astype(np.float32), np.load(path))
    ids = np.array(json.loads((source / "input_ids.json").read_text()))
    expected, _ = reference_forward.forward(model, ids)
    assert relative_rms(expected, np.load(source / "logits_fp32.npy")) <= 2e-6
    decoder = load_decoder(packed)
    whole = run(decoder, ids, KVCache(decoder.config, 200))
    assert relative_rms(whole, expected) <= TABLES_BOUND
    tokens = run(decoder, ids, KVCache(decoder.config, 200), 1)
    assert relative_rms(tokens, whole) <= ORDER_BOUND["tables"]


@pytest.mark.parametrize("name", DENSE + BITNET)
def test_the_reference_forward_pass_itself(golden_dir, name):
    ids = json.loads((golden_dir / name / "input_ids.json").read_text())
    logits, residuals = reference_forward.forward(reference_forward.load(golden_dir / name), ids)
    assert relative_rms(logits, np.load(golden_dir / name / "logits_fp32.npy")) <= 2e-6
    hidden = np.load(golden_dir / name / "hidden_fp32.npy")
    for found, expected in zip(residuals[:-1], hidden[:-1], strict=True):
        assert relative_rms(found, expected) <= 2e-6


@pytest.mark.parametrize(("name", "bits"), [(n, 16) for n in DENSE] + [(n, None) for n in BITNET])
def test_residual_stream_after_every_layer(packed, name, bits):
    case, seen = packed(name, bits), []
    case.decoder.forward(case.ids, case.cache(), "none", observe=lambda x: seen.append(x.copy()))
    hidden = np.load(case.path / "hidden_fp32.npy")  # its last entry is after the final norm
    assert len(seen) == len(hidden)
    for layer, (found, expected) in enumerate(zip(seen[:-1], hidden[:-1], strict=True)):
        assert relative_rms(found, expected) <= (5e-3 if name == "bitnet_online" else 1e-4), layer


@pytest.mark.parametrize("name", DENSE + BITNET)
def test_the_other_spelling_of_the_configuration(packed, golden_dir, tmp_path, name):
    source, bits = golden_dir / name, None if name in BITNET else 16
    shutil.copytree(source, tmp_path / "source")
    if (source / "config.v4.json").exists():
        other_config = json.loads((source / "config.v4.json").read_text())
    else:
        other_config = respelled(json.loads((source / "config.json").read_text()))
    (tmp_path / "source" / "config.json").write_text(json.dumps(other_config))
    case, other = packed(name, bits), Case(tmp_path / "source", tmp_path / "packed", bits)
    assert other.decoder.config == case.decoder.config
    found = run(other.decoder, other.ids, other.cache())
    np.testing.assert_array_equal(found, run(case.decoder, case.ids, case.cache()))


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("name", DENSE + BITNET)
def test_chunks_and_single_tokens_give_the_same_logits_and_cache(packed, name, bits, chunk):
    case = packed(name, None if name in BITNET else bits)
    whole, parts = case.cache(), case.cache()
    expected = run(case.decoder, case.ids, whole)
    assert relative_rms(run(case.decoder, case.ids, parts, chunk), expected) <= case.order_bound
    assert parts.length == whole.length == len(case.ids)
    for layer in range(case.decoder.config.num_hidden_layers):
        mine, other = parts.layers[layer], whole.layers[layer]
        for found, wanted in ((key_tiles(mine), key_tiles(other)), (mine.values, other.values)):
            if layer == 0 and case.bits != 16:  # table lookup adds in one order, whatever the chunk
                np.testing.assert_array_equal(found, wanted)
            assert relative_rms(found, wanted) <= case.order_bound


@pytest.mark.parametrize("name", ["llama_dense_f32", "mistral_sliding", "qwen3", "bitnet_offline"])
def test_truncated_and_fed_again_equals_a_fresh_run(packed, name):
    case = packed(name, None if name in BITNET else 4)
    cache, ids = case.cache(), case.ids
    run(case.decoder, ids[:9], cache)  # in the portions of the fresh run: BLAS adds in an order of the shapes
    run(case.decoder, ids[::-1], cache)
    cache.truncate(9)
    again = run(case.decoder, ids[9:], cache)
    fresh = case.cache()
    run(case.decoder, ids[:9], fresh)
    # Not equal to the bit: some BLAS kernels add in an order that depends on the rows of a product.
    assert relative_rms(again, run(case.decoder, ids[9:], fresh)) <= case.order_bound


def test_logits_kinds_and_a_full_cache(packed):
    case = packed("llama_dense_f32", 16)
    every = run(case.decoder, case.ids, case.cache())
    np.testing.assert_allclose(
        case.decoder.forward(case.ids, case.cache())[0], every[-1], rtol=1e-4, atol=1e-5
    )
    assert case.decoder.forward(case.ids, case.cache(), "none") is None


def test_activations_that_are_not_finite_leave_the_cache_as_it_was(packed):
    case, cache = packed("llama_dense_f32", 4), None
    cache = case.cache()
    run(case.decoder, case.ids[:5], cache)

    def poison(x: np.ndarray) -> None:
        x[:] = np.nan

    with pytest.raises(KernelError):
        case.decoder.forward(case.ids[5:], cache, observe=poison)
    assert cache.length == 5
    fresh = case.cache()
    run(case.decoder, case.ids[:5], fresh)
    again = run(case.decoder, case.ids[5:], cache)
    np.testing.assert_array_equal(again, run(case.decoder, case.ids[5:], fresh))


@pytest.mark.parametrize("name", DENSE + BITNET)
def test_64_greedy_tokens_for_every_instruction_set_and_thread_count(packed, name):
    case = packed(name, None if name in BITNET else 4)
    isa, n_threads = kernels.isa_selected(), kernels.n_threads()
    found = {}
    try:
        for info in kernels.isas():
            if not info.supported:
                continue
            kernels.init(info.name, n_threads)
            decoder = load_decoder(case.packed)  # matrices keep the instruction set they were loaded for
            for threads in (1, 2, 3) if info.name == isa else (2,):
                kernels.set_threads(threads)
                found[info.name, threads] = greedy(decoder, case.ids, 64)
    finally:
        kernels.init(isa, n_threads)
    assert len(found) >= 3
    assert len({tuple(tokens) for tokens in found.values()}) == 1, found
