"""Turn a sentencepiece tokenizer.model into a `tokenizers.Tokenizer` that gives the same ids.

Knows the protobuf (sentencepiece_model.proto of google/sentencepiece) and the library; knows no other files.

BPE: sentencepiece merges the adjacent pair whose merged piece has the highest score, leftmost first. The
library merges by rank, so every split of a piece into two pieces is made a merge, ranked by its score.
Unigram: both find the split of the highest summed score.

Spaces become U+2581 and one is put in front of the text. Whether in front of every stretch between special
tokens or only of the first is not in this file but in tokenizer_config.json (`legacy`): see build().
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from tmac_llm.errors import TokenizerError

SPACE = "\u2581"
# Pairs of pieces that are looked up to make merges, times their length: real vocabularies 1 to 20 million.
_MAX_CUTS = 1 << 28
# Real files: 0.5 MB (32,000 pieces) to 5 MB.
MAX_BYTES = 64 << 20
_CONVERT = "convert it to tokenizer.json and put that beside the model"


class PieceType(IntEnum):
    """ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePiece:
    """The fields of a ModelProto that decide how text is split; ids are positions in `pieces`."""

    pieces: list[tuple[str, float, PieceType]]
    is_bpe: bool
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes

    @property
    def user_defined(self) -> bool:
        """Whether there are pieces that are found whole in any text."""
        return any(kind is PieceType.USER_DEFINED for _, _, kind in self.pieces)


def read(path: Path) -> SentencePiece:
    """Parse a tokenizer.model; TokenizerError where it is damaged, in tiktoken's format, or another kind."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise TokenizerError(f"{path}: larger than {MAX_BYTES} bytes, which no tokenizer is")
    if _is_tiktoken(data):
        raise TokenizerError(f"{path}: is in tiktoken's format, not sentencepiece's; {_CONVERT}")
    try:
        return _model(data)
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: not a sentencepiece model ({error}); download it again") from None
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def build(model: SentencePiece, prefix_each: bool) -> Tokenizer:
    """A tokenizer with the ids of `model`.

    prefix_each: each stretch between special tokens is treated as a text of its own: it gets the space in front
    and loses extra spaces. Otherwise neither happens, and `prepare` is to be called on the whole text.
    Control and unknown pieces become special tokens, user-defined ones are found whole in any text.
    """
    tokenizer = Tokenizer(_bpe(model) if model.is_bpe else _unigram(model))
    tokenizer.normalizer = _normalizer(model, prefix_each)
    tokenizer.decoder = _decoder(model)
    for text, _, kind in model.pieces:
        if kind in (PieceType.CONTROL, PieceType.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif kind is PieceType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(text.replace(SPACE, " "), normalized=False)])
    return tokenizer


def _bpe(model: SentencePiece) -> models.BPE:
    vocab = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    mergeable = {
        text: score
        for text, score, kind in model.pieces
        if kind in (PieceType.NORMAL, PieceType.USER_DEFINED)
    }
    if sum(len(text) ** 2 for text in mergeable) > _MAX_CUTS:
        longest = max(map(len, mergeable))
        raise TokenizerError(
            f"pieces of up to {longest} characters, which no real vocabulary has; {_CONVERT}"
        )
    merges = []
    for text, score in mergeable.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in mergeable and right in mergeable:
                merges.append((-score, vocab[text], cut, left, right))
    merges.sort()
    return models.BPE(
        vocab,
        [(left, right) for *_, left, right in merges],
        unk_token=model.pieces[model.unk_id][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePiece) -> models.Unigram:
    return models.Unigram(
        [(text, score) for text, score, _ in model.pieces], model.unk_id, model.byte_fallback
    )


def prepare(model: SentencePiece, text: str) -> str:
    """The text with the space in front and without extra spaces, as `model` says."""
    if model.remove_extra_whitespaces:
        text = re.sub(" {2,}", " ", text.lstrip(" ")).rstrip(" " + SPACE)
    return SPACE + text if text and model.add_dummy_prefix else text


def _normalizer(model: SentencePiece, prefix_each: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces and prefix_each:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix and prefix_each:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if model.remove_extra_whitespaces and prefix_each:
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    return normalizers.Sequence(steps)


def _decoder(model: SentencePiece) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _is_tiktoken(data: bytes) -> bool:
    """Lines of base64 text, a space and a rank."""
    first = data[:4096].split(b"\n", 1)[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit() and first[0].isascii()


def _model(data: bytes) -> SentencePiece:
    pieces: list[tuple[str, float, PieceType]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif field == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif field == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    _refuse(trainer, normalizer, pieces)
    unk = _integer(trainer, 40, 0)
    if not 0 <= unk < len(pieces):
        raise ValueError(f"unk_id is {unk}, the model has {len(pieces)} pieces")
    charsmap = normalizer.get(2, b"")
    return SentencePiece(
        pieces=pieces,
        is_bpe=_integer(trainer, 3, 1) == 2,
        byte_fallback=bool(_integer(trainer, 35, 0)),
        unk_id=unk,
        bos_id=_integer(trainer, 41, 1),
        eos_id=_integer(trainer, 42, 2),
        add_dummy_prefix=bool(_integer(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_integer(normalizer, 4, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def _refuse(
    trainer: dict[int, int | bytes],
    normalizer: dict[int, int | bytes],
    pieces: list[tuple[str, float, PieceType]],
) -> None:
    """TokenizerError, by name, for what would split text in another way than build() does."""
    kind = _integer(trainer, 3, 1)
    if kind not in (1, 2):
        name = {3: "word", 4: "char"}.get(kind, str(kind))
        raise TokenizerError(f"model type {name} is not supported (bpe and unigram are); {_CONVERT}")
    if _integer(trainer, 24, 0):
        raise TokenizerError(f"treat_whitespace_as_suffix is not supported; {_CONVERT}")
    if not _integer(normalizer, 5, 1):
        raise TokenizerError(f"escape_whitespaces false is not supported; {_CONVERT}")
    if any(kind is PieceType.UNUSED for _, _, kind in pieces):
        raise TokenizerError(f"pieces of type UNUSED are not supported; {_CONVERT}")


def _piece(data: bytes) -> tuple[str, float, PieceType]:
    fields = dict(_fields(data))
    text, score = fields.get(1, b""), fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError("a piece has fields of the wrong type")
    return text.decode(), struct.unpack("<f", score)[0], PieceType(_integer(fields, 3, 1))


def _integer(fields: Mapping[int, int | bytes], number: int, default: int) -> int:
    """A varint field as int32."""
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} has the wrong type")
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message; fixed-size values stay bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if size > len(data) - at:
            raise ValueError(f"ends at byte {len(data)}, a field reaches to {at + size}")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")
