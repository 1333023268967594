"""Reads TinyStories and derives, from a story's own words, a request that it answers.

Knows nothing of tokens. Names and things are found by rule: a request never asks for what the story
does not contain.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from pathlib import Path

from compose import Request, phrasing, words
from conversations import Conversation, thanks

SEPARATOR = "<|endoftext|>"
N_HELD_OUT = 1000
_INTRODUCED = re.compile(r"\b(?:named|called|name was|name is) ([A-Z][a-z]+)\b")
_MID_SENTENCE = re.compile(r"(?<=[a-z,] )([A-Z][a-z]+)\b")
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_ADJECTIVES = set(words.COLOURS) | set(words.ADJECTIVES) | set(words.FOOD_ADJECTIVES)
_THINGS = ({thing for thing in words.THING_CATEGORY if " " not in thing} | words.STORY_THINGS) - words.VERBS
_KINDS = {kind for kind in words.KIND_GROUP if " " not in kind} | {"man", "woman", "girl", "boy"}


def read_stories(path: Path) -> list[str]:
    """Stories of one file, paragraphs joined by a single newline, typographic quotes made plain."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for typographic, plain in (
        ("\u201c", '"'),
        ("\u201d", '"'),
        ("\u2018", "'"),
        ("\u2019", "'"),
        ("\u2014", " - "),
        ("\u2026", "..."),
    ):
        text = text.replace(typographic, plain)
    stories = []
    for story in text.split(SEPARATOR):
        story = re.sub(r"[ \t]*\n\s*", "\n", story.strip())
        if story and story.isascii():
            stories.append(story)
    return stories


def main_name(story: str) -> str | None:
    """The name of the main character, or None."""
    match = _INTRODUCED.search(story)
    if match and match.group(1) not in words.NO_NAMES:
        return match.group(1)
    counts = Counter(name for name in _MID_SENTENCE.findall(story) if name not in words.NO_NAMES)
    if counts and counts.most_common(1)[0][1] >= 2:
        return counts.most_common(1)[0][0]
    return None


def derive_request(story: str, rng: random.Random) -> Request:
    """A request whose parts all occur in the story."""
    request = Request()
    tokens = _WORD.findall(story.lower())
    counts = Counter(tokens)
    name = main_name(story)
    if name:
        match = re.search(
            rf"\b(?:an?|the) ((?:[a-z]+,? ){{0,3}})([a-z]+) (?:named|called|whose name was) {name}\b", story
        )
        if match and match.group(2) in _KINDS:
            request.kind = match.group(2)
            described = [word for word in match.group(1).replace(",", "").split() if word in words.QUALITIES]
            request.quality = described[-1] if described and rng.random() < 0.7 else None
        request.name = name if rng.random() < 0.8 or request.kind is None else None
    else:
        kinds = [kind for kind in _KINDS if counts[kind] >= 2]
        request.kind = rng.choice(sorted(kinds)) if kinds else None
    things = sorted(thing for thing in _THINGS if counts[thing] >= 2 and thing != request.kind)
    if things and (rng.random() < 0.75 or not (request.kind or request.name)):
        request.thing = rng.choice(things)
        adjectives = {
            first
            for first, second in itertools.pairwise(tokens)
            if second == request.thing and first in _ADJECTIVES
        }
        if adjectives and rng.random() < 0.7:
            request.adjective = rng.choice(sorted(adjectives))
    n_words = len(tokens)
    if rng.random() < 0.4:
        request.length = "short" if n_words < 110 else "long" if n_words > 210 else None
    if rng.random() < 0.1 and re.search(r"\b(happy|happily|smiled|joy|fun)\b", story[-160:]):
        request.tone = "happy"
    return request


def real(story: str, rng: random.Random, marked: bool = True) -> Conversation:
    """The story as the answer to a request made from it, sometimes told in two parts.

    `marked` begins the conversation with a system turn that asks for this kind of story.
    """
    asked = phrasing.ask(derive_request(story, rng), rng)
    turns: Conversation = [("system", phrasing.EVERYDAY)] if marked else []
    paragraphs = story.split("\n")
    begun = re.sub("(?i)tell me", "Begin", asked)
    if rng.random() < 0.08 and len(paragraphs) >= 3 and begun != asked:
        half = len(paragraphs) // 2
        first, second = "\n".join(paragraphs[:half]), "\n".join(paragraphs[half:])
        return [
            *turns,
            ("user", begun),
            ("assistant", first),
            ("user", rng.choice(phrasing.NEXT)),
            ("assistant", second),
        ]
    turns += [("user", asked), ("assistant", story)]
    return turns + thanks(rng) if rng.random() < 0.12 else turns
