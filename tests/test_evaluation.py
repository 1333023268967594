"""Perplexity and divergence against plain float64 arithmetic; windows by a decoder of known probabilities."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from reference_forward import CONFIG, forward, load

from tmac_llm import evaluation, kernels
from tmac_llm.convert import convert
from tmac_llm.errors import PackedModelError, TokenizerError, UsageError
from tmac_llm.evaluation import encode, encode_for_both, evaluate, windows
from tmac_llm.generation import PREFILL_CHUNK
from tmac_llm.load import load_decoder
from tmac_llm.packed.container import PackedModel
from tmac_llm.tokenizer import Tokenizer

TINY = Path(__file__).parent / "data" / "tiny-bitnet"
LLAMA = Path(__file__).parent / "data" / "tiny-llama"
VOCAB = 11


class TableModel:
    """Predicts from a table: logits after a token are table[position in the window, token]. Checks its calls."""

    def __init__(self, table: np.ndarray, max_length: int = 4096) -> None:
        self.table = table.astype(np.float32)  # (positions, vocab, vocab)
        self.config = replace(CONFIG, vocab_size=table.shape[-1], max_position_embeddings=max_length)
        self.scored: list[int] = []
        self.largest = 0

    def forward(self, token_ids, cache, logits="last"):
        begin, n = cache.length, len(token_ids)
        cache.reserve(n)
        cache.advance(n)
        if logits == "none":
            return None
        assert logits == "all"
        self.scored += range(begin, begin + n)
        self.largest = max(self.largest, n)
        return self.table[np.arange(begin, begin + n), token_ids]


def table(rng: np.random.Generator, positions: int, vocab: int = VOCAB, spread: float = 2.0) -> np.ndarray:
    return rng.normal(0, spread, (positions, vocab, vocab)).astype(np.float32)


def log_p(logits: np.ndarray) -> list[float]:
    """ln softmax of one row, in exact sums of float64."""
    values = [float(v) for v in logits]
    top = max(values)
    total = math.log(math.fsum(math.exp(v - top) for v in values))
    return [v - top - total for v in values]


def by_hand(rows: list[np.ndarray], true: list[int]) -> tuple[float, float]:
    """Perplexity and its error, as llama.cpp's perplexity tool adds them up."""
    nll = [-log_p(row)[t] for row, t in zip(rows, true, strict=True)]
    mean, mean2 = math.fsum(nll) / len(nll), math.fsum(x * x for x in nll) / len(nll)
    perplexity = math.exp(mean)
    return perplexity, perplexity * math.sqrt((mean2 - mean * mean) / (len(nll) - 1))


