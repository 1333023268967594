"""Text of token ids as they come, never half a character; knows a `tokenizers.Tokenizer` and nothing else."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, decoders

from tmac_llm.spm import SPACE


class TextStream:
    """Text of token ids as they come: nothing of a character before all of it is there.

    Byte tokens (<0x0A>) are put together here: the library decodes a run of them as a whole, so one wrong
    byte would change text that was handed out already.
    """

    def __init__(self, tokenizer: Tokenizer, byte_tokens: Mapping[int, int], after: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_tokens = byte_tokens
        self._ids = [i for i in after[-4:] if i not in byte_tokens]
        self._stream = decoders.DecodeStream(self._ids, True)
        self._pending: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_bytes = False

    def step(self, token_id: int) -> str:
        """The text that this id completes, often none."""
        if token_id in self._byte_tokens:
            before = "" if self._in_bytes else self._end_text()
            self._in_bytes = True
            return before + self._utf8.decode(bytes([self._byte_tokens[token_id]]))
        before = self._end_bytes()
        text = self._stream.step(self._tokenizer, token_id)
        if text is None:
            self._pending.append(token_id)
            return before
        self._pending.clear()
        return before + text

    def flush(self) -> str:
        """The rest at the end: U+FFFD for a character that was not completed."""
        return self._end_bytes() + self._end_text()

    def _end_bytes(self) -> str:
        if not self._in_bytes:
            return ""
        self._in_bytes = False
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        # What follows is not the beginning of a text, where some decoders drop a space.
        space = self._tokenizer.token_to_id(SPACE)
        self._stream = decoders.DecodeStream([] if space is None else [space], True)
        return text

    def _end_text(self) -> str:
        """Text of the ids that the library still holds back."""
        held: str = self._tokenizer.decode(self._pending) if self._pending else ""
        self._pending.clear()
        return held


def byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """id -> byte, where the tokenizer falls back to bytes."""
    state = tokenizer.decoder.__getstate__() if tokenizer.decoder else b""
    if b"ByteFallback" not in state:
        return {}
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    return {i: byte for byte, i in enumerate(ids) if i is not None}
