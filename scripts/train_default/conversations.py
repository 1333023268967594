"""Builds conversations (lists of turns) from composed stories and from real stories.

Knows nothing of tokens or files. A conversation is a list of (role, text) with the roles of a chat
template: an optional "system" turn, then "user" and "assistant" in turn.
"""

from __future__ import annotations

import random

from compose import Request, compose, phrasing, words
from compose.story import Story, pick_kind, pick_name, pick_thing

Conversation = list[tuple[str, str]]
_LESSONS = (
    "sharing",
    "honesty",
    "kindness",
    "courage",
    "friendship",
    "patience",
    "trying",
    "teamwork",
    "listening",
)


def random_request(rng: random.Random) -> Request:
    """What somebody might want in a story; every part may be missing."""
    r = Request()
    if rng.random() < 0.07:
        r.length = rng.choices((None, "short", "long"), (70, 18, 12))[0]
        r.tone = rng.choices((None, "happy", "bedtime", "funny"), (50, 10, 30, 10))[0]
        return r
    if rng.random() < 0.85:
        r.kind = pick_kind(rng)
        if rng.random() < 0.62:
            r.name = pick_name(r.kind, rng)
        if rng.random() < 0.4:
            r.quality = rng.choice(list(words.QUALITIES))
    elif rng.random() < 0.7:
        girl = rng.random() < 0.5
        r.name = rng.choice(words.GIRL_NAMES if girl else words.BOY_NAMES)
    if rng.random() < 0.65 or not (r.kind or r.name):
        r.thing, r.adjective = pick_thing(rng)
    if rng.random() < 0.15:
        r.place = rng.choice(words.PLACE_LIST)[0]
    if rng.random() < 0.15:
        r.friend_kind = pick_kind(rng)
        if rng.random() < 0.4:
            r.friend_name = pick_name(r.friend_kind, rng)
    if r.kind and r.thing and rng.random() < 0.15:
        r.deed = rng.choice(("finds", "loses", "wants"))
    elif rng.random() < 0.08:
        r.lesson = rng.choice(_LESSONS)
    r.length = rng.choices((None, "short", "long"), (70, 18, 12))[0]
    r.tone = rng.choices((None, "happy", "bedtime", "funny"), (85, 6, 6, 3))[0]
    return r


def _told(rng: random.Random, request: Request) -> tuple[str, Story]:
    """The asking turn and the story; a name without a kind becomes a child."""
    asked = phrasing.ask(request, rng)
    if request.kind is None and request.name is not None:
        request.kind = "girl" if request.name in words.GIRL_NAMES else "boy"
    if request.friend_name == request.name:
        request.friend_name = None
    return asked, compose(rng, request)


def _fill(rng: random.Random, template: str) -> str:
    kind_a, kind_b = pick_kind(rng), pick_kind(rng)
    noun, adjective = pick_thing(rng, 0.0)
    thing = f"{adjective} {noun}".strip()
    return template.format(
        a=f"{words.article(kind_a)} {kind_a}",
        b=f"{words.article(kind_b)} {kind_b}",
        n=pick_name(kind_a, rng, 0.0),
        t=f"{words.article(thing)} {thing}",
        x=rng.choice(["France", "Germany", "Japan", "Spain", "Kenya", "Italy", "China", "Peru"]),
        m=rng.randint(1, 20),
        m2=rng.randint(1, 20),
    )


def small_talk(rng: random.Random) -> Conversation:
    """One exchange that is no story: greeting, who are you, thanks, off-topic."""
    asked, replies = rng.choice(
        [
            (phrasing.GREETINGS, phrasing.GREETING_REPLY),
            (phrasing.GREETINGS, phrasing.GREETING_REPLY),
            (phrasing.WHO, phrasing.WHO_REPLY),
            (phrasing.WHAT, phrasing.WHAT_REPLY),
            (phrasing.BYE, phrasing.BYE_REPLY),
            (phrasing.OFF_TOPIC, phrasing.OFF_TOPIC_REPLY),
            (phrasing.OFF_TOPIC, phrasing.OFF_TOPIC_REPLY),
            (phrasing.DISLIKE, phrasing.DISLIKE_REPLY),
        ]
    )
    return [("user", _fill(rng, rng.choice(asked))), ("assistant", _fill(rng, rng.choice(replies)))]


def thanks(rng: random.Random) -> Conversation:
    """The user is content with the story."""
    return [("user", rng.choice(phrasing.THANKS)), ("assistant", rng.choice(phrasing.THANKS_REPLY))]


def _question(rng: random.Random, story: Story) -> Conversation:
    """A question about the story that its text answers."""
    pairs = [(story.expand(question), story.expand(answer)) for question, answer in story.answers]
    f = story.fields
    if story.request.name:
        pairs.append((f"What was the name of the {f['k']}?", f"The {f['k']} was called {f['N']}."))
        pairs.append((f"Who was {f['N']}?", f"{f['N']} was {f['a_qk']}."))
    adjective = f["t"][: -len(f["tt"])].strip()
    if adjective in words.COLOURS:
        pairs.append(
            (
                rng.choice(["What colour was the {tt}?", "What color was the {tt}?"]).format_map(f),
                f"The {f['tt']} was {adjective}.",
            )
        )
    question, answer = rng.choice(pairs)
    return [("user", question if rng.random() < 0.8 else question.lower()), ("assistant", answer)]


def _another(rng: random.Random) -> tuple[Conversation, Story]:
    """A request for one more story after the first."""
    request = Request()
    if rng.random() < 0.25:
        asked = rng.choice(phrasing.ANOTHER_ANY)
    else:
        if rng.random() < 0.7:
            request.kind = pick_kind(rng)
            if rng.random() < 0.3:
                request.name = pick_name(request.kind, rng)
        if request.kind is None or rng.random() < 0.25:
            request.thing, request.adjective = pick_thing(rng)
        asked = rng.choice(phrasing.ANOTHER).format(x=phrasing.subject(request, rng))
    story = compose(rng, request)
    return [("user", asked), ("assistant", story.text())], story


def composed(rng: random.Random, n_follow_ups: int) -> Conversation:
    """A composed story, asked for, with follow-up turns about it."""
    asked, story = _told(rng, random_request(rng))
    turns: Conversation = [("user", asked), ("assistant", story.text())]
    used: set[str] = set()
    for _ in range(n_follow_ups):
        kind = rng.choices(
            ("next", "shorter", "another", "question", "thanks", "talk"), (24, 20, 24, 22, 8, 2)
        )[0]
        if kind in used and kind in ("next", "shorter"):
            kind = "another"
        used.add(kind)
        if kind == "next":
            turns += [
                ("user", rng.choice(phrasing.NEXT)),
                ("assistant", story.expand(rng.choice(story.sequel))),
            ]
        elif kind == "shorter":
            turns += [
                ("user", rng.choice(phrasing.SHORTER)),
                ("assistant", story.expand(rng.choice(story.summary))),
            ]
        elif kind == "question":
            turns += _question(rng, story)
        elif kind == "another":
            more, story = _another(rng)
            turns += more
            used.clear()
        else:
            turns += thanks(rng) if kind == "thanks" else small_talk(rng)
    if rng.random() < 0.06:
        turns = small_talk(rng) + turns
    if rng.random() < 0.05:
        turns = [("system", rng.choice(phrasing.SYSTEM)), *turns]
    return turns
