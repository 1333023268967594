"""How matrices of each shape are multiplied fastest on this machine: what `tune` stored, read when weights are loaded.

Knows the file, one per CPU model, instruction set and version; measures nothing. No choice changes a result.

    {"cpu": .., "isa": .., "version": .., "threads": .., "choices": {key: {"prefetch": .., "panel_bytes": ..}}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tmac_llm
from tmac_llm import cache, kernels, machine
from tmac_llm.errors import StoreError
from tmac_llm.kernels import MatrixShape, Tables, Tuning

_MAX_BYTES = 4 << 20
_LIMITS = {"prefetch": (-1, 1 << 20), "panel_bytes": (0, 1 << 30)}

Choices = dict[str, Tuning]


def path() -> Path:
    """The file of this CPU, the running instruction set and this version; need not exist."""
    cpu = re.sub(r"[^A-Za-z0-9]+", "-", machine.cpu_name()).strip("-") or "cpu"
    return cache.directory() / "tuning" / f"{cpu[:80]}-{kernels.isa_selected()}-{tmac_llm.__version__}.json"


def key(shape: MatrixShape, tables: Tables) -> str:
    """What a choice belongs to: "4096x11008 2 bit g128 int8"."""
    if shape.encoding == "ternary":
        return f"{shape.m}x{shape.k} ternary"
    zeros = "z" if shape.has_zeros else ""
    return f"{shape.m}x{shape.k} {shape.bits} bit g{shape.group_size}{zeros} {tables}"


def load() -> Choices:
    """The stored choices by key; none where nothing was tuned here.

    Raises StoreError for a file that `save` did not write.
    """
    where = path()
    try:
        with open(where, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _refused(where, error.strerror or "cannot be read") from None
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused(where, "not JSON") from None
    if not isinstance(stored, dict) or not _identity().items() <= stored.items():
        raise _refused(where, f"expected {_identity()}")
    choices = stored.get("choices")
    if not isinstance(choices, dict):
        raise _refused(where, "expected an object `choices`")
    return {name: _tuning(where, name, fields) for name, fields in choices.items()}


def save(choices: Mapping[str, Tuning]) -> Path:
    """Store choices beside those of other shapes, in place of a file that `load` refuses. Returns the file.

    Raises StoreError where it cannot be written.
    """
    where = path()
    with cache.one_at_a_time(where):
        try:
            kept = load()
        except StoreError:
            kept = {}
        merged = {name: choice._asdict() for name, choice in sorted({**kept, **choices}.items())}
        stored = {**_identity(), "threads": kernels.n_threads(), "choices": merged}
        with cache.writing(where) as file:
            file.write(json.dumps(stored, indent=2).encode() + b"\n")
    return where


def reset() -> bool:
    """Forget what was stored for this CPU, instruction set and version; whether there was anything."""
    where = path()
    existed = where.exists()
    where.unlink(missing_ok=True)
    return existed


def _identity() -> dict[str, str]:
    return {"cpu": machine.cpu_name(), "isa": kernels.isa_selected(), "version": tmac_llm.__version__}


def _tuning(where: Path, name: str, fields: Any) -> Tuning:
    sound = isinstance(fields, dict) and fields.keys() == _LIMITS.keys()
    if not sound or not all(
        type(fields[field]) is int and low <= fields[field] <= high for field, (low, high) in _LIMITS.items()
    ):
        raise _refused(where, f"{name[:80]!r}: not a choice")
    return Tuning(**fields)


def _refused(where: Path, why: str) -> StoreError:
    return StoreError(f"{where}: {why}; `tmac-llm tune --reset` removes it, `tmac-llm tune` makes it anew")
