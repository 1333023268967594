"""Composes children's stories from characters, things, troubles and endings."""

from __future__ import annotations

import random

from . import openings, plots_adventures, plots_habits, plots_things, words
from .story import Request, Story, new_story

__all__ = ["Request", "Story", "compose", "words"]

_PLOTS = plots_things.PLOTS + plots_adventures.PLOTS + plots_habits.PLOTS
# Plots that can end with a lesson that was asked for.
_BY_LESSON = {
    "sharing": (plots_things.shared, plots_adventures.hungry),
    "honesty": (plots_things.found, plots_things.broken),
    "kindness": (plots_things.found, plots_things.gift, plots_adventures.stuck, plots_adventures.storm, plots_adventures.hungry),
    "courage": (plots_adventures.afraid, plots_adventures.stuck, plots_adventures.journey),
    "friendship": (plots_things.lost, plots_things.gift, plots_adventures.new_friend, plots_adventures.storm),
    "patience": (plots_things.wanted, plots_adventures.learned, plots_habits.planted),
    "trying": (plots_things.lost, plots_things.wanted, plots_adventures.learned, plots_adventures.race),
    "teamwork": (plots_things.lost, plots_adventures.stuck, plots_adventures.journey, plots_adventures.storm),
    "listening": (plots_things.mistaken, plots_things.magic, plots_habits.changed),
}


_BY_DEED = {
    "finds": (plots_things.found, plots_adventures.journey, plots_things.magic),
    "loses": (plots_things.lost, plots_adventures.scary_neighbour),
    "wants": (plots_things.wanted,),
}


def compose(rng: random.Random, request: Request) -> Story:
    """A story that keeps to the request; what the request leaves open is chosen at random."""
    story = new_story(rng, request)
    plots = _BY_LESSON[request.lesson] if request.lesson else _PLOTS
    if request.deed:
        plots = _BY_DEED[request.deed]
    elif request.lesson is None and story.fields["q"] in plots_habits.BAD_HABITS and rng.random() < 0.3:
        plots = (plots_habits.changed,)
    rng.choice(plots)(story)
    story.sequel += openings.SEQUELS
    if request.length == "short" and rng.random() < 0.6:
        _retell_in_brief(story)
    elif request.length == "long":
        # The last sentence closes the story, so what happened next comes before it.
        last = story.paragraphs[-1].pop()
        story.paragraphs.append([story.expand(story.sequel.pop(0)), last])
    return story


def _retell_in_brief(story: Story) -> None:
    """Replace the middle of the story by its summary."""
    summary = story.rng.choice(story.summary).replace("{N} the {k}", "{N}").replace("{N} the {qk}", "{N}").replace("{a_qk}", "{N}")
    if "{fnew}" not in summary:
        summary = summary.replace("{fN}", "{fnew}", 1)
    text = story.expand(openings.new_day(story)[:-1] + ", " + summary[:1].lower() + summary[1:])
    if story.fields["tt"] not in text:
        text += " " + story.expand("{N} was so glad about the {t} that {he} danced." if story.rng.random() < 0.3 else "And {N} kept the {t} for ever.")
    if story.fields["fk"] not in text:
        text += " " + story.expand("Now {N} had a good friend, {fnew}.")
    story.paragraphs = [story.paragraphs[0][:2], [text, story.paragraphs[-1][-1]]]
