"""tokenizer.model files give the ids and texts that the sentencepiece package gives."""

import json
import random
import struct

import pytest

from tmac_llm import spm
from tmac_llm.errors import TokenizerError
from tmac_llm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def fixture_dir(golden_dir):
    return golden_dir / "spm_tokenizer_512"


def cases(directory):
    return json.loads((directory / "cases.json").read_text(encoding="utf-8"))


def test_golden_ids(fixture_dir):
    tokenizer = Tokenizer.from_dir(fixture_dir)
    for case in cases(fixture_dir):
        assert tokenizer.encode(case["text"], parse_special=False) == case["ids"], case["text"]


def test_golden_ids_with_bos(fixture_dir):
    tokenizer = Tokenizer.from_dir(fixture_dir)
    for case in cases(fixture_dir):
        ids = tokenizer.encode(case["text"], add_special_tokens=True, parse_special=False)
        assert ids == case["ids_with_bos"], case["text"]


def test_golden_text(fixture_dir):
    tokenizer = Tokenizer.from_dir(fixture_dir)
    for case in cases(fixture_dir):
        assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_special_ids(fixture_dir):
    tokenizer = Tokenizer.from_dir(fixture_dir)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.vocab_size) == (1, (2,), 512)
    assert tokenizer.encode("</s>") == [2]


# --- the protobuf, written by hand -------------------------------------------------------------------------


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(pieces, trainer=(), normalizer=()):
    """A ModelProto: pieces are (text, score, type)."""
    out = b""
    for text, score, kind in pieces:
        out += field(1, field(1, text.encode()) + field(2, float(score)) + field(3, kind))
    out += field(2, b"".join(field(number, value) for number, value in {3: 2, **dict(trainer)}.items()))
    return out + field(3, b"".join(field(number, value) for number, value in dict(normalizer).items()))


BASIC = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), *((f"<0x{b:02X}>", 0, 6) for b in range(256))]
LETTERS = [(c, -100 - i, 1) for i, c in enumerate("▁abc")]
WORDS = [
    ("ab", -1, 1),
    ("bc", -2, 1),
    ("▁a", -3, 1),
    ("aa", -4, 1),
    ("aaa", -5, 1),
    ("▁▁", -6, 1),
    ("▁ab", -7, 1),
]
BYTES = {35: 1}


def write(tmp_path, data, config=None):
    (tmp_path / "tokenizer.model").write_bytes(data)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("remove_extra", [0, 1])
@pytest.mark.parametrize("dummy_prefix", [0, 1])
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", [1, 2])
def test_random_text_gives_the_ids_of_sentencepiece(tmp_path, kind, legacy, dummy_prefix, remove_extra):
    sentencepiece = pytest.importorskip("sentencepiece")
    data = model(BASIC + LETTERS + WORDS, {**BYTES, 3: kind}, {3: dummy_prefix, 4: remove_extra})
    config = {"legacy": legacy, "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer.from_dir(write(tmp_path, data, config))
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    rng = random.Random(0)
    for _ in range(400):
        text = "".join(rng.choice("aabbcc  é😀\n") for _ in range(rng.randint(0, 12)))
        assert tokenizer.encode(text, parse_special=False) == reference.encode(text), repr(text)
        ids = reference.encode(text)
        assert tokenizer.decode(ids) == reference.decode(ids), repr(text)


@pytest.mark.parametrize(("legacy", "pieces"), [(True, ["▁a", "</s>", "▁a"]), (False, ["▁a", "</s>", "a"])])
def test_the_space_after_a_special_token_depends_on_legacy(tmp_path, legacy, pieces):
    data = model(BASIC + LETTERS + WORDS, BYTES, {4: 0})
    config = {"legacy": legacy, "eos_token": "</s>"}
    tokenizer = Tokenizer.from_dir(write(tmp_path, data, config))
    texts = [piece for piece, _, _ in BASIC + LETTERS + WORDS]
    assert [texts[i] for i in tokenizer.encode("a</s>a")] == pieces


def test_unknown_characters_in_a_row_are_one_unknown_piece(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    data = model(BASIC[:3] + LETTERS + WORDS)
    tokenizer = Tokenizer.from_dir(write(tmp_path, data))
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in ("éé", "aéçb é", "ab漢字ab"):
        assert tokenizer.encode(text) == reference.encode(text)


def test_user_defined_pieces_are_found_whole(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    data = model([*BASIC, *LETTERS, *WORDS, ("cab", 0, 4)], BYTES)
    tokenizer = Tokenizer.from_dir(write(tmp_path, data))
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in ("cab", "acabab", "a cab b", "bcabcab"):
        assert tokenizer.encode(text) == reference.encode(text)


def test_added_tokens_beyond_the_pieces_keep_their_ids(tmp_path):
    n = len(BASIC + LETTERS)
    directory = write(
        tmp_path, model(BASIC + LETTERS, BYTES), {"added_tokens_decoder": {str(n + 2): {"content": "<x>"}}}
    )
    (directory / "added_tokens.json").write_text(json.dumps({"<pad>": n}))
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.encode("<pad>") == [n]
    assert tokenizer.encode("<x>") == [n + 2]
    assert tokenizer.vocab_size == n + 3


REFUSED = {
    "tiktoken": (b"IQ== 0\nIg== 1\n", "tiktoken"),
    "empty": (b"", "no pieces"),
    "text": (b"not a protobuf at all, just words", "not a sentencepiece model"),
    "truncated": (model(BASIC)[:-7], "not a sentencepiece model"),
    "endless number": (b"\xff" * 40, "not a sentencepiece model"),
    "huge length": (varint(1 << 3 | 2) + varint(1 << 62), "not a sentencepiece model"),
    "word model": (model(BASIC, {3: 3}), "model type word"),
    "suffix": (model(BASIC, {24: 1}), "treat_whitespace_as_suffix"),
    "no escape": (model(BASIC, {}, {5: 0}), "escape_whitespaces"),
    "unused pieces": (model([*BASIC, ("x", 0, 5)]), "UNUSED"),
    "unknown type": (model([*BASIC, ("x", 0, 9)]), "not a sentencepiece model"),
    "unk outside": (model(BASIC, {40: 5000}), "unk_id"),
    "bad text": (field(1, field(1, b"\xff\xfe")), "not a sentencepiece model"),
    "score of a wrong type": (field(1, field(1, b"a") + field(2, 7)), "wrong type"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_files_are_refused_by_name(tmp_path, data, message):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=message) as caught:
        spm.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_damage_is_refused_or_read(tmp_path):
    whole = model(BASIC + LETTERS + WORDS, BYTES)
    path = tmp_path / "tokenizer.model"
    rng = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data))
        try:
            spm.build(spm.read(path), prefix_each=True)
        except TokenizerError:
            continue
