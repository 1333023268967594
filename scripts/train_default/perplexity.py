"""Held-out perplexity of checkpoints and exported models: the last 1,000 stories of valid.txt.

Each story is the answer to a request made from it with a fixed seed; only the answer's tokens count. With
--composed, stories of the composer that no training epoch has.
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

from conversations import Conversation, composed
from data import BUCKETS, encode, held_out_stories
from export import load_exported
from model import BitNet, ModelConfig
from real_stories import real

COMPOSED_SEED = 1_000_000  # epochs count from 0


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


def held_out(args: argparse.Namespace) -> list[tuple[Conversation, int]]:
    """The conversations that are measured, and the words of each answer (0 where they are not counted)."""
    if args.composed:
        rng = random.Random(COMPOSED_SEED)
        return [(composed(rng, 0), 0) for _ in range(args.composed)]
    stories = held_out_stories(args.data)[: args.stories]
    return [
        (real(story, random.Random(i), not args.unmarked), len(story.split()))
        for i, story in enumerate(stories)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory with tinystories/")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--stories", type=int, default=1000)
    parser.add_argument(
        "--composed", type=int, metavar="N", help="N composed stories of a seed that no epoch has, instead"
    )
    parser.add_argument(
        "--unmarked", action="store_true", help="without the system turn that marks real stories"
    )
    parser.add_argument("models", type=Path, nargs="+", help="exported directories or checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    conversations, words = zip(*held_out(args), strict=True)
    encoded = encode(Tokenizer.from_file(str(args.tokenizer)), list(conversations))
    fits = [len(ids) <= BUCKETS[-1] for ids, _ in encoded]
    kept = [pair for pair, fit in zip(encoded, fits, strict=True) if fit]
    n_words = sum(n for n, fit in zip(words, fits, strict=True) if fit)
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
            "perplexity_per_word": round(math.exp(nats / n_words), 2) if n_words else None,
            "tokens": n_tokens,
            "conversations": len(kept),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
