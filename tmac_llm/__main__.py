"""`tmac-llm` and `python -m tmac_llm`: the command line. Knows nothing of its verbs."""

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line, and exit 130 for a Ctrl-C at any time, also while modules are still being imported."""
    python_raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if python_raises:  # not where the caller ignores it
        signal.signal(signal.SIGINT, _leave)
    from tmac_llm.cli import main as run

    if python_raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(signal_number: int, frame: FrameType | None) -> None:
    os._exit(130)  # nothing was begun; an exception in the middle of an import may be swallowed


if __name__ == "__main__":
    main()
