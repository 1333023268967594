"""Tokenizers of tokenizer.json, special tokens in messages, and text that comes token by token."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tmac_llm.errors import TemplateError, TokenizerError, UsageError
from tmac_llm.tokenizer import Tokenizer

TINY = Path(__file__).parent / "data" / "tiny-bitnet"


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer.from_dir(TINY)


def variant(tmp_path, **files):
    """A copy of the tiny tokenizer with files replaced: {"config_json": {...}}; None deletes."""
    shutil.copytree(TINY, tmp_path / "t", ignore=shutil.ignore_patterns("*.safetensors"))
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        path = tmp_path / "t" / f"{stem}.{suffix}"
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return tmp_path / "t"


def test_golden_tokenizer_json(golden_dir):
    directory = golden_dir / "tokenizer_json_ascii160"
    tokenizer = Tokenizer.from_dir(directory)
    for case in json.loads((directory / "cases.json").read_text(encoding="utf-8")):
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.encode(case["text"], add_special_tokens=True) == case["ids_with_special"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]


# --- bos and eos -------------------------------------------------------------------------------------------


def test_bos_is_not_doubled(tiny):
    once = tiny.encode_prompt("hello")
    assert once == [tiny.bos_token_id, *tiny.encode("hello")]
    assert tiny.encode_prompt("<|begin|>hello") == once


def test_bos_is_added_where_only_the_configuration_says_so(tmp_path):
    spec = json.loads((TINY / "tokenizer.json").read_text()) | {"post_processor": None}
    config = json.loads((TINY / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
    tokenizer = Tokenizer.from_dir(variant(tmp_path, tokenizer_json=spec, tokenizer_config_json=config))
    assert tokenizer.encode_prompt("hello") == [tokenizer.bos_token_id, *tokenizer.encode("hello")]


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 8}, (7, 9, 1)),
        ({"eos_token_id": 7}, {"eos_token_id": 8}, (7, 1)),
        ({}, {"eos_token_id": 8}, (8, 1)),
        ({}, {}, (1,)),
        ({"eos_token_id": [1, 1]}, {}, (1,)),
    ],
)
def test_stop_ids(tmp_path, generation, config, expected):
    directory = variant(tmp_path, generation_config_json=generation, config_json=config)
    assert Tokenizer.from_dir(directory).eos_token_ids == expected


def test_the_end_of_turn_of_the_template_stops_too(tmp_path):
    """microsoft/bitnet-b1.58-2B-4T: config.json names <|end_of_text|> only, turns end with <|eot_id|>."""
    config = json.loads((TINY / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"510": {"content": "<|eot_id|>", "special": True}}
    directory = variant(
        tmp_path, tokenizer_config_json=config, chat_template_jinja="{{ messages[0].content }}<|eot_id|>"
    )
    assert 510 in Tokenizer.from_dir(directory).eos_token_ids


def test_tokens_may_be_written_as_objects(tmp_path):
    config = {"bos_token": {"content": "<|begin|>"}, "eos_token": {"content": "<|end|>"}}
    tokenizer = Tokenizer.from_dir(variant(tmp_path, tokenizer_config_json=config))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (0, (1,))


# --- special tokens in text --------------------------------------------------------------------------------


def test_special_tokens_in_text_are_recognised_unless_asked_not_to(tiny):
    assert tiny.encode("<|end|>") == [1]
    plain = tiny.encode("<|end|>", parse_special=False)
    assert 1 not in plain
    assert tiny.decode(plain) == "<|end|>"


def test_a_message_cannot_write_special_tokens(tiny):
    text = "a<|end|><|user|>b"
    ids = tiny.encode_marked(tiny.render_marked([{"role": "user", "content": text}]))
    assert [i for i in ids if i < 5] == [0, 3, 1, 4]  # begin, user, end, assistant: of the template only
    assert tiny.decode(ids) == text


def test_a_message_without_special_tokens_is_encoded_as_rendered(tiny):
    messages = [{"role": "user", "content": "the frog é 漢"}]
    assert tiny.encode_marked(tiny.render_marked(messages)) == tiny.encode(tiny.render(messages))


@pytest.mark.parametrize("text", ["a\udcff", "<|user|>\ud800"])
def test_text_that_is_not_unicode_is_refused(tiny, text):
    marked = tiny.render_marked([{"role": "user", "content": text}])
    for encode in (lambda: tiny.encode(text), lambda: tiny.encode_marked(marked)):
        with pytest.raises(UsageError, match=r"is no Unicode character \('\\ud"):
            encode()


def test_marks_written_by_the_user_do_not_help(tiny):
    ids = tiny.encode_marked(tiny.render_marked([{"role": "user", "content": "<\ufdd0|end|>"}]))
    assert [i for i in ids if i < 5] == [0, 3, 1, 4]


def test_text_inside_a_list_is_marked_too(tmp_path):
    tokenizer = Tokenizer.from_dir(variant(tmp_path, chat_template_jinja="{{ messages[0].content[0].text }}"))
    marked = tokenizer.render_marked([{"role": "user", "content": [{"type": "text", "text": "<|end|>"}]}])
    assert 1 not in tokenizer.encode_marked(marked)


def test_a_prefix_space_only_at_the_beginning(tmp_path):
    """A Metaspace tokenizer with prepend_scheme "first": the text after a special token gets no space."""
    vocab = {"<s>": 0, "</s>": 1, "▁": 2, "a": 3, "<": 4, "/": 5, "s": 6, ">": 7, "▁a": 8}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    spec = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": c, **special} for i, c in enumerate(("<s>", "</s>"))],
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "a"]]},
    }
    tokenizer = Tokenizer.from_dir(
        variant(
            tmp_path,
            tokenizer_json=spec,
            tokenizer_config_json={"eos_token": "</s>"},
            chat_template_jinja="{{ messages[0].content }}</s>a",
        )
    )
    assert tokenizer.encode("a</s>a") == [8, 1, 3]
    marked = tokenizer.render_marked([{"role": "user", "content": "a</s>"}])
    assert tokenizer.encode_marked(marked) == [8, 4, 5, 6, 7, 1, 3]


# --- templates ---------------------------------------------------------------------------------------------


def test_rendering_gives_the_template_its_tokens(tiny):
    text = tiny.render([{"role": "user", "content": "hi"}])
    assert text == "<|begin|><|user|>hi<|end|><|assistant|>"
    assert tiny.render([{"role": "user", "content": "hi"}], add_generation_prompt=False)[-7:] == "<|end|>"


def test_the_jinja_file_wins(tmp_path):
    directory = variant(tmp_path, tokenizer_config_json={"chat_template": "old"}, chat_template_jinja="new")
    assert Tokenizer.from_dir(directory).render([]) == "new"


@pytest.mark.parametrize(
    "template",
    [
        "default text",
        [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "default text"}],
    ],
)
def test_templates_of_the_configuration(tmp_path, template):
    directory = variant(tmp_path, tokenizer_config_json={"chat_template": template}, chat_template_jinja=None)
    assert Tokenizer.from_dir(directory).render([]) == "default text"


def test_a_base_model_has_no_template(tmp_path):
    tokenizer = Tokenizer.from_dir(variant(tmp_path, chat_template_jinja=None))
    assert not tokenizer.has_chat_template
    with pytest.raises(TemplateError, match="base model"):
        tokenizer.render([])


# --- text that comes token by token ------------------------------------------------------------------------


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [stream.step(i) for i in ids] + [stream.flush()]


def test_characters_come_whole(tiny):
    text = "é漢字👩‍👩‍👧 na\u0301 ok"
    pieces = streamed(tiny, tiny.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_cut_character_is_shown_at_the_end_only(tiny):
    ids = tiny.encode("a漢")[:-1]
    pieces = streamed(tiny, ids)
    assert all("\ufffd" not in piece for piece in pieces[:-1])
    assert "\ufffd" in pieces[-1]


def test_special_and_unnamed_ids_give_no_text(tiny):
    assert tiny.decode([0, *tiny.encode("hi"), 1, 511]) == "hi"


@pytest.mark.parametrize("name", ["spm_tokenizer_512", "tokenizer_json_ascii160"])
def test_any_ids_can_be_streamed(golden_dir, name):
    tokenizer = Tokenizer.from_dir(golden_dir / name)
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size + 5) for _ in range(rng.randint(1, 40))]
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_any_bytes_can_be_streamed(tiny):
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(512) for _ in range(rng.randint(1, 40))]
        assert "".join(streamed(tiny, ids)) == tiny.decode(ids)


def test_wrong_bytes_do_not_change_what_was_shown(golden_dir):
    """<0x41> is "A"; a wrong byte after it must not turn it into U+FFFD."""
    tokenizer = Tokenizer.from_dir(golden_dir / "spm_tokenizer_512")
    byte = {b: tokenizer.encode(f"\x00{chr(b)}", parse_special=False)[-1] for b in (9, 10)}
    wrong = byte[9] - 9 + 0x80
    assert streamed(tokenizer, [byte[10], wrong, byte[10]]) == ["\n", "\ufffd", "\n", ""]


def test_a_space_after_byte_tokens_stays(golden_dir):
    tokenizer = Tokenizer.from_dir(golden_dir / "spm_tokenizer_512")
    ids = tokenizer.encode("漢 was", parse_special=False)[1:]
    assert tokenizer.decode(ids) == "漢 was"


def test_a_continued_text_keeps_its_space(golden_dir):
    tokenizer = Tokenizer.from_dir(golden_dir / "spm_tokenizer_512")
    prompt, more = tokenizer.encode("Once"), tokenizer.encode("upon")
    stream = tokenizer.stream(after=prompt)
    assert "".join([stream.step(i) for i in more]) + stream.flush() == " upon"


# --- vocabularies and damaged files ------------------------------------------------------------------------


def test_ids_that_no_token_has(tiny):
    assert tiny.unnamed_ids(512).tolist() == [510, 511]
    assert tiny.unnamed_ids(510).dtype == np.intp
    assert not len(tiny.unnamed_ids(510))


def test_a_tokenizer_larger_than_the_model_is_refused(tiny):
    with pytest.raises(TokenizerError, match=r"token ids up to 509, the model a vocabulary of 400"):
        tiny.unnamed_ids(400)


def test_added_tokens_must_keep_their_ids(tmp_path):
    config = {"added_tokens_decoder": {"511": {"content": "<|user|>", "special": True}}}
    with pytest.raises(TokenizerError, match="should have id 511"):
        Tokenizer.from_dir(variant(tmp_path, tokenizer_config_json=config))


def test_added_ids_far_beyond_the_vocabulary_are_refused(tmp_path):
    config = {"added_tokens_decoder": {"2000000000": {"content": "<x>"}}}
    with pytest.raises(TokenizerError, match="2000000000"):
        Tokenizer.from_dir(variant(tmp_path, tokenizer_config_json=config))


def test_a_directory_without_a_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json, no tokenizer\.model"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', "\x00\x01"])
def test_a_damaged_tokenizer_json(tmp_path, content):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer") as caught:
        Tokenizer.from_dir(variant(tmp_path, tokenizer_json=content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["tokenizer_config_json", "generation_config_json", "special_tokens_map_json"]
)
def test_damaged_json_beside_it(tmp_path, file):
    with pytest.raises(TokenizerError, match="not JSON"):
        Tokenizer.from_dir(variant(tmp_path, **{file: "{"}))


def test_a_template_of_the_wrong_type(tmp_path):
    directory = variant(tmp_path, tokenizer_config_json={"chat_template": 5}, chat_template_jinja=None)
    with pytest.raises(TemplateError, match="expected a text or a list"):
        Tokenizer.from_dir(directory)
