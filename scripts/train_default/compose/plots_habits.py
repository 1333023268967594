"""Plots about habits: a bad one that changes, and patience.

Each plot fills the story's text, its summary, sequel and answers. Knows nothing of requests.
"""

from __future__ import annotations

from . import words
from .openings import ending, new_day, opening
from .story import Story

BAD_HABITS = {
    "lazy": ("did not help with the work", "helped every day"),
    "greedy": ("took everything for {self}", "gave half to the others"),
    "selfish": ("kept everything for {self}", "liked to give"),
    "proud": ("laughed at the others", "spoke kindly to everyone"),
    "grumpy": ("shouted at everyone", "said good morning to everyone"),
    "naughty": ("hid the things of the others", "made nobody sad any more"),
    "stubborn": ("never took advice", "listened to others"),
    "messy": ("left everything on the floor", "put everything in its place"),
    "impatient": ("could not wait", "learned to wait"),
    "noisy": ("shouted all the time", "learned to be quiet"),
    "rude": ("never said please", "always said please and thank you"),
}


def changed(s: Story) -> None:
    """A bad habit has a consequence, and a friend helps the hero to change."""
    if s.fields["q"] not in BAD_HABITS:
        quality = s.rng.choice(list(BAD_HABITS))
        if s.request.quality is None:
            described = f"{quality} {s.fields['k']}"
            s.fields |= {"q": quality, "qk": described, "a_qk": f"{words.article(described)} {described}"}
    before, after = BAD_HABITS.get(s.fields["q"], ("never listened to anyone", "listened to others"))
    opening(s)
    s.say(f"{{N}} {before}.", f"Every day, {{N}} {before}.")
    s.paragraph()
    s.say(new_day(s) + " {N} had {a_t}. {fnew} wanted to see it.", new_day(s) + ' {fnew} came with {a_t}. "Shall we use it together?" asked {fN}.')
    s.say(f"But {{N}} {before}, as always. So {{fN}} went away.", f"{{N}} {before} again. {{fN}} was sad and went home.")
    s.say(
        "Then something bad happened. The {t} fell into the water, and {N} could not get it out alone.",
        "Later, {N} dropped the {t} on {his} foot. Ouch! Nobody was there to help.",
    )
    s.maybe("{N} called and called, but nobody came.", '"Now I am all alone," {he} thought.')
    s.paragraph()
    s.say(
        'At last {fN} came back. "I will help you," {fhe} said, "even if you were not nice to me."',
        "{fN} heard {him} and came at once. Together they made it right.",
    )
    s.say('{N} was ashamed. "I am sorry. I will change," {he} said.', '"Why are you so kind to me?" asked {N}. "Because that is what friends do," said {fN}.')
    s.say(f"And {{he}} did. From that day on, {{N}} {after}.", f"After that, {{N}} {after}.")
    s.lesson = "listening"
    ending(s)
    s.summary = [f"{{N}} the {{k}} {before}. When {{he}} was in trouble with {{a_t}}, only {{fN}} helped. From then on, {{N}} {after}."]
    s.answers = [("Who helped {N}?", "{fN} helped {N}."), ("How did {N} change?", f"From that day on, {{N}} {after}.")]
    s.sequel = ['The next day, {N} baked a cake for {fN}. "You are my best friend," {he} said. They ate the whole cake, down to the last crumb.']


def planted(s: Story) -> None:
    opening(s)
    s.paragraph()
    s.say(
        new_day(s) + ' {N} got a small seed from {fnew}. "Plant it and wait," said {fN}.',
        new_day(s) + ' {fnew} gave {N} a seed. "Something wonderful will grow from it," said {fN}.',
    )
    s.say(
        "{N} put it into the ground {in_place}. {He} used {a_t} to mark the spot.",
        "{N} planted it {in_place} and put {a_t} next to it so that {he} would find it again.",
    )
    s.say("{He} gave it water every day. But nothing happened.", "One day passed. Two days passed. Nothing grew.")
    s.say('"When will it grow?" asked {N}. "Be patient," said {fN}.', '{N} wanted to dig it up. "No, wait," said {fN}. "Good things take time."')
    s.paragraph()
    s.say("Then, after many days, a small green leaf came out, right beside the {t}.", "One morning, there was something green next to the {t}!")
    s.say(
        "It grew and grew, and became a tall [tree with red apples|flower, as yellow as the sun|bush full of sweet berries].",
        "Soon it was as tall as {N}. Then it was taller than the house!",
    )
    s.say('{N} danced around it. "It was good to wait," {he} said to {fN}.', "{N} and {fN} sat in its shade and were happy.")
    s.lesson = "patience"
    ending(s)
    s.summary = [
        "{N} the {k} planted a seed and marked the spot with {a_t}. {He} had to wait, but then something wonderful grew.",
        "{fN} gave {N} a seed. {N} was patient, and it grew.",
    ]
    s.answers = [
        ("What did {N} plant?", "{N} planted a seed."),
        ("Who gave {N} the seed?", "{fN} gave {N} the seed."),
        ("What marked the spot?", "{A_t}".replace("{A_t}", "The {t}") + " marked the spot."),
    ]
    s.sequel = ["In autumn, {N} gathered new seeds and gave one to every friend. Soon there was a whole garden {in_place}."]


PLOTS = (changed, planted)