@pytest.mark.parametrize("context", [8, 9, 64, 3 * PREFILL_CHUNK + 5])
def test_the_second_half_of_each_window_is_scored(rng, context):
    n_windows, bos = 3, 1
    ids = rng.integers(2, VOCAB, n_windows * context + context - 1)  # the remainder is dropped
    model = TableModel(table(rng, context))
    found = evaluate(model, windows(ids, context, bos))
    rows, true, positions = [], [], []
    for i in range(n_windows):
        window = [bos, *ids[i * context + 1 : (i + 1) * context]]
        for at in range(context // 2, context - 1):
            positions.append(at)
            rows.append(model.table[at, window[at]])
            true.append(int(window[at + 1]))
    perplexity, error = by_hand(rows, true)
    assert (found.context, found.n_windows, found.n_scored) == (context, n_windows, len(rows))
    assert found.n_scored == n_windows * (context - context // 2 - 1)
    assert found.perplexity.value == pytest.approx(perplexity, rel=1e-12)
    assert found.perplexity.error == pytest.approx(error, rel=1e-9)
    assert found.comparison is None
    assert model.scored == positions
    assert model.largest <= PREFILL_CHUNK  # the memory bound


def test_windows():
    ids = np.arange(29)
    expected = [[99, *range(1, 9)], [99, *range(10, 18)], [99, *range(19, 27)]]
    assert windows(ids, 9, bos=99).tolist() == expected
    assert windows(ids, 9).tolist() == np.arange(27).reshape(3, 9).tolist()
    assert ids.tolist() == list(range(29))  # not written to


def test_known_probabilities():
    """A model that gives the true token a quarter: perplexity 4, and no error."""
    context, step = 16, 3
    ids = np.arange(2 * context) * step % VOCAB
    logits = np.full((context, VOCAB, VOCAB), math.log(0.75 / (VOCAB - 1)))
    for token in range(VOCAB):
        logits[:, token, (token + step) % VOCAB] = math.log(0.25)
    found = evaluate(TableModel(logits), windows(ids, context))
    assert found.perplexity.value == pytest.approx(4, rel=1e-6)
    assert found.perplexity.error == pytest.approx(0, abs=1e-6)


def test_progress_ends_with_the_result(rng):
    seen: list[tuple[int, int, float]] = []
    context = 2 * PREFILL_CHUNK + 20
    ids = rng.integers(0, VOCAB, 2 * context)
    found = evaluate(
        TableModel(table(rng, context)), windows(ids, context), on_progress=lambda *a: seen.append(a)
    )
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert math.isnan(seen[0][2])
    assert seen[-1] == (
        2 * (context - 1),
        2 * (context - 1),
        pytest.approx(found.perplexity.value, rel=1e-12),
    )


def test_comparison_by_hand(rng):
    context = 24
    ids = rng.integers(0, VOCAB, 4 * context)
    base = table(rng, context)
    model, reference = TableModel(base + 0.3 * table(rng, context)), TableModel(base)
    found = evaluate(model, windows(ids, context), reference)
    kl, delta, agree, ratio, nll = [], [], [], [], []
    for window in ids.reshape(4, context):
        for at in range(context // 2, context - 1):
            p, q = (log_p(each.table[at, window[at]]) for each in (reference, model))
            true = window[at + 1]
            kl.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
            delta.append(math.exp(q[true]) - math.exp(p[true]))
            agree.append(p.index(max(p)) == q.index(max(q)))
            ratio.append(p[true] - q[true])
            nll.append(-p[true])

    def check(estimate, values):
        mean = math.fsum(values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
        assert estimate.value == pytest.approx(mean, rel=1e-11)
        assert estimate.error == pytest.approx(math.sqrt(variance / len(values)), rel=1e-9)

    got = found.comparison
    check(got.kl, kl)
    check(got.delta_p, delta)
    check(got.top1_agreement, agree)
    check(got.log_ratio, ratio)
    ordered = sorted(kl)
    assert 0 < got.top1_agreement.value < 1
    assert got.kl_max == pytest.approx(ordered[-1], rel=1e-11)
    assert got.kl_median == pytest.approx((ordered[21] + ordered[22]) / 2, rel=1e-11)
    assert ordered[-2] <= got.kl_p99 <= ordered[-1]
    assert got.delta_p_rms == pytest.approx(
        math.sqrt(math.fsum(d * d for d in delta) / len(delta)), rel=1e-11
    )
    assert got.perplexity.value == pytest.approx(math.exp(math.fsum(nll) / len(nll)), rel=1e-12)
    assert found.perplexity.value / got.perplexity.value == pytest.approx(math.exp(got.log_ratio.value))


def test_extreme_logits_keep_their_accuracy(rng):
    """A true token of probability e^-80 beside logits of 1e4: no overflow, no ln 0."""
    logits = np.full((16, VOCAB, VOCAB), 1e4 - 80)
    logits[:, :, 0] = 1e4
    found = evaluate(TableModel(logits), windows(np.ones(32, np.int64), 16))
    assert found.perplexity.value == pytest.approx(math.exp(80), rel=1e-9)


def test_portions_threads_and_batches_do_not_change_a_result(rng, monkeypatch, threads):
    context = 2 * PREFILL_CHUNK + 4
    ids = windows(rng.integers(0, VOCAB, 2 * context), context)
    base = table(rng, context)
    other = base + 0.1 * table(rng, context)
    found = []
    for portion, n_threads, batch in ((1 << 20, 1, 128), (1, 1, 128), (5 * VOCAB + 3, 2, 128), (1, 2, 1)):
        monkeypatch.setattr(evaluation, "_PORTION", portion)
        kernels.set_threads(n_threads)
        model = TableModel(base)
        found.append(evaluate(model, ids, TableModel(other), batch=batch))
        assert model.largest == batch
    assert found[0] == found[1] == found[2]
    # In batches of one, sums over a row are added in the order that numpy has for one row.
    assert found[3].perplexity.value == pytest.approx(found[0].perplexity.value, rel=1e-13)
    assert found[3].comparison.kl.value == pytest.approx(found[0].comparison.kl.value, rel=1e-10)


def test_mistakes(rng):
    ids = np.zeros(40, np.int64)
    with pytest.raises(UsageError, match=r"has 40 tokens, a context of 32 needs at least 64"):
        windows(ids, 32)
    with pytest.raises(UsageError, match="context 7"):
        windows(ids, 7)
    model = TableModel(table(rng, 20), max_length=16)
    with pytest.raises(UsageError, match="context 20: the model's is 16"):
        evaluate(model, windows(ids, 20))
    with pytest.raises(UsageError, match="found"):
        evaluate(model, windows(ids, 16)[:0])
    with pytest.raises(TokenizerError, match="token id 11"):
        evaluate(model, windows(ids + VOCAB, 16))
    with pytest.raises(TokenizerError, match="vocabulary of 11, the reference one of 12"):
        evaluate(model, windows(ids, 16), TableModel(table(rng, 16, VOCAB + 1)))
    broken = TableModel(np.full((16, VOCAB, VOCAB), np.nan))
    for pair in ((broken, None), (model, broken)):
        with pytest.raises(PackedModelError, match="window 0, tokens 8 to 14: the logits are not finite"):
            evaluate(pair[0], windows(ids, 16), pair[1])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """tiny(head_bits): the tests' tiny BitNet model, packed; linear layers exact."""
    made: dict[int, PackedModel] = {}

    def make(head_bits: int) -> PackedModel:
        if head_bits not in made:
            out = tmp_path_factory.mktemp("tiny") / "packed"
            convert(TINY, out, head_bits=head_bits)
            made[head_bits] = PackedModel.open(out)
        return made[head_bits]

    return make


@pytest.fixture(scope="module")
def tiny_windows():
    text = " ".join(f"Once upon a time there were {n} brave frogs and a red ball." for n in range(60))
    ids, bos = encode(Tokenizer.from_dir(TINY), text)
    return windows(ids, 64, bos)[:4]


def test_tiny_model_against_a_plain_forward_pass(tiny, tiny_windows):
    """Exact tables of BitNet: logits agree to 1e-3 of their deviation, so do mean nll and perplexity."""
    found = evaluate(load_decoder(tiny(16)), tiny_windows)
    model = load(TINY)
    rows, true = [], []
    for window in tiny_windows:
        logits, _ = forward(model, window.tolist())
        rows += list(logits[32:63])
        true += window[33:].tolist()
    perplexity, error = by_hand(rows, true)
    assert found.perplexity.value == pytest.approx(perplexity, rel=5e-3)
    assert found.perplexity.error == pytest.approx(error, rel=5e-3)


@pytest.mark.parametrize("name", ["llama_dense_f32", "llama3_rope", "yarn_rope", "qwen3", "mistral_sliding"])
def test_float_weights_agree_with_another_program(golden_dir, tmp_path, name):
    """Perplexity from the logits that transformers computed, over the second half of its input."""
    convert(golden_dir / name, tmp_path / "packed", bits=16)
    ids = np.array(json.loads((golden_dir / name / "input_ids.json").read_text()))
    logits = np.load(golden_dir / name / "logits_fp32.npy")
    found = evaluate(load_decoder(PackedModel.open(tmp_path / "packed")), ids[None])
    half = len(ids) // 2
    perplexity, error = by_hand(list(logits[half:-1]), ids[half + 1 :].tolist())
    assert found.perplexity.value == pytest.approx(perplexity, rel=1e-3)
    assert found.perplexity.error == pytest.approx(error, rel=1e-3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The trained Llama in float, packed, and what others found: scripts/make_eval_reference.py."""
    out = tmp_path_factory.mktemp("llama") / "packed"
    convert(LLAMA, out, bits=16)
    return PackedModel.open(out), json.loads((LLAMA / "evaluation.json").read_text())


def test_a_trained_model_agrees_with_other_programs(llama, tmp_path):
    """Perplexity, divergence and agreement as transformers has them, perplexity as llama.cpp, from the text on."""
    packed, expected = llama
    stored = safetensors.numpy.load_file(LLAMA / "model.safetensors")
    for name, tensor in stored.items():
        wide = tensor.astype(np.float32)
        rounded = np.rint(wide * expected["step"]) / expected["step"]
        stored[name] = rounded if name.endswith("_proj.weight") else wide
    shutil.copytree(LLAMA, tmp_path / "rounded")
    safetensors.numpy.save_file(stored, tmp_path / "rounded" / "model.safetensors")
    convert(tmp_path / "rounded", tmp_path / "packed", bits=16)
    ids, bos = encode(Tokenizer.from_dir(packed.path), (LLAMA / "stories.txt").read_text())
    cut = windows(ids, expected["context"], bos)
    other = load_decoder(PackedModel.open(tmp_path / "packed"))
    found = evaluate(other, cut, load_decoder(packed))
    assert (found.n_windows, found.n_scored) == (expected["n_windows"], expected["n_scored"])
    against, nll, other_nll = found.comparison, expected["nll"], expected["other_nll"]
    for got, mean in ((against.perplexity, nll), (found.perplexity, other_nll)):
        assert got.value == pytest.approx(math.exp(mean["value"]), rel=1e-5)
        assert got.error == pytest.approx(math.exp(mean["value"]) * mean["error"], rel=1e-3)
        assert abs(got.value - math.exp(mean["value"])) < 0.01 * got.error  # far within the standard error
    by_llama_cpp = expected["llama_cpp"]["nll"]  # whose cache is float16
    assert math.log(against.perplexity.value) == pytest.approx(by_llama_cpp["value"], abs=1e-4)
    assert against.perplexity.error / against.perplexity.value == pytest.approx(
        by_llama_cpp["error"], rel=1e-3
    )
    assert against.log_ratio.value == pytest.approx(other_nll["value"] - nll["value"], abs=1e-5)
    assert against.kl.value == pytest.approx(expected["kl"]["value"], rel=1e-3)
    assert against.kl.error == pytest.approx(expected["kl"]["error"], rel=1e-3)
    for name in ("kl_median", "kl_p99", "kl_max"):
        assert getattr(against, name) == pytest.approx(expected[name], rel=1e-3)
    assert against.top1_agreement.value == pytest.approx(expected["top1_agreement"], abs=2e-4)


def test_identical_models_do_not_differ_at_all(tiny, tiny_windows):
    found = evaluate(load_decoder(tiny(8)), tiny_windows, load_decoder(tiny(8)))
    got = found.comparison
    assert (got.kl.value, got.kl.error, got.kl_median, got.kl_p99, got.kl_max) == (0, 0, 0, 0, 0)
    assert (got.delta_p.value, got.delta_p_rms, got.log_ratio.value, got.log_ratio.error) == (0, 0, 0, 0)
    assert (got.top1_agreement.value, got.top1_agreement.error) == (1, 0)
    assert got.perplexity == found.perplexity


class Altered:
    """A packed model with other codes or scales in one matrix."""

    def __init__(self, packed: PackedModel, matrix: str, change) -> None:
        self.config, self.shape, self.tensor, self.has = (
            packed.config,
            packed.shape,
            packed.tensor,
            packed.has,
        )
        self._packed, self._matrix, self._change = packed, matrix, change

    def tiles(self, matrix: str) -> np.ndarray:
        if matrix != self._matrix:
            return self._packed.tiles(matrix)
        shape = self._packed.shape(matrix)
        codes, scales, zeros = kernels.unpack(shape, self._packed.tiles(matrix))
        self._change(codes, scales)
        return kernels.pack(shape, codes, scales, zeros)


def swap_codes(codes: np.ndarray, scales: np.ndarray) -> None:
    """0 and 1; 2 stays, as weights are ternary."""
    codes[codes < 2] ^= 1


def swap_quads(codes: np.ndarray, scales: np.ndarray) -> None:
    codes[:, :16], codes[:, 16:32] = codes[:, 16:32].copy(), codes[:, :16].copy()


def halve_scales(codes: np.ndarray, scales: np.ndarray) -> None:
    """Of every second row: a norm after the matrix would undo the same factor for all."""
    scales[::2] /= 2


@pytest.mark.parametrize("change", [swap_codes, swap_quads, halve_scales])
@pytest.mark.parametrize("matrix", ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.gate_up_proj"])
def test_broken_weights_are_caught(tiny, tiny_windows, matrix, change):
    healthy = evaluate(load_decoder(tiny(8)), tiny_windows, load_decoder(tiny(16))).comparison
    broken = evaluate(
        load_decoder(Altered(tiny(8), matrix, change)), tiny_windows, load_decoder(tiny(16))
    ).comparison
    assert healthy.kl.value < 0.01
    assert healthy.top1_agreement.value > 0.85
    assert broken.kl.value > 5 * healthy.kl.value
    gap = healthy.top1_agreement.value - broken.top1_agreement.value
    assert gap > 3 * (healthy.top1_agreement.error + broken.top1_agreement.error)


def test_more_head_bits_diverge_less(tiny, tiny_windows):
    reference = load_decoder(tiny(16))
    kl = [evaluate(load_decoder(tiny(b)), tiny_windows, reference).comparison.kl.value for b in (3, 4, 8)]
    assert kl[0] > 2 * kl[1] > 4 * kl[2] > 0


def without_bos(tmp_path: Path) -> Tokenizer:
    """The tiny model's tokenizer, not putting bos in front of a text."""
    spec = json.loads((TINY / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": None}))
    config = json.loads((TINY / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    return Tokenizer.from_dir(tmp_path)


def test_text_to_ids(tmp_path):
    tokenizer, plain = Tokenizer.from_dir(TINY), without_bos(tmp_path)
    bos, text = tokenizer.bos_token_id, tokenizer.encode("a brave frog")
    assert text == plain.encode("a brave frog")
    ids, found = encode(tokenizer, "a brave frog\n")
    assert (ids.tolist(), found) == ([bos, *text], bos)
    ids, found = encode(plain, "a brave frog")
    assert (ids.tolist(), found) == (text, None)
    ids, _ = encode(plain, "a <|begin|> frog")  # plain text, not a token
    assert bos not in ids
    assert encode_for_both(tokenizer, tokenizer, "a brave frog")[0].tolist() == [bos, *text]
    with pytest.raises(TokenizerError, match=r"\(5 and 4\) differ from token 0 on"):
        encode_for_both(tokenizer, plain, "a brave frog")
