"""The Python API on the tiny model: text, stops, limits, cancelling, and what is reported."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import tmac_llm
from tmac_llm.convert import convert
from tmac_llm.errors import ContextLengthError, PackedModelError, TemplateError, TokenizerError, UsageError
from tmac_llm.generation import PREFILL_CHUNK
from tmac_llm.model.attention import Attention
from tmac_llm.sampling_defaults import DEFAULT_SAMPLING
from tmac_llm.stop_strings import StopStrings

TINY = Path(__file__).parent / "data" / "tiny-bitnet"
HELLO = [{"role": "user", "content": "Tell me about the frog"}]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "tiny"
    convert(str(TINY), path)
    return path


@pytest.fixture
def llm(packed):
    with tmac_llm.load(packed) as model:
        yield model


@pytest.fixture
def copy_of(packed, tmp_path):
    """A packed model with one of its text files replaced, the manifest told of it."""

    def make(name, content):
        import hashlib

        path = tmp_path / "copy"
        shutil.copytree(packed, path)
        manifest = json.loads((path / "tmac_manifest.json").read_text())
        if content is None:
            (path / name).unlink()
            del manifest["files"][name]
        else:
            (path / name).write_text(content)
            entry = {"size": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
            manifest["files"][name] = entry
        (path / "tmac_manifest.json").write_text(json.dumps(manifest))
        return path

    return make


def run(stream):
    pieces = list(stream)
    assert "".join(pieces) == stream.result.text
    return stream.result


# --- answers -----------------------------------------------------------------------------------------------


def test_an_answer_and_its_numbers(llm):
    result = run(llm.chat_stream(HELLO, max_tokens=9, seed=4))
    prompt = llm.tokenizer.encode(llm.tokenizer.render(HELLO))
    assert (result.n_prompt, result.n_cached, result.n_generated) == (len(prompt), 0, 9)
    assert len(result.token_ids) == 9
    assert result.text == llm.tokenizer.decode(result.token_ids)
    assert result.finish_reason == "length"
    assert (result.seed, result.sampling.seed) == (4, 4)
    assert result.seconds_prefill > 0
    assert result.seconds_decode > 0


def test_generate_and_chat_give_the_text(llm):
    text = llm.generate("Tell me about the frog", max_tokens=9, seed=4)
    assert (
        text
        == llm.chat(HELLO, max_tokens=9, seed=4)
        == run(llm.stream(HELLO[0]["content"], max_tokens=9, seed=4)).text
    )


def test_raw_continues_without_the_template(llm):
    result = run(llm.stream("the frog", raw=True, max_tokens=5))
    assert result.n_prompt == len(llm.tokenizer.encode_prompt("the frog"))


def test_the_same_seed_gives_the_same_text(llm):
    first = llm.chat(HELLO, max_tokens=20, seed=1)
    assert llm.chat(HELLO, max_tokens=20, seed=1) == first
    assert llm.chat(HELLO, max_tokens=20, seed=2) != first


def test_a_random_seed_is_reported_and_repeats_the_text(llm):
    result = run(llm.chat_stream(HELLO, max_tokens=20))
    assert llm.chat(HELLO, max_tokens=20, seed=result.seed) == result.text


def test_greedy_follows_the_logits(llm):
    result = run(llm.chat_stream(HELLO, max_tokens=6, temperature=0))
    prompt = llm.tokenizer.encode(llm.tokenizer.render(HELLO))
    logits = llm.logits(prompt + result.token_ids)
    logits[:, 510:] = -np.inf
    assert np.argmax(logits[len(prompt) - 1 : -1], axis=1).tolist() == result.token_ids


def test_unnamed_ids_are_never_generated(llm):
    """No token has the ids 510 and 511; so flat a distribution would draw each of them about twice."""
    llm.tokenizer.eos_token_ids = ()
    ids = run(llm.chat_stream(HELLO, temperature=1000.0, top_k=0, seed=0)).token_ids
    assert len(ids) > 900
    assert max(ids) == 509


def test_the_logits_of_several_chunks_are_those_of_one_token_at_a_time(llm):
    ids = [i % 500 for i in range(PREFILL_CHUNK + 3)]
    logits = llm.logits(ids)
    assert logits.shape == (len(ids), 512)
    assert logits.dtype == np.float32
    assert llm.logits(ids[:5])[-1] == pytest.approx(logits[4], rel=1e-3, abs=1e-3)


# --- the context over several turns ------------------------------------------------------------------------


def test_an_int8_cache_is_smaller_and_nearly_as_good(llm, packed):
    ids = np.arange(3, 90)
    with tmac_llm.load(packed, cache_type="int8") as small:
        rounded = small.logits(ids)
        run(small.chat_stream(HELLO, max_tokens=2, seed=1))
        run(llm.chat_stream(HELLO, max_tokens=2, seed=1))
        sizes = [model._context._cache.n_bytes for model in (small, llm)]
    assert sizes[0] < sizes[1] / 3
    exact = llm.logits(ids)
    assert np.abs(rounded - exact).max() > 0
    assert np.linalg.norm(rounded - exact) < 0.1 * np.linalg.norm(exact)
    with pytest.raises(UsageError, match="cache type: expected f32 or int8"):
        tmac_llm.load(packed, cache_type="f16")


def test_a_second_turn_computes_only_the_new_tokens(llm):
    first = run(llm.chat_stream(HELLO, max_tokens=12, seed=3))
    messages = [*HELLO, {"role": "assistant", "content": first.text}, {"role": "user", "content": "more"}]
    second = run(llm.chat_stream(messages, max_tokens=4))
    # All but the last token of the answer, which was never fed.
    assert second.n_cached == first.n_prompt + first.n_generated - 1


def test_an_answer_does_not_depend_on_what_was_cached(llm, packed):
    llm.chat(HELLO, max_tokens=12, seed=3)
    messages = [*HELLO, {"role": "assistant", "content": "A frog."}, {"role": "user", "content": "more"}]
    with tmac_llm.load(packed) as fresh:
        assert fresh.chat(messages, max_tokens=10, temperature=0) == llm.chat(
            messages, max_tokens=10, temperature=0
        )


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(packed):
    with tmac_llm.load(packed, context_length=20) as llm, pytest.raises(ContextLengthError, match="holds 20"):
        llm.chat_stream([{"role": "user", "content": "frog " * 50}])


def test_an_answer_ends_with_the_context(packed):
    with tmac_llm.load(packed, context_length=30) as llm:
        result = run(llm.chat_stream(HELLO, temperature=1000.0, top_k=0, seed=1))
        assert result.finish_reason == "length"
        assert result.n_prompt + result.n_generated == 30


@pytest.mark.parametrize("length", [0, 1, 1025])
def test_impossible_contexts_are_refused(packed, length):
    with pytest.raises(UsageError, match="expected 2 to 1024"):
        tmac_llm.load(packed, context_length=length)


# --- the end of an answer ----------------------------------------------------------------------------------


def test_a_stop_id_ends_the_answer(llm):
    ids = run(llm.chat_stream(HELLO, max_tokens=30, seed=5)).token_ids
    llm.tokenizer.eos_token_ids = (ids[7],)
    result = run(llm.chat_stream(HELLO, max_tokens=30, seed=5))
    assert result.finish_reason == "stop"
    assert result.token_ids == ids[: ids.index(ids[7])]


def test_a_stop_string_across_tokens_is_never_shown(llm):
    text = llm.chat(HELLO, max_tokens=40, seed=5)
    stop = text[10:16]
    result = run(llm.chat_stream(HELLO, max_tokens=40, seed=5, stop=[stop]))
    assert result.text == text[: text.index(stop)]
    assert result.finish_reason == "stop"


def test_a_stop_string_that_never_comes_takes_nothing_away(llm):
    text = llm.chat(HELLO, max_tokens=40, seed=5)
    assert llm.chat(HELLO, max_tokens=40, seed=5, stop=[text[-3:] + "never"]) == text


@pytest.mark.parametrize("pieces", [["ab", "cd", "ef"], list("abcdef"), ["abcdef"]])
@pytest.mark.parametrize(
    ("stops", "expected"),
    [(["cd"], "ab"), (["x"], "abcdef"), (["fg"], "abcdef"), (["de", "c"], "ab"), (["a"], ""), ([], "abcdef")],
)
def test_stop_strings(pieces, stops, expected):
    filter_ = StopStrings(stops)
    shown = "".join(filter_.feed(piece) for piece in pieces) + filter_.flush()
    assert shown == expected
    assert filter_.found == (expected != "abcdef")


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
    filter_ = StopStrings(["###", "<end>"])
    assert [filter_.feed(piece) for piece in ("a", "#", "#", "b", "x<e", "n", "t")] == [
        "a",
        "",
        "",
        "##b",
        "x",
        "",
        "<ent",
    ]


@pytest.mark.parametrize("stop", ["text", [""], [5]])
def test_wrong_stops_are_refused(llm, stop):
    with pytest.raises(UsageError, match="stop: expected a list of texts"):
        llm.chat(HELLO, stop=stop)


# --- cancelling --------------------------------------------------------------------------------------------


def test_cancel_keeps_what_was_said(llm):
    whole = run(llm.chat_stream(HELLO, max_tokens=30, seed=6)).token_ids
    stream = llm.chat_stream(HELLO, max_tokens=30, seed=6)
    pieces = [next(stream) for _ in range(5)]
    stream.cancel()
    pieces += list(stream)
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == "".join(pieces)
    assert stream.result.token_ids == whole[: stream.result.n_generated]
    assert run(llm.chat_stream(HELLO, max_tokens=30, seed=6)).token_ids == whole


def test_cancel_during_a_long_prompt(llm):
    long = [{"role": "user", "content": "frog " * 300}]
    stream = llm.chat_stream(long, max_tokens=5, on_progress=lambda done, total: done and stream.cancel())
    assert list(stream) == []
    assert (stream.result.finish_reason, stream.result.n_generated) == ("cancelled", 0)
    assert run(llm.chat_stream(long, max_tokens=5)).n_cached == PREFILL_CHUNK


def test_keyboard_interrupt_keeps_the_answer_and_the_context(llm, monkeypatch):
    whole = run(llm.chat_stream(HELLO, max_tokens=30, seed=6)).token_ids
    stream = llm.chat_stream(HELLO, max_tokens=30, seed=6)
    said = [next(stream) for _ in range(3)]
    bind = Attention.bind

    def interrupted(cache):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Attention, "bind", lambda *_: interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert Attention.bind is bind
    assert stream.result.text.startswith("".join(said))
    assert stream.result.finish_reason == "cancelled"
    assert run(llm.chat_stream(HELLO, max_tokens=30, seed=6)).token_ids == whole


def test_a_new_answer_ends_the_one_before(llm):
    first = llm.chat_stream(HELLO, max_tokens=30)
    next(first)
    run(llm.chat_stream(HELLO, max_tokens=3))
    assert list(first) == []
    assert first.result.finish_reason == "cancelled"


def test_the_result_is_not_there_before_the_end(llm):
    with pytest.raises(UsageError, match="not complete"):
        _ = llm.chat_stream(HELLO).result


def test_a_closed_model_says_so(packed):
    llm = tmac_llm.load(packed)
    llm.close()
    with pytest.raises(UsageError, match="closed"):
        llm.chat(HELLO)


# --- defaults and mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (None, (DEFAULT_SAMPLING.temperature, DEFAULT_SAMPLING.top_k, DEFAULT_SAMPLING.top_p)),
        ({}, (DEFAULT_SAMPLING.temperature, DEFAULT_SAMPLING.top_k, DEFAULT_SAMPLING.top_p)),
        ({"do_sample": True}, (1.0, 50, 1.0)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, (0.6, 50, 0.9)),
        ({"do_sample": False}, (0.0, DEFAULT_SAMPLING.top_k, DEFAULT_SAMPLING.top_p)),
    ],
)
def test_defaults_are_those_of_generation_config(copy_of, file, expected):
    path = copy_of("generation_config.json", None if file is None else json.dumps(file))
    with tmac_llm.load(path) as llm:
        defaults = llm.sampling_defaults()
        assert (defaults["temperature"], defaults["top_k"], defaults["top_p"]) == expected
        assert run(llm.chat_stream(HELLO, max_tokens=1)).sampling.top_p == expected[2]


def test_a_generation_config_with_nonsense_is_refused(copy_of):
    with pytest.raises(PackedModelError, match=r"generation_config\.json: temperature: expected"):
        tmac_llm.load(copy_of("generation_config.json", '{"temperature": -1}'))


def test_a_missing_tokenizer_is_one_line(copy_of):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        tmac_llm.load(copy_of("tokenizer.json", None))


def test_a_base_model_continues_text_and_does_not_chat(copy_of):
    with tmac_llm.load(copy_of("chat_template.jinja", None)) as llm:
        assert llm.generate("the frog", max_tokens=4, seed=1) == llm.generate(
            "the frog", raw=True, max_tokens=4, seed=1
        )
        with pytest.raises(TemplateError, match="base model"):
            llm.chat(HELLO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"repeat_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range_are_named(llm, options, message):
    with pytest.raises(UsageError, match=message):
        llm.chat_stream(HELLO, **options)


@pytest.mark.parametrize("ids", [[], [512], [-1], [[1]]])
def test_logits_of_impossible_ids_are_refused(llm, ids):
    with pytest.raises(UsageError, match="token_ids"):
        llm.logits(ids)
