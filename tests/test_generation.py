"""Generation over a decoder that counts: its next token is always the last one plus one."""

from types import SimpleNamespace

import numpy as np
import pytest

from tmac_llm import generation
from tmac_llm.errors import ContextLengthError, TokenizerError
from tmac_llm.generation import PREFILL_CHUNK, Context, Generation, generate

VOCAB = 50


class Cache:
    """Remembers which ids were fed, and forgets with truncate()."""

    def __init__(self, config, max_length, cache_type):
        self.fed = []

    def truncate(self, n):
        del self.fed[n:]


class Decoder:
    """Peaks at last id + 1; records every call; fails at call number `fail_at` after half of the work."""

    def __init__(self, context_length=1000):
        self.config = SimpleNamespace(max_position_embeddings=context_length, vocab_size=VOCAB)
        self.calls = []
        self.fail_at = None

    def forward(self, ids, cache, logits="last"):
        if self.fail_at == len(self.calls):
            self.fail_at = None
            cache.fed += list(ids[: len(ids) // 2 + 1])
            raise KeyboardInterrupt
        self.calls.append((list(ids), logits))
        cache.fed += list(ids)
        if logits == "none":
            return None
        rows = np.zeros((1, VOCAB), np.float32)
        rows[0, (ids[-1] + 1) % VOCAB] = 1
        return rows


class Greedy:
    def __init__(self):
        self.histories = []

    def sample(self, logits, history):
        self.histories.append(list(history))
        return int(np.argmax(logits))


@pytest.fixture(autouse=True)
def _fake_cache(monkeypatch):
    monkeypatch.setattr(generation, "KVCache", Cache)


def fed(context):
    return context._cache.fed


def test_the_answer_ends_before_a_stop_id():
    run = generate(Context(Decoder()), [3, 4], Greedy(), stop_ids=[8])
    assert list(run) == [5, 6, 7]
    assert run.finish_reason == "stop"


def test_the_answer_ends_at_max_tokens():
    run = generate(Context(Decoder()), [3], Greedy(), max_tokens=4)
    assert list(run) == [4, 5, 6, 7]
    assert run.finish_reason == "length"


def test_the_answer_ends_where_the_context_is_full():
    context = Context(Decoder(), max_length=6)
    run = generate(context, [1, 2, 3], Greedy())
    assert list(run) == [4, 5, 6]
    assert run.finish_reason == "length"
    assert len(fed(context)) <= 6


def test_no_pass_for_the_last_token():
    decoder = Decoder()
    list(generate(Context(decoder), [1], Greedy(), max_tokens=3))
    assert [ids for ids, _ in decoder.calls] == [[1], [2], [3]]


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers():
    with pytest.raises(ContextLengthError, match=r"has 6 tokens, the context holds 6"):
        Context(Decoder(), max_length=6).prefill([1, 2, 3, 4, 5, 6])


def test_the_context_of_the_model_is_the_default_limit():
    assert Context(Decoder(context_length=77)).max_length == 77


def test_a_second_turn_feeds_only_the_new_tokens():
    decoder = Decoder()
    context = Context(decoder)
    answer = list(generate(context, [1, 2, 3], Greedy(), max_tokens=3))
    decoder.calls.clear()
    _, n_cached = context.prefill([1, 2, 3, *answer, 20, 21])
    # The last token of the answer was never fed.
    assert decoder.calls == [([6, 20, 21], "last")]
    assert n_cached == 5


def test_a_prompt_that_departs_is_cut_where_it_departs():
    decoder = Decoder()
    context = Context(decoder)
    context.prefill([1, 2, 3, 4])
    decoder.calls.clear()
    context.prefill([1, 2, 9])
    assert decoder.calls == [([9], "last")]
    assert fed(context) == context.ids.tolist() == [1, 2, 9]


def test_the_same_prompt_again_feeds_its_last_token():
    decoder = Decoder()
    context = Context(decoder)
    first, _ = context.prefill([1, 2, 3])
    decoder.calls.clear()
    second, n_cached = context.prefill([1, 2, 3])
    assert decoder.calls == [([3], "last")]
    assert n_cached == 2
    assert np.array_equal(first, second)


def test_a_shorter_prompt_shortens_the_context():
    context = Context(Decoder())
    context.prefill([1, 2, 3, 4])
    context.prefill([1, 2])
    assert fed(context) == [1, 2]


def test_long_prompts_go_in_chunks_and_only_the_last_gives_logits():
    decoder = Decoder()
    prompt = [i % VOCAB for i in range(2 * PREFILL_CHUNK + 5)]
    Context(decoder).prefill(prompt)
    assert [(len(ids), kind) for ids, kind in decoder.calls] == [
        (PREFILL_CHUNK, "none"),
        (PREFILL_CHUNK, "none"),
        (5, "last"),
    ]
    assert [i for ids, _ in decoder.calls for i in ids] == prompt


def test_progress_counts_what_is_computed():
    seen = []
    context = Context(Decoder())
    context.prefill([1, 2])
    context.prefill([1, 2, *[0] * (PREFILL_CHUNK + 1)], lambda done, total: seen.append((done, total)))
    total = PREFILL_CHUNK + 1
    assert seen == [(0, total), (PREFILL_CHUNK, total), (total, total)]


def test_a_cancelled_prefill_keeps_whole_chunks():
    decoder = Decoder()
    context = Context(decoder)
    prompt = [1] * (3 * PREFILL_CHUNK)
    logits, _ = context.prefill(prompt, cancelled=lambda: len(decoder.calls) == 1)
    assert logits is None
    assert fed(context) == context.ids.tolist() == prompt[:PREFILL_CHUNK]


def test_an_interrupted_pass_is_taken_back():
    decoder = Decoder()
    context = Context(decoder)
    logits, _ = context.prefill([1, 2, 3])
    run = Generation(context, logits, Greedy())
    assert [next(run), next(run)] == [4, 5]
    decoder.fail_at = len(decoder.calls)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert fed(context) == context.ids.tolist() == [1, 2, 3, 4]
    assert next(run) == 6


def test_an_interrupted_prefill_is_taken_back():
    decoder = Decoder()
    context = Context(decoder)
    decoder.fail_at = 1
    with pytest.raises(KeyboardInterrupt):
        context.prefill([1] * (PREFILL_CHUNK + 9))
    assert fed(context) == context.ids.tolist() == [1] * PREFILL_CHUNK


def test_the_sampler_sees_the_whole_context():
    sampler = Greedy()
    list(generate(Context(Decoder()), [1, 2], sampler, max_tokens=3))
    assert sampler.histories == [[1, 2], [1, 2, 3], [1, 2, 3, 4]]


def test_an_empty_prompt_is_refused():
    with pytest.raises(TokenizerError, match="no tokens"):
        Context(Decoder()).prefill([])


@pytest.mark.parametrize("wrong", [VOCAB, -1, 10**6])
def test_ids_without_an_embedding_are_refused(wrong):
    with pytest.raises(
        TokenizerError, match=f"token id {wrong} is outside the model's vocabulary of {VOCAB}"
    ):
        Context(Decoder()).prefill([1, wrong])


def test_a_finished_answer_stays_finished():
    run = generate(Context(Decoder()), [3], Greedy(), max_tokens=1)
    assert list(run) == [4]
    assert list(run) == []
