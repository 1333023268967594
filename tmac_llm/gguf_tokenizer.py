"""The vocabulary and chat template in a GGUF file's metadata as the tokenizer files of a Hub repository.

Knows the keys tokenizer.ggml.* (ggml-org/ggml, docs/gguf.md) and the `tokenizers` library; opens no GGUF file.

"llama" is sentencepiece BPE, pieces with scores. "gpt2" is byte-level BPE with merges; how text is cut before
merging is not in the file, only the name of a way, tokenizer.ggml.pre: names that are not known here are refused, as a
wrong cut gives wrong tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tmac_llm import spm
from tmac_llm.errors import TokenizerError
from tmac_llm.spm import PieceType, SentencePiece

_BESIDE = "put the tokenizer.json of the original repository beside it"


class _Cut(NamedTuple):
    """How byte-level BPE cuts text. ignore_merges: a whole word that is a token is that token. digits: each alone."""

    pattern: str
    ignore_merges: bool = False
    nfc: bool = False
    add_bos: bool = False
    digits: bool = False


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = _Cut(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", ignore_merges=True, add_bos=True)
_QWEN = _Cut(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}", nfc=True)
_GPT_2 = _Cut(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
_CUTS = {
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "falcon3": _LLAMA_3,
    "falcon_e": _LLAMA_3,
    "falcon-e": _LLAMA_3,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "gpt-2": _GPT_2,
    "olmo": _GPT_2,
    "smollm": _GPT_2._replace(digits=True),
}


def write_tokenizer_files(metadata: Mapping[str, Any], directory: Path, where: str) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises TokenizerError for a vocabulary that is damaged or of an unsupported kind, naming it.
    """
    vocabulary = _Vocabulary(metadata, where)
    kind = vocabulary.text("model")
    if kind == "llama":
        tokenizer = _sentencepiece(vocabulary)
    elif kind == "gpt2":
        tokenizer = _byte_level(vocabulary)
    else:
        raise TokenizerError(
            f"{where}: tokenizer.ggml.model {kind!r} is not supported; supported: llama, gpt2; {_BESIDE}"
        )
    bos = vocabulary.id("bos")
    if vocabulary.adds_bos and bos is not None:
        text = vocabulary.tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[text, "$A"], pair=[text, "$A", "$B"], special_tokens=[(text, bos)]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(directory / "tokenizer_config.json", _config(vocabulary))
    _write(directory / "generation_config.json", _generation_config(vocabulary))


