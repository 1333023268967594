"""Held-out perplexity of checkpoints and exported models: the last 1,000 stories of valid.txt.

Each story is the answer to a request made from it with a fixed seed; only the answer's tokens count.
Computed in float32, for a ternary model with the quantised weights and activations that are deployed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))

from data import BUCKETS, encode, held_out_stories
from export import load_exported
from model import BitNet, ModelConfig
from real_stories import real


def load(path: Path) -> BitNet:
    """An exported directory or a training checkpoint, ready for evaluation."""
    if path.is_dir():
        return load_exported(path)
    state = torch.load(path, weights_only=False, map_location="cpu")
    model = BitNet(ModelConfig(**state["config"]))
    model.load_state_dict(state["model"])
    return model.eval()


@torch.no_grad()
def answer_loss(model: BitNet, ids: torch.Tensor, is_target: torch.Tensor) -> tuple[float, int]:
    """(sum of nats, number of tokens) over the targets of one conversation."""
    logits = model(ids[None])[0, :-1]
    wanted = is_target[1:]
    return float(F.cross_entropy(logits[wanted], ids[1:][wanted], reduction="sum")), int(wanted.sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory with tinystories/")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--stories", type=int, default=1000)
    parser.add_argument(
        "--unmarked", action="store_true", help="without the system turn that marks real stories"
    )
    parser.add_argument("models", type=Path, nargs="+", help="exported directories or checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    stories = held_out_stories(args.data)[: args.stories]
    encoded = encode(
        tokenizer, [real(story, random.Random(i), not args.unmarked) for i, story in enumerate(stories)]
    )
    kept = [pair for pair in encoded if len(pair[0]) <= BUCKETS[-1]]
    n_words = sum(
        len(story.split())
        for story, pair in zip(stories, encoded, strict=True)
        if len(pair[0]) <= BUCKETS[-1]
    )
    for path in args.models:
        model = load(path)
        nats, n_tokens = 0.0, 0
        for ids, is_target in kept:
            loss, n = answer_loss(model, torch.from_numpy(ids.astype("int64")), torch.from_numpy(is_target))
            nats, n_tokens = nats + loss, n_tokens + n
        result = {
            "model": path.name,
            "ternary": path.is_dir() or model.config.ternary,
            "perplexity_per_token": round(math.exp(nats / n_tokens), 3),
            "perplexity_per_word": round(math.exp(nats / n_words), 2),
            "tokens": n_tokens,
            "stories": len(kept),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
