"""Tokenizer training, and conversations packed into rows of token ids.

Knows nothing of the model. A row holds several whole conversations; attention never crosses from one
to the next, so that training sees what `chat` sees.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parent))

from conversations import Conversation, composed, small_talk
from drills import drill
from real_stories import N_HELD_OUT, read_stories, real

SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
PAD, BOS, END = 0, 1, 2
ROLE_IDS = {"user": 3, "assistant": 4, "system": 5}
BUCKETS = (256, 512, 1024)


def training_stories(data_dir: Path) -> list[str]:
    """All TinyStories that may be trained on."""
    folder = data_dir / "tinystories"
    valid = read_stories(folder / "valid.txt")
    stories = (
        read_stories(folder / "train.txt")
        + valid[:-N_HELD_OUT]
        + read_stories(folder / "extra_truecased.txt")
    )
    return [story for story in stories if 200 <= len(story) <= 1800]


def held_out_stories(data_dir: Path) -> list[str]:
    """The last 1,000 stories of valid.txt: evaluation only."""
    return read_stories(data_dir / "tinystories" / "valid.txt")[-N_HELD_OUT:]


def conversations(
    stories: list[str], seed: int, composed_share: float, drill_share: float
) -> list[Conversation]:
    """One epoch: each real story once; composed conversations, small talk and drills beside them.

    The composed share is of stories, the drill share of all conversations.
    """
    rng = random.Random(seed)
    result = [real(story, rng) for story in stories]
    n_composed = int(len(stories) * composed_share / (1 - composed_share))
    for _ in range(n_composed):
        roll = rng.random()
        if roll < 0.06:
            result.append(small_talk(rng) + (small_talk(rng) if rng.random() < 0.2 else []))
        else:
            result.append(composed(rng, rng.choices((0, 1, 2, 3, 5), (56, 24, 13, 5, 2))[0]))
    result += [drill(rng) for _ in range(int(len(result) * drill_share / (1 - drill_share)))]
    rng.shuffle(result)
    return result


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; digits stand alone; special tokens take the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, batch: list[Conversation]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids uint16, is_target bool) per conversation: <bos> (<role> text <end>)*.

    Targets are what the assistant says, its <end> included.
    """
    texts = [text for conversation in batch for _, text in conversation]
    encoded = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    result = []
    for conversation in batch:
        ids, targets = [BOS], [False]
        for role, _ in conversation:
            turn = next(encoded).ids
            ids += [ROLE_IDS[role], *turn, END]
            targets += [False] + [role == "assistant"] * (len(turn) + 1)
        result.append((np.array(ids, dtype=np.uint16), np.array(targets)))
    return result


Encoded = tuple[np.ndarray, np.ndarray]


def _assign_rows(encoded: list[Encoded]) -> dict[int, list[list[Encoded]]]:
    """Best-fit decreasing: long conversations open rows, short ones fill the gaps.

    Conversations longer than the longest row are left out.
    """
    rows: dict[int, list[list[Encoded]]] = {bucket: [] for bucket in BUCKETS}
    by_room: list[list[list[Encoded]]] = [[] for _ in range(BUCKETS[-1] + 1)]
    fitting = [item for item in encoded if len(item[0]) <= BUCKETS[-1]]
    for item in sorted(fitting, key=lambda pair: -len(pair[0])):
        size = len(item[0])
        fit = next((room for room in range(size, len(by_room)) if by_room[room]), None)
        if fit is not None:
            row = by_room[fit].pop()
        else:
            # A short conversation alone would waste a small row, so it opens a middle one.
            short = size <= int(0.8 * BUCKETS[0])
            fit = BUCKETS[1] if short else next(bucket for bucket in BUCKETS if size <= bucket)
            row = []
            rows[fit].append(row)
        row.append(item)
        by_room[fit - size].append(row)
    return rows


def pack(encoded: list[Encoded]) -> dict[str, np.ndarray]:
    """Per bucket length L, arrays (rows, L): `ids_L` uint16, `doc_L` uint8 (0: padding), `target_L` bool."""
    arrays: dict[str, np.ndarray] = {}
    for bucket, rows in _assign_rows(encoded).items():
        ids = np.zeros((len(rows), bucket), np.uint16)
        doc = np.zeros((len(rows), bucket), np.uint8)
        target = np.zeros((len(rows), bucket), bool)
        for r, row in enumerate(rows):
            start = 0
            for d, (item_ids, item_target) in enumerate(row, start=1):
                stop = start + len(item_ids)
                ids[r, start:stop], doc[r, start:stop], target[r, start:stop] = item_ids, d, item_target
                start = stop
        arrays |= {f"ids_{bucket}": ids, f"doc_{bucket}": doc, f"target_{bucket}": target}
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tokenizer once, write packed epochs.")
    parser.add_argument("--data", type=Path, required=True, help="directory with tinystories/")
    parser.add_argument("--work", type=Path, required=True, help="where tokenizer.json and the epochs go")
    parser.add_argument("--vocab-size", type=int, default=3072)
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--composed-share", type=float, default=0.9)
    parser.add_argument(
        "--drill-share", type=float, default=0.5, help="of all conversations; drills are short"
    )
    parser.add_argument(
        "--max-stories", type=int, help="real stories per epoch, drawn anew for each; default: all"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    stories = training_stories(args.data)
    path = args.work / "tokenizer.json"
    if not path.exists():
        sample = conversations(
            stories, seed=1234, composed_share=args.composed_share, drill_share=args.drill_share
        )
        train_tokenizer([text for c in sample for _, text in c], args.vocab_size).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    for epoch in args.epochs:
        drawn = random.Random(epoch).sample(stories, args.max_stories or len(stories))
        encoded = encode(
            tokenizer,
            conversations(
                drawn, seed=epoch, composed_share=args.composed_share, drill_share=args.drill_share
            ),
        )
        arrays = pack(encoded)
        np.savez(args.work / f"epoch_{epoch}.npz", **arrays)
        sizes = {b: arrays[f"ids_{b}"].size for b in BUCKETS}
        fill = {b: round(float((arrays[f"doc_{b}"] > 0).mean()), 3) for b in BUCKETS}
        n_targets = int(sum(arrays[f"target_{b}"].sum() for b in BUCKETS))
        print(
            json.dumps(
                {
                    "epoch": epoch,
                    "conversations": len(encoded),
                    "tokens": sizes,
                    "fill": fill,
                    "targets": n_targets,
                }
            ),
            flush=True,
        )
    held_out = [
        real(story, random.Random(i))
        for i, story in enumerate(held_out_stories(args.data))
        if len(story) <= 3600
    ]
    np.savez(
        args.work / "held_out.npz",
        **pack([e for e in encode(tokenizer, held_out) if len(e[0]) <= BUCKETS[-1]]),
    )


if __name__ == "__main__":
    main()
