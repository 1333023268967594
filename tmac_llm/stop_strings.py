"""Find stop strings in text that comes in pieces; knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tmac_llm.errors import UsageError


class StopStrings:
    """Passes text on up to the first stop string, of which nothing is passed on.

    strings: what ends the text; the one that is complete first counts, on ties the one that begins first.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if isinstance(strings, str) or not all(isinstance(s, str) and s for s in strings):
            raise UsageError(f"stop: expected a list of texts that are not empty, found {strings!r}")
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """The text that may be shown; what could still become a stop string is held back."""
        if self.found or not self._strings:
            return "" if self.found else piece
        text = self._held + piece
        ends = [(at + len(s), at) for s in self._strings if (at := text.find(s)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        n = self._n_held(text)
        self._held = text[len(text) - n :]
        return text[: len(text) - n]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _n_held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._strings)) - 1
        return next(
            (
                n
                for n in range(min(longest, len(text)), 0, -1)
                if any(s.startswith(text[-n:]) for s in self._strings)
            ),
            0,
        )
