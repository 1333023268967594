"""Typed access to the keys of a config.json, each failure one line; does not know what the keys mean."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from tmac_llm.errors import CheckpointError, UnsupportedError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def show(value: object) -> str:
    """A short one-line form of any value, for error messages."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer with more digits than Python converts
        return "a number with thousands of digits"


class Fields:
    """Typed access to the keys of one JSON object; null counts as absent, as in transformers."""

    def __init__(self, d: Mapping[str, Any], where: str = "") -> None:
        if not isinstance(d, Mapping):
            raise CheckpointError(f"config.json: expected an object, found {show(d)}")
        self.d = d
        self.where = where

    def has(self, key: str) -> bool:
        return self.d.get(key) is not None

    def bad(self, key: str, expected: str) -> CheckpointError:
        found = show(self.d[key]) if self.has(key) else "nothing"
        return CheckpointError(f"config.json: {self.where}{key} must be {expected}, found {found}")

    def unsupported(self, key: str, supported: str) -> UnsupportedError:
        found = show(self.d[key]) if self.has(key) else "nothing"
        return UnsupportedError(
            f"config.json: {self.where}{key} is {found}, which is not supported; supported: {supported}"
        )

    def integer(self, key: str, maximum: int, default: int | None = None) -> int:
        value = self.d.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
            raise self.bad(key, f"an integer from 1 to {maximum}")
        return value

    def number(self, key: str, default: float | None = None, minimum: float = 0.0) -> float:
        """A finite number greater than `minimum`."""
        value = self.d.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and minimum < value < 1e30:
            return float(value)
        raise self.bad(key, f"a number greater than {minimum:g}")

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def boolean(self, key: str, default: bool | None = False) -> bool:
        value = self.d.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def choice(self, key: str, choices: tuple[str, ...], aliases: Mapping[str, str] | None = None) -> str:
        value = self.d.get(key)
        if isinstance(value, str):
            value = (aliases or {}).get(value, value)
            if value in choices:
                return value
        if value is not None and not isinstance(value, str):
            raise self.bad(key, f"one of {', '.join(choices)}")
        raise self.unsupported(key, ", ".join(choices))

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.d[key]
        ids = value if isinstance(value, list) else [value]
        if not ids or any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 1 << 31 for i in ids):
            raise self.bad(key, "a token id or a list of token ids")
        return tuple(ids)
