"""Draws the training curve from the log of train.py. Needs matplotlib."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="RUN.jsonl of train.py")
    parser.add_argument("--out", type=Path, required=True, help="image to write")
    args = parser.parse_args()
    # A resumed run repeats some steps; the later record is the one that was kept.
    records = sorted(
        {r["step"]: r for r in map(json.loads, args.log.read_text().splitlines())}.values(),
        key=lambda r: r["step"],
    )
    held_out = [r for r in records if "held_out" in r]
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=80)
    axes.plot(
        [r["tokens"] / 1e6 for r in records], [r["loss"] for r in records], linewidth=1, label="training mix"
    )
    axes.plot(
        [r["tokens"] / 1e6 for r in held_out],
        [r["held_out"] for r in held_out],
        "o-",
        markersize=3,
        label="held-out TinyStories",
    )
    axes.set_xlabel("million tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(0, 6)
    rate = axes.twinx()
    rate.plot(
        [r["tokens"] / 1e6 for r in records],
        [r["lr"] for r in records],
        color="grey",
        linewidth=0.8,
        alpha=0.6,
    )
    rate.set_ylabel("learning rate")
    rate.set_ylim(0, None)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
