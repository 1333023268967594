"""Low-bit language models on ordinary CPUs: every linear layer is a table lookup.

Knows nothing itself: the public names are imported when first used, so that `tmac-llm --help` stays quick.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tmac_llm.convert import convert
    from tmac_llm.llm import LLM, load

__version__ = "0.1.0"
__all__ = ["LLM", "__version__", "convert", "load"]

_HOME = {"LLM": "tmac_llm.llm", "load": "tmac_llm.llm", "convert": "tmac_llm.convert"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tmac_llm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Leaves `load` and `convert` to be the functions: importing the modules of those names would bind these."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
