"""Short exercises in keeping to what was said: beginnings of stories, repeating, who is called what.

A story holds few places where a name must be copied from the request; these hold many, so that a small
model learns to copy early. Knows nothing of tokens.
"""

from __future__ import annotations

import random

from compose import compose, phrasing, words
from compose.openings import opening
from compose.story import new_story, pick_kind, pick_name, pick_thing
from conversations import Conversation, random_request

_BEGIN = [
    "Begin {s}",
    "How does {s} begin?",
    "Tell me the beginning of {s}",
    "Only the beginning of {s}, please",
    "First sentence of {s}",
    "Start {s}",
    "Begin to tell {s}",
]
_REPEAT = ["Repeat after me: {x}", "Say: {x}", "Repeat: {x}", "Please repeat: {x}", "Say this: {x}"]
_HAVING = [
    "{N} had {a_t}.",
    "{N} loved {his} {t}.",
    "{N} wanted {a_t}.",
    "{N} lost {his} {t}.",
    "{N} found {a_t}.",
    "One day, {N} saw {a_t}.",
]


def beginning(rng: random.Random) -> Conversation:
    """The first sentences of a story that was asked for."""
    request = random_request(rng)
    while not (request.kind or request.name or request.thing):
        request = random_request(rng)
    request.length = request.tone = request.lesson = request.deed = None
    asked = rng.choice(_BEGIN).format(s="a story about " + phrasing.subject(request, rng))
    if request.kind is None and request.name is not None:
        request.kind = "girl" if request.name in words.GIRL_NAMES else "boy"
    if request.friend_name == request.name:
        request.friend_name = None
    story = new_story(rng, request)
    opening(story)
    story.say(*_HAVING)
    if request.friend_kind:
        story.say("{N} had a friend, {fnew}.", "{His} best friend was {fnew}.", "One day, {N} met {fnew}.")
    if request.place:
        story.say("They were {in_place}.", "It was {in_place}.", "{N} went to {place}.")
    return [("user", asked), ("assistant", story.text())]


def _word(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(words.GIRL_NAMES + words.BOY_NAMES + words.PET_NAMES)
    if roll < 0.5:
        return words.invented_name(rng)
    if roll < 0.75:
        return " ".join(reversed(pick_thing(rng))).strip()
    return pick_kind(rng) if roll < 0.9 else words.invented_word(rng, 2)


def repeat_after_me(rng: random.Random) -> Conversation:
    """Words without sense, or a sentence of a story, to be said again."""
    if rng.random() < 0.3:
        sentences = [s for paragraph in compose(rng, random_request(rng)).paragraphs for s in paragraph]
        text = " ".join(rng.sample(sentences, min(len(sentences), rng.randint(1, 3))))
    else:
        text = rng.choice([", ", " "]).join(_word(rng) for _ in range(rng.randint(3, 25)))
    return [("user", rng.choice(_REPEAT).format(x=text)), ("assistant", text)]


def who_is_who(rng: random.Random) -> Conversation:
    """Several characters with names and things; a question about one of them."""
    kinds = list({pick_kind(rng): None for _ in range(rng.randint(2, 5))})
    cast = [(kind, pick_name(kind, rng), " ".join(reversed(pick_thing(rng))).strip()) for kind in kinds]
    facts = [
        f"{words.article(kind)} {kind} named {name} has {words.article(thing)} {thing}"
        for kind, name, thing in cast
    ]
    told = ". ".join(fact[0].upper() + fact[1:] for fact in facts) + "."
    turns: Conversation = []
    for kind, name, thing in rng.sample(cast, min(len(cast), rng.randint(1, 3))):
        asked, answer = rng.choice(
            [
                (f"What is the name of the {kind}?", f"The {kind} is called {name}."),
                (f"Who has the {thing}?", f"{name} the {kind} has the {thing}."),
                (f"What does {name} have?", f"{name} the {kind} has {words.article(thing)} {thing}."),
                (f"Who is {name}?", f"{name} is {words.article(kind)} {kind}."),
            ]
        )
        turns += [("user", f"{told} {asked}" if not turns else asked), ("assistant", answer)]
    return turns


def drill(rng: random.Random) -> Conversation:
    return rng.choices((beginning, repeat_after_me, who_is_who), (60, 20, 20))[0](rng)