class _Vocabulary:
    """The checked lists of a vocabulary."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata, self.where = metadata, where
        self.tokens: list[str] = self._list("tokens", str)
        if not self.tokens:
            raise TokenizerError(f"{where}: tokenizer.ggml.tokens is empty; {_BESIDE}")
        if len(set(self.tokens)) != len(self.tokens):
            seen: set[str] = set()
            twice = next(token for token in self.tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
            raise TokenizerError(f"{where}: the token {twice[:40]!r} is there twice; {_BESIDE}")
        kinds = self._list("token_type", int, len(self.tokens)) or [PieceType.NORMAL] * len(self.tokens)
        try:
            self.kinds = [PieceType(kind) for kind in kinds]
        except ValueError as error:
            raise TokenizerError(f"{where}: tokenizer.ggml.token_type: {error}; {_BESIDE}") from None

    def text(self, key: str) -> str:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, str):
            raise TokenizerError(
                f"{self.where}: tokenizer.ggml.{key}: expected a text, found {str(value)[:80]!r}; {_BESIDE}"
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, bool) else default

    def id(self, key: str) -> int | None:
        """A special token's id; None where there is none or it is no token."""
        name = f"tokenizer.ggml.{key}_token_id"
        value = self.metadata.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value in (-1, 0xFFFFFFFF):
            return None
        if not 0 <= value < len(self.tokens):
            raise TokenizerError(f"{self.where}: {name} is {value}, there are {len(self.tokens)} tokens")
        return value

    @property
    def scores(self) -> list[float]:
        scores = self._list("scores", float, len(self.tokens))
        if not scores or not all(math.isfinite(score) for score in scores):
            raise TokenizerError(
                f"{self.where}: tokenizer.ggml.scores: expected a number per token; {_BESIDE}"
            )
        return scores

    @property
    def merges(self) -> list[tuple[str, str]]:
        known, pairs = set(self.tokens), []
        for merge in self._list("merges", str):
            left, _, right = merge.partition(" ")
            if left not in known or right not in known or left + right not in known:
                raise TokenizerError(
                    f"{self.where}: tokenizer.ggml.merges: {merge[:40]!r} merges no tokens; {_BESIDE}"
                )
            pairs.append((left, right))
        return pairs

    @property
    def cut(self) -> _Cut:
        name = self.metadata.get("tokenizer.ggml.pre")
        if not isinstance(name, str) or name not in _CUTS:
            found = "is missing" if name is None else f"{str(name)[:40]!r} is not known"
            raise TokenizerError(
                f"{self.where}: tokenizer.ggml.pre {found}, and without it the text is not cut as the model learnt it;"
                f" known: {', '.join(_CUTS)}; {_BESIDE}"
            )
        return _CUTS[name]

    @property
    def adds_bos(self) -> bool:
        default = self.text("model") == "llama" or self.cut.add_bos
        return self.flag("add_bos_token", default)

    def _list(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None and key != "tokens":
            return []
        # Of one type by its format, so that the first element tells.
        if (
            not isinstance(value, list)
            or (value and not isinstance(value[0], kind))
            or (length is not None and len(value) != length)
        ):
            expected = f"a list of {length or 'the'} {kind.__name__}s"
            raise TokenizerError(f"{self.where}: tokenizer.ggml.{key}: expected {expected}; {_BESIDE}")
        return list(value)


def _sentencepiece(v: _Vocabulary) -> Tokenizer:
    """As llama.cpp treats such a vocabulary: each text after a special token is one of its own."""
    unk = v.id("unknown")
    unk = v.kinds.index(PieceType.UNKNOWN) if unk is None and PieceType.UNKNOWN in v.kinds else unk or 0
    bos, eos = v.id("bos"), v.id("eos")
    model = SentencePiece(
        pieces=list(zip(v.tokens, v.scores, v.kinds, strict=True)),
        is_bpe=True,
        byte_fallback=PieceType.BYTE in v.kinds,
        unk_id=unk,
        bos_id=-1 if bos is None else bos,
        eos_id=-1 if eos is None else eos,
        add_dummy_prefix=v.flag("add_space_prefix", True),
        remove_extra_whitespaces=v.flag("remove_extra_whitespaces", False),
        charsmap=b"",
    )
    try:
        return spm.build(model, prefix_each=True)
    except TokenizerError as error:
        raise TokenizerError(f"{v.where}: {error}") from None


def _byte_level(v: _Vocabulary) -> Tokenizer:
    cut = v.cut
    vocab = {token: i for i, token in enumerate(v.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, v.merges, ignore_merges=cut.ignore_merges))
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *([pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []),
            pre_tokenizers.Split(Regex(cut.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for special in (True, False):
        kinds = (PieceType.CONTROL, PieceType.UNKNOWN) if special else (PieceType.USER_DEFINED,)
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, kind in zip(v.tokens, v.kinds, strict=True)
            if kind in kinds
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def _config(v: _Vocabulary) -> dict[str, Any]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    config: dict[str, Any] = {
        name: v.tokens[i] for key, name in names.items() if (i := v.id(key)) is not None
    }
    config["add_bos_token"] = v.adds_bos
    template = v.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config


def _generation_config(v: _Vocabulary) -> dict[str, Any]:
    """The ids that end an answer: of the text, and of a turn."""
    ends = [i for key in ("eos", "eot", "eom") if (i := v.id(key)) is not None]
    config: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(ends))} if ends else {}
    bos = v.id("bos")
    return config if bos is None else {"bos_token_id": bos, **config}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")
