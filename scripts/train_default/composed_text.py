"""Prints composed conversations in the chat format of the default model, for calibration and evaluation.

    python scripts/train_default/composed_text.py --seed 2000000 --count 500 > calibration.txt

Training epochs take seeds from 0 on.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conversations import composed


def main() -> None:
    """One line of text without breaks between conversations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.count):
        turns = "".join(f"<|{role}|>{text}<|end|>" for role, text in composed(rng, 0))
        sys.stdout.write(f"<|bos|>{turns}")


if __name__ == "__main__":
    main()
