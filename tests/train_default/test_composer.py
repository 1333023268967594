"""The story composer keeps to what was asked for, and repeats with its seed."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "train_default"))

import conversations
import real_stories
from compose import Request, compose, phrasing, words

N = 400


def _stories(request_of):
    for seed in range(N):
        rng = random.Random(seed)
        request = request_of(rng)
        yield request, compose(rng, request)


def test_same_seed_same_conversation():
    first = [conversations.composed(random.Random(seed), 2) for seed in range(20)]
    assert first == [conversations.composed(random.Random(seed), 2) for seed in range(20)]
    assert first != [conversations.composed(random.Random(seed + 1), 2) for seed in range(20)]


def test_story_contains_everything_the_request_names():
    for request, story in _stories(conversations.random_request):
        text = story.text()
        assert request.name is None or request.name in text
        assert request.kind is None or request.kind in text
        assert request.friend_kind is None or request.friend_kind in text
        if request.thing and request.thing in words.THING_CATEGORY:
            assert request.thing in text, (request, text)


def test_no_template_marks_are_left():
    for _, story in _stories(conversations.random_request):
        texts = [story.text(), *map(story.expand, story.sequel + story.summary)]
        texts += [story.expand(part) for pair in story.answers for part in pair]
        for text in texts:
            assert not re.search(r"[{}\[\]|]|  | \.|None", text), text


def test_sentences_begin_with_a_capital_and_quotes_close():
    for _, story in _stories(conversations.random_request):
        for paragraph in story.text().split("\n"):
            assert paragraph[0].isupper() or paragraph[0] == '"'
            assert paragraph.count('"') % 2 == 0, paragraph
            assert not re.search(r"[.!?] [a-z]", paragraph), paragraph


@pytest.mark.parametrize("lesson", ["sharing", "honesty", "kindness", "courage", "patience"])
def test_lesson_is_the_one_asked_for(lesson):
    stems = {
        "sharing": "share|sharing",
        "honesty": "truth",
        "kindness": "kind",
        "courage": "brave|afraid",
        "patience": "wait|time|patient",
    }
    for _, story in _stories(lambda rng: Request(lesson=lesson)):
        assert re.search(stems[lesson], story.text()), story.text()


def test_request_text_names_its_parts():
    for seed in range(N):
        rng = random.Random(seed)
        request = conversations.random_request(rng)
        asked = phrasing.ask(request, rng).lower()
        for part in (request.name, request.kind, request.thing, request.friend_kind):
            assert part is None or part.lower() in asked, (request, asked)


def test_conversation_turns_alternate():
    for seed in range(N):
        turns = conversations.composed(random.Random(seed), seed % 5)
        roles = [role for role, _ in turns if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(text.strip() == text and text for _, text in turns)


def test_real_request_asks_only_for_what_the_story_has():
    story = (
        "Once upon a time, there was a little rabbit named Remy. Remy had a red ball.\n"
        "One day the ball rolled into the pond. Remy ran to the pond and got the red ball back. He smiled."
    )
    for seed in range(100):
        request = real_stories.derive_request(story, random.Random(seed))
        assert request.name in (None, "Remy")
        assert request.kind in (None, "rabbit")
        assert request.thing in (None, "ball", "pond")
        assert request.adjective in (None, "red")


def test_name_is_not_a_sentence_start():
    assert real_stories.main_name("The dog ran. Suddenly it saw Mom. Then Mom smiled at Mom.") is None


def test_stories_are_split_and_plain(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text(
        "\u201cHi\u201d\n\n  there.\n<|endoftext|>\n\n<|endoftext|>\nna\u00efve\n<|endoftext|>",
        encoding="utf-8",
    )
    assert real_stories.read_stories(path) == ['"Hi"\nthere.']
