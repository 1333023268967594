"""Composes children's stories from characters, things, troubles and endings."""

from __future__ import annotations

import random

from . import plots_adventures, plots_habits, plots_things, words
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
    return story
