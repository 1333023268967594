"""The judge of the request evaluation counts what it says it counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).resolve().parents[2] / "scripts" / "eval_default.py"
_SPEC = importlib.util.spec_from_file_location("eval_default", _PATH)
ev = importlib.util.module_from_spec(_SPEC)
sys.modules["eval_default"] = ev
_SPEC.loader.exec_module(ev)


def test_there_are_100_fixed_requests_that_name_what_they_ask_for():
    items = ev.read_requests()
    assert len(items) == 100
    assert len({item.request for item in items}) == 100
    for item in items:
        assert ev.contains(item.request, item.name)
        assert ev.contains(item.request, item.thing)


def test_word_matching_wants_whole_words():
    assert ev.contains("The balls rolled.", "ball")
    assert ev.contains("LILY ran", "Lily")
    assert not ev.contains("A balloon.", "ball")
    assert not ev.contains("Annabel", "Anna")


@pytest.mark.parametrize(("repeats", "expected"), [(1, False), (2, False), (3, True)])
def test_loop_is_an_8_gram_three_times(repeats, expected):
    phrase = "the cat sat on the mat and slept "
    assert ev.loops(" x ".join([phrase] * repeats)) is expected


def test_distinct_3():
    assert ev.distinct_3(["a b c d"]) == 1.0
    assert ev.distinct_3(["a b c a b c"]) == 3 / 4
    assert ev.distinct_3(["a b"]) == 0.0


def test_judge_counts_shares_and_cuts_real_stories_to_the_same_length():
    items = [ev.Item("r", "Lily", "ball"), ev.Item("r", "Tom", "key")]
    answers = [ev.Answer("Lily has a ball.", True), ev.Answer("Tim has a kite.", False)]
    result = ev.judge(items, answers, ["one two three four", "five six seven eight nine ten"])
    assert (result["name"], result["thing"], result["ends"], result["loops"]) == (0.5, 0.5, 0.5, 0.0)
    assert result["distinct3_real"] == 1.0
    assert "**no**" in ev.table(result)
