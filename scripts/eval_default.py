#!/usr/bin/env python3
"""Asks a model for 100 stories and counts what it keeps: names, things, endings, no loops.

Knows how to judge text, not how a model works: `--backend tmac` runs tmac-llm, `--backend torch` the
training code's float32 model. The requests lie in eval_default_requests.txt (request|name|thing).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SCRIPTS = Path(__file__).resolve().parent
MAX_NEW_TOKENS = 400
# (label, how the share is judged, bound)
GOALS = {"name": 0.90, "thing": 0.80, "ends": 0.90, "loops": 0.02, "distinct3_ratio": 0.50}


class Item(NamedTuple):
    request: str
    name: str
    thing: str


class Answer(NamedTuple):
    text: str
    ended: bool  # the model stopped by itself


Ask = Callable[[str, int], Answer]


def read_requests(path: Path = SCRIPTS / "eval_default_requests.txt") -> list[Item]:
    return [Item(*line.split("|")) for line in path.read_text(encoding="utf-8").splitlines() if line]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def loops(text: str) -> bool:
    """Any eight consecutive words that occur three times."""
    words = words_of(text)
    counts = Counter(tuple(words[i : i + 8]) for i in range(len(words) - 7))
    return bool(counts) and max(counts.values()) >= 3


def distinct_3(texts: list[str]) -> float:
    """Distinct word trigrams / all word trigrams, over all texts together."""
    grams = [tuple(words[i : i + 3]) for words in map(words_of, texts) for i in range(len(words) - 2)]
    return len(set(grams)) / len(grams) if grams else 0.0


def contains(text: str, word: str) -> bool:
    """The word as a whole word, its plural counts too; letter case is ignored."""
    return re.search(rf"\b{re.escape(word)}(?:e?s)?\b", text, re.IGNORECASE) is not None


def judge(items: list[Item], answers: list[Answer], real_stories: list[str] | None) -> dict[str, float]:
    """Shares over all answers; `distinct3_ratio` compares with as many words of real stories."""
    n = len(answers)
    result = {
        "name": sum(contains(a.text, i.name) for i, a in zip(items, answers, strict=True)) / n,
        "thing": sum(contains(a.text, i.thing) for i, a in zip(items, answers, strict=True)) / n,
        "ends": sum(a.ended for a in answers) / n,
        "loops": sum(loops(a.text) for a in answers) / n,
        "words": sum(len(words_of(a.text)) for a in answers) / n,
        "distinct3": distinct_3([a.text for a in answers]),
    }
    if real_stories:
        # The measure falls with the amount of text, so both sides need the same amount.
        budget = sum(len(words_of(a.text)) for a in answers)
        taken: list[str] = []
        for story in real_stories:
            if budget <= 0:
                break
            taken.append(" ".join(words_of(story)[:budget]))
            budget -= len(words_of(story))
        result["distinct3_real"] = distinct_3(taken)
        result["distinct3_ratio"] = result["distinct3"] / result["distinct3_real"]
    return result


def table(result: dict[str, float]) -> str:
    """The result as a Markdown table with the goals."""

    def met(key: str) -> str:
        good = result[key] <= GOALS[key] if key == "loops" else result[key] >= GOALS[key]
        return "yes" if good else "**no**"

    rows = [
        ("requested name in the answer", "name", ">="),
        ("requested thing in the answer", "thing", ">="),
        ("ends by itself", "ends", ">="),
        ("loops (any 8-gram three times)", "loops", "<="),
    ]
    lines = ["| 100 requests | result | goal | met |", "|---|---|---|---|"]
    lines += [
        f"| {label} | {result[key]:.0%} | {sign} {GOALS[key]:.0%} | {met(key)} |" for label, key, sign in rows
    ]
    if "distinct3_ratio" in result:
        measured = f"{result['distinct3']:.3f} / {result['distinct3_real']:.3f}"
        ratio, verdict = result["distinct3_ratio"], met("distinct3_ratio")
        lines.append(f"| distinct-3 beside real stories ({measured}) | {ratio:.2f} | >= 0.50 | {verdict} |")
    lines.append(f"| words per answer | {result['words']:.0f} | | |")
    return "\n".join(lines)


def torch_backend(model: Path, temperature: float, top_p: float) -> Ask:
    """Answers of the exported weights in float32 PyTorch."""
    sys.path.insert(0, str(SCRIPTS / "train_default"))
    from generate import Chat

    chat = Chat(model)
    return lambda request, seed: Answer(
        *chat.answer([("user", request)], temperature, top_p, seed, MAX_NEW_TOKENS)
    )


def tmac_backend(model: Path, temperature: float, top_p: float) -> Ask:
    """Answers of tmac-llm; a model that is not packed yet is converted into a temporary directory."""
    import tmac_llm

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config", {}).get("quant_method") != "tmac":
        packed = Path(tempfile.mkdtemp(prefix="eval_default_")) / "packed"
        tmac_llm.convert(model, packed)
        model = packed
    llm = tmac_llm.load(model)

    def ask(request: str, seed: int) -> Answer:
        stream = llm.chat_stream(
            [{"role": "user", "content": request}],
            max_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        for _ in stream:
            pass
        return Answer(stream.result.text, stream.result.finish_reason == "stop")

    return ask


def held_out_stories(path: Path) -> list[str]:
    """The last 1,000 stories of the TinyStories validation file, which no training saw."""
    return [
        s.strip()
        for s in path.read_text(encoding="utf-8", errors="replace").split("<|endoftext|>")
        if s.strip()
    ][-1000:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=SCRIPTS.parent / "models" / "default")
    parser.add_argument("--backend", choices=("tmac", "torch"), default="tmac")
    parser.add_argument("--real", type=Path, help="TinyStories valid.txt, for the distinct-3 of real stories")
    parser.add_argument("--temperature", type=float, default=0.4)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--samples", type=int, default=0, help="print this many answers, drawn at random by the seed"
    )
    parser.add_argument("--out", type=Path, help="write requests and answers as JSON lines")
    args = parser.parse_args()
    items = read_requests()
    ask = (tmac_backend if args.backend == "tmac" else torch_backend)(
        args.model, args.temperature, args.top_p
    )
    answers = []
    for n, item in enumerate(items):
        answers.append(ask(item.request, args.seed + n))
        print(f"\r{n + 1}/{len(items)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    result = judge(items, answers, held_out_stories(args.real) if args.real else None)
    if args.out:
        with args.out.open("w", encoding="utf-8") as file:
            for item, answer in zip(items, answers, strict=True):
                file.write(
                    json.dumps(
                        {
                            **item._asdict(),
                            **answer._asdict(),
                            "has_name": contains(answer.text, item.name),
                            "has_thing": contains(answer.text, item.thing),
                        }
                    )
                    + "\n"
                )
    print(table(result))
    for n in sorted(random.Random(args.seed).sample(range(len(items)), args.samples)):
        print(
            f"\n**{items[n].request}**\n\n" + "\n".join("> " + line for line in answers[n].text.split("\n"))
        )


if __name__ == "__main__":
    main()
