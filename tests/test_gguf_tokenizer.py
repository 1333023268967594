"""Vocabularies in GGUF metadata: the same ids as the tokenizer they were made from, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tmac_llm import spm
from tmac_llm.errors import TokenizerError
from tmac_llm.gguf_tokenizer import write_tokenizer_files
from tmac_llm.tokenizer import Tokenizer as OurTokenizer

TEXTS = [
    "Hello world!",
    " leading and  double   spaces ",
    "I'll say they've 12345 apples, it's 3.14\n\n\tdone",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600\u200d\U0001f680",
    "x<|eot_id|>y<think>z",
    "A\u030angstrom",
]
# As the repositories of Llama 3 and Qwen 2 write them in tokenizer.json.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(pattern: str | None, nfc: bool = False, digits: bool = False) -> Tokenizer:
    """A trained byte-level BPE tokenizer, cut by `pattern`, or as GPT-2. digits: cut apart, merges or not."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pattern == LLAMA_3))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS * 3, "12345 123 1234 hello Hello the they"], trainer)
    if digits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte]
        )
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def metadata_of(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """What llama.cpp's converter writes of a byte-level tokenizer."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    kinds = [3 if token.startswith("<|") else 4 if token == "<think>" else 1 for token in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.bos_token_id": vocab["<|begin_of_text|>"],
        "tokenizer.ggml.eos_token_id": vocab["<|end_of_text|>"],
        "tokenizer.ggml.eot_token_id": vocab["<|eot_id|>"],
        "tokenizer.chat_template": "{{ messages[0].content }}<|eot_id|>",
    }


@pytest.mark.parametrize(
    ("pre", "pattern", "nfc"),
    [
        ("llama-bpe", LLAMA_3, False),
        ("falcon3", LLAMA_3, False),
        ("qwen2", QWEN_2, True),
        ("gpt-2", None, False),
        ("olmo", None, False),
        ("smollm", None, False),
    ],
)
def test_byte_level(tmp_path: Path, pre: str, pattern: str | None, nfc: bool) -> None:
    original = byte_level(pattern, nfc, digits=pre == "smollm")
    metadata = metadata_of(original, pre)
    write_tokenizer_files(metadata, tmp_path, "m.gguf")
    made, bos = OurTokenizer.from_dir(tmp_path), original.token_to_id("<|begin_of_text|>")
    for text in TEXTS:
        expected = original.encode(text, add_special_tokens=False).ids
        assert made.encode(text) == expected
        assert made.encode_prompt(text) == ([bos] if pattern == LLAMA_3 else []) + expected
        plain = [i for i in expected if i < original.token_to_id("<|begin_of_text|>") or i > bos + 2]
        assert made.decode(expected) == original.decode(plain)
    assert made.bos_token_id == bos
    assert made.eos_token_ids == (bos + 1, bos + 2)
    assert made.render([{"role": "user", "content": "hi"}]) == "hi<|eot_id|>"


@pytest.mark.parametrize(("pre", "n_tokens"), [("llama-bpe", 1), ("qwen2", 3)])
def test_words_that_no_merge_reaches(tmp_path: Path, pre: str, n_tokens: int) -> None:
    """Llama 3 looks a whole word up before it merges."""
    metadata = metadata_of(byte_level(LLAMA_3), pre)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "Zqx"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1]
    write_tokenizer_files(metadata, tmp_path, "m.gguf")
    assert len(OurTokenizer.from_dir(tmp_path).encode("Zqx")) == n_tokens


def test_the_end_of_a_turn_ends_an_answer(tmp_path: Path) -> None:
    """Also where no chat template writes it."""
    metadata = {**BPE, "tokenizer.chat_template": None}
    write_tokenizer_files(metadata, tmp_path, "m.gguf")
    eos, eot = (metadata[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot"))
    assert OurTokenizer.from_dir(tmp_path).eos_token_ids == (eos, eot)


@pytest.mark.parametrize("says", [True, False])
def test_bos_is_added_where_the_file_says_so(tmp_path: Path, says: bool) -> None:
    original = byte_level(LLAMA_3)
    metadata = metadata_of(original, "llama-bpe") | {"tokenizer.ggml.add_bos_token": says}
    write_tokenizer_files(metadata, tmp_path, "m.gguf")
    made = OurTokenizer.from_dir(tmp_path)
    assert (made.encode_prompt("a")[0] == made.bos_token_id) == says


def metadata_of_spm(model: spm.SentencePiece) -> dict[str, Any]:
    texts, scores, kinds = zip(*model.pieces, strict=True)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(texts),
        "tokenizer.ggml.scores": list(scores),
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.bos_token_id": model.bos_id,
        "tokenizer.ggml.eos_token_id": model.eos_id,
        "tokenizer.ggml.unknown_token_id": model.unk_id,
        "tokenizer.ggml.remove_extra_whitespaces": model.remove_extra_whitespaces,
        "tokenizer.ggml.add_space_prefix": model.add_dummy_prefix,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*TEXTS[:4], "the quick brown fox jumps over the lazy dog"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "t"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    (tmp_path / "out").mkdir()
    write_tokenizer_files(metadata_of_spm(spm.read(tmp_path / "t.model")), tmp_path / "out", "m.gguf")
    made = OurTokenizer.from_dir(tmp_path / "out")
    for text in [*TEXTS[:4], "lazy foxes \u2603"]:
        expected = reference.encode(text)
        assert made.encode(text) == expected
        assert made.encode_prompt(text) == [reference.bos_id(), *expected]
        assert made.decode(expected) == reference.decode(expected)
    assert made.eos_token_ids == (reference.eos_id(),)


def test_the_golden_sentencepiece_model(golden_dir: Path, tmp_path: Path) -> None:
    source = golden_dir / "spm_tokenizer_512"
    write_tokenizer_files(metadata_of_spm(spm.read(source / "tokenizer.model")), tmp_path, "m.gguf")
    made = OurTokenizer.from_dir(tmp_path)
    cases = json.loads((source / "cases.json").read_text())
    for case in cases["cases"] if isinstance(cases, dict) else cases:
        assert made.encode(case["text"], parse_special=False) == case["ids"]


def test_pieces_that_would_take_forever(tmp_path: Path) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "a" * (1 << 20)],
        "tokenizer.ggml.scores": [0.0, 0.0],
    }
    with pytest.raises(TokenizerError, match=r"m\.gguf: pieces of up to 1048576 characters"):
        write_tokenizer_files(metadata, tmp_path, "m.gguf")


BPE = metadata_of(byte_level(LLAMA_3), "llama-bpe")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model 'bert' is not supported; supported: llama, gpt2"),
        ({"model": None}, "tokenizer.ggml.model: expected a text"),
        ({"pre": "default"}, "'default' is not known.*put the tokenizer.json"),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokens": []}, "tokens is empty"),
        ({"tokens": None}, "tokens: expected a list"),
        ({"tokens": [1, 2]}, "tokens: expected a list of the strs"),
        ({"tokens": ["a", "a"], "token_type": None}, "the token 'a' is there twice"),
        ({"token_type": [1]}, r"token_type: expected a list of \d+ ints"),
        ({"token_type": [9] * len(BPE["tokenizer.ggml.tokens"])}, "9 is not a valid PieceType"),
        ({"merges": ["a"]}, "'a' merges no tokens"),
        ({"merges": ["a bcdefg"]}, "merges no tokens"),
        ({"bos_token_id": 1 << 20}, "bos_token_id is 1048576, there are"),
        ({"model": "llama"}, "scores: expected a number per token"),
        (
            {"model": "llama", "scores": [float("nan")] * len(BPE["tokenizer.ggml.tokens"])},
            "scores: expected",
        ),
    ],
)
def test_vocabularies_that_are_refused(tmp_path: Path, changes: Any, match: str) -> None:
    metadata = {**BPE, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    with pytest.raises(TokenizerError, match=match) as info:
        write_tokenizer_files(metadata, tmp_path, "m.gguf")
    assert "\n" not in str(info.value)
    assert str(info.value).startswith("m.gguf: ")
