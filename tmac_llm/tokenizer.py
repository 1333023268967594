"""Text to token ids and back, as the tokenizer files of a Hub repository say.

Knows tokens and messages; knows no files, no model and no sampling.

Special tokens in text. `encode` recognises them, as the reference tokenizers do, unless told not to. In a
chat only the template may write them: whatever looks like one in a message is cut by a mark before the
template is rendered, and what surrounds a mark is encoded as plain text. Added tokens that are not special (such as
<think>) are ordinary text that messages may contain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from tmac_llm.chat_template import Message
from tmac_llm.errors import TemplateError, TokenizerError, UsageError
from tmac_llm.text_stream import TextStream, byte_tokens
from tmac_llm.tokenizer_files import TokenizerFiles, read_files

# A Unicode noncharacter: never part of text. It is removed from messages.
_MARK = "\ufdd0"
# Ends of a turn that some repositories name in their template only, not among the eos ids.
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")


class Tokenizer:
    """The tokenizer of one model.

    bos_token_id: None where there is none.
    eos_token_ids: the ids that end an answer: those of generation_config.json, else of config.json, and the
    tokenizer's eos token and the end-of-turn tokens that the chat template writes in any case.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._tokenizer, self._config = files.tokenizer, files.config
        self._prepare = files.prepare
        self.chat_template = files.chat_template
        self._specials = {
            token.content: (i, token)
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content
        }
        self._special_pattern = _special_pattern([token for _, token in self._specials.values()])
        bos = _token_text(self._config.get("bos_token"))
        self.bos_token_id: int | None = self._tokenizer.token_to_id(bos) if bos else None
        self.eos_token_ids = tuple(dict.fromkeys([*files.eos_token_ids, *self._ends()]))
        self._plain: dict[bool, HFTokenizer] = {}
        self._bytes = byte_tokens(self._tokenizer)

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Read the tokenizer of a directory: tokenizer.json, else tokenizer.model, and the JSON beside it.

        Raises TokenizerError: none there, damaged, of a kind that is not supported; TemplateError for a chat
        template that does not compile.
        """
        return cls(read_files(Path(path)))

    def _ends(self) -> list[int]:
        """The tokenizer's eos token, and the end-of-turn tokens that its chat template writes."""
        eos = _token_text(self._config.get("eos_token"))
        source = self.chat_template.source if self.chat_template else ""
        ends = [eos or "", *(end for end in _END_OF_TURN if end in self._specials and end in source)]
        return [i for end in ends if (i := self._tokenizer.token_to_id(end)) is not None]

    @property
    def has_chat_template(self) -> bool:
        """Whether this is a model for conversations."""
        return self.chat_template is not None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def largest_id(self) -> int:
        """Of all tokens, added ones included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def unnamed_ids(self, vocab_size: int) -> npt.NDArray[np.intp]:
        """Ids below the model's `vocab_size` without a token; TokenizerError if there are tokens above."""
        largest = max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
        if largest >= vocab_size:
            raise TokenizerError(
                f"the tokenizer has token ids up to {largest}, the model a vocabulary of {vocab_size};"
                " they do not belong together"
            )
        named = list(self._tokenizer.get_vocab(with_added_tokens=True).values())
        return np.setdiff1d(np.arange(vocab_size), named)

    def encode(self, text: str, add_special_tokens: bool = False, *, parse_special: bool = True) -> list[int]:
        """Token ids. add_special_tokens: with those that the tokenizer puts around a text, such as bos.

        parse_special: special tokens written in the text are those tokens; otherwise they are plain text.
        """
        _check_text(text)
        if self._prepare and not (parse_special and self._special_pattern.match(text)):
            text = self._prepare(text)
        tokenizer = self._tokenizer if parse_special else self._plain_tokenizer(first=True)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to continue: with bos where the model wants it, once even if the text has it."""
        ids = self.encode(text, add_special_tokens=True)
        if self.bos_token_id is not None:
            if ids[:2] == [self.bos_token_id] * 2:
                del ids[0]
            elif self._config.get("add_bos_token") is True and ids[:1] != [self.bos_token_id]:
                ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text without special tokens; ids without a token give nothing."""
        stream = self.stream()
        return "".join([stream.step(i) for i in ids]) + stream.flush()

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """An incremental decoder; `after`: ids before the first, on which its text may depend."""
        return TextStream(self._tokenizer, self._bytes, after)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as the chat template writes it. Raises TemplateError."""
        return self._render(messages, add_generation_prompt, variables)

    def render_marked(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """render(), with a mark in everything in the messages that looks like a special token."""
        return self._render([_map_text(m, self.mark) for m in messages], add_generation_prompt, variables)

    def mark(self, text: str) -> str:
        """`text` with a mark in everything that looks like a special token."""
        return self._special_pattern.sub(lambda match: match[0][:1] + _MARK + match[0][1:], text)

    def encode_marked(self, text: str) -> list[int]:
        """Ids of what render_marked() gave: only what the template wrote becomes special tokens."""
        if _MARK not in text:
            return self.encode(text)
        _check_text(text)
        ids: list[int] = []
        at = 0
        for match in self._special_pattern.finditer(text):
            ids += self._encode_plain(text[at : match.start()], first=at == 0)
            ids.append(self._specials[match[match.lastgroup or 0]][0])
            at = match.end()
        return ids + self._encode_plain(text[at:], first=at == 0)

    def starts_with_special(self, text: str) -> bool:
        """Whether a special token begins the text, so that it is encoded alike whatever precedes it."""
        return self._special_pattern.match(text) is not None

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        text = text.replace(_MARK, "")
        if not text:
            return []
        if self._prepare and first:
            text = self._prepare(text)
        ids: list[int] = self._plain_tokenizer(first).encode(text, add_special_tokens=False).ids
        return ids

    def _plain_tokenizer(self, first: bool) -> HFTokenizer:
        """A copy that knows no special tokens; not `first`: for text that does not begin the whole."""
        if first not in self._plain:
            spec = json.loads(self._tokenizer.to_str())
            copy = self._tokenizer.to_str() if first else json.dumps(_without_first_prefix(spec))
            self._plain[first] = HFTokenizer.from_str(copy)
            self._plain[first].encode_special_tokens = True
        return self._plain[first]

    def _render(self, messages: Sequence[Message], add_prompt: bool, variables: dict[str, Any]) -> str:
        if self.chat_template is None:
            raise TemplateError(
                "this model has no chat template: it is a base model; `tmac-llm generate` continues a text"
            )
        tokens = {
            name: _token_text(value)
            for name, value in self._config.items()
            if name in ("bos_token", "eos_token", "unk_token", "pad_token") and _token_text(value)
        }
        given = {"tools": None, "documents": None, **tokens, **variables}
        return self.chat_template.render(messages, add_generation_prompt=add_prompt, **given)


def _check_text(text: str) -> None:
    """Raises UsageError for lone surrogates, which Python makes of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"text: character {error.start} is no Unicode character ({text[error.start]!r}); expected UTF-8"
        ) from None


def _special_pattern(tokens: list[AddedToken]) -> re.Pattern[str]:
    """Finds special tokens, the longest first; group t<n> is the token without the spaces it swallows."""
    parts = []
    for n, token in enumerate(sorted(tokens, key=lambda token: -len(token.content))):
        left, right = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
        parts.append(f"{left}(?P<t{n}>{re.escape(token.content)}){right}")
    return re.compile("|".join(parts) or r"(?!)")


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every string in it changed, dictionary keys and roles left alone."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: item if key == "role" else _map_text(item, change) for key, item in value.items()}
    return value


def _without_first_prefix(value: Any) -> Any:
    """A tokenizer.json whose Metaspace adds no space at the beginning of a text."""
    if isinstance(value, list):
        return [_without_first_prefix(item) for item in value]
    if isinstance(value, dict):
        if value.get("type") == "Metaspace" and value.get("prepend_scheme") == "first":
            return value | {"prepend_scheme": "never"}
        return {key: item if key == "model" else _without_first_prefix(item) for key, item in value.items()}
    return value


def _token_text(value: Any) -> str | None:
    """A token is written as a text or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
