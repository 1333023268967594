"""The state of one composed story: who and what it is about, and the text so far.

Knows no plots. Text is made from templates: `{N}` is a field of the story, `[a|b|]` picks one of the
alternatives (nested brackets allowed).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from . import words

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SENTENCE_START = re.compile(r"(^|[.!?] |\n)([a-z])")

PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her"), "it": ("it", "it", "its")}


@dataclass
class Request:
    """What a story shall contain; None leaves the choice to the composer."""

    kind: str | None = None
    name: str | None = None
    quality: str | None = None
    thing: str | None = None
    adjective: str | None = None
    place: str | None = None
    friend_kind: str | None = None
    friend_name: str | None = None
    lesson: str | None = None
    length: str | None = None  # "short", "long" or None
    deed: str | None = None  # what the character does with the thing: "finds", "loses" or "wants"
    tone: str | None = None  # "happy", "bedtime", "funny" or None


@dataclass
class Story:
    """A story under construction. `fields` feeds the templates, `paragraphs` is the result."""

    rng: random.Random
    request: Request
    fields: dict[str, str] = field(default_factory=dict)
    paragraphs: list[list[str]] = field(default_factory=lambda: [[]])
    summary: list[str] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)
    sequel: list[str] = field(default_factory=list)
    lesson: str = "friendship"
    detail: float = 0.6

    def expand(self, template: str) -> str:
        """Resolve the alternatives, fill in the fields, capitalise sentence starts."""
        template = template.replace("{N} the {k}", "{Nk}").replace("{N} the {qk}", "{Nqk}")
        while (match := _CHOICE.search(template)) is not None:
            choice = self.rng.choice(match.group(1).split("|"))
            template = template[: match.start()] + choice + template[match.end() :]
        text = re.sub(r" +", " ", template.format_map(self.fields)).strip()
        return _SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), text[:1].upper() + text[1:])

    def say(self, *options: str) -> None:
        """Add one of the sentences."""
        self.paragraphs[-1].append(self.expand(self.rng.choice(options)))

    def maybe(self, *options: str) -> None:
        """Add one of the sentences when the story has room for detail."""
        if self.rng.random() < self.detail:
            self.say(*options)

    def paragraph(self) -> None:
        if self.paragraphs[-1]:
            self.paragraphs.append([])

    def text(self) -> str:
        return "\n".join(" ".join(sentences) for sentences in self.paragraphs if sentences)


def gender_of(kind: str, name: str | None, rng: random.Random) -> str:
    """Pronoun 'he', 'she' or 'it' that suits the kind and the name."""
    if kind in words.FEMALE or name in words.GIRL_NAMES:
        return "she"
    if kind in words.MALE or name in words.BOY_NAMES:
        return "he"
    if name is None and words.KIND_GROUP.get(kind, "wild") not in ("people", "royal") and rng.random() < 0.3:
        return "it"
    return rng.choice(("he", "she"))


def pick_kind(rng: random.Random) -> str:
    """A kind of character: mostly animals, then people, then fairy-tale creatures."""
    roll = rng.random()
    if roll < 0.62:
        group = rng.choice(list(words.ANIMALS))
        return rng.choice(words.ANIMALS[group]).replace("_", " ")
    if roll < 0.85:
        return rng.choice(words.PEOPLE)
    return rng.choice(words.FANTASY)


def pick_name(kind: str, rng: random.Random, invented_share: float = 0.33) -> str:
    """A name that suits the kind; a share is invented, so that names must be copied, not guessed.

    A story that chooses a name itself takes a listed one: a small model that invents names gets lost in them.
    """
    if rng.random() < invented_share:
        return words.invented_name(rng)
    girl = kind in words.FEMALE or (kind not in words.MALE and rng.random() < 0.5)
    pools = [words.GIRL_NAMES if girl else words.BOY_NAMES]
    if words.KIND_GROUP.get(kind) not in ("people", "royal"):
        pools.append(words.PET_NAMES)
    return rng.choice(rng.choice(pools))


def pick_thing(rng: random.Random, invented_share: float = 0.12) -> tuple[str, str]:
    """(noun, adjective or ''); see pick_name for the invented share."""
    category = rng.choice([*list(words.THINGS), "toy", "tool", "tool", "nature", "food", "wear"])
    noun = rng.choice(words.THINGS[category].split()).replace("_", " ")
    if rng.random() < invented_share:
        noun = words.invented_word(rng, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.2:
        return noun, ""
    if category == "food":
        return noun, rng.choice(words.FOOD_ADJECTIVES)
    return noun, rng.choice(words.COLOURS if rng.random() < 0.6 else words.ADJECTIVES)


def _character_fields(prefix: str, kind: str, name: str | None, quality: str | None, rng: random.Random) -> dict[str, str]:
    he, him, his = PRONOUNS[gender_of(kind, name, rng)]
    described = f"{quality} {kind}" if quality else kind
    fields = {
        "N": name or f"the {kind}",
        "k": kind,
        "Nk": f"{name} the {kind}" if name else f"the {kind}",
        "Nqk": f"{name} the {described}" if name else f"the {described}",
        "qk": described,
        "a_qk": f"{words.article(described)} {described}",
        "a_k": f"{words.article(kind)} {kind}",
        "q": quality or "",
        "he": he,
        "him": him,
        "his": his,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "self": {"he": "himself", "she": "herself", "it": "itself"}[he],
    }
    return {prefix + key: value for key, value in fields.items()}


def new_story(rng: random.Random, request: Request) -> Story:
    """Choose what the request leaves open and fill the fields of the story."""
    r = request
    kind = r.kind or pick_kind(rng)
    if r.name is None and rng.random() < 0.85:
        r.name = pick_name(kind, rng, 0.0)
    friend_kind = r.friend_kind or pick_kind(rng)
    while friend_kind == kind and r.friend_kind is None:
        friend_kind = pick_kind(rng)
    friend_name = r.friend_name or (pick_name(friend_kind, rng, 0.0) if rng.random() < 0.6 else None)
    if friend_name == r.name:
        friend_name = None
    quality = r.quality or (rng.choice(list(words.QUALITIES)) if rng.random() < 0.7 else None)
    noun, adjective = (r.thing, r.adjective or "") if r.thing else pick_thing(rng, 0.0)
    thing = f"{adjective} {noun}".strip()
    home_in, home = _pick_home(kind, rng)
    place, place_in = _pick_place(r.place, rng)
    group = words.KIND_GROUP.get(kind, "wild")
    category = words.THING_CATEGORY.get(noun, "tool")
    fields = _character_fields("", kind, r.name, quality, rng) | _character_fields("f", friend_kind, friend_name, None, rng)
    fields |= {
        "t": thing,
        "a_t": f"{words.article(thing)} {thing}",
        "tt": noun,
        "home": home,
        "in_home": home_in,
        "place": f"the {place}",
        "in_place": place_in,
        "skill": rng.choice(words.SKILLS[group]),
        "fskill": rng.choice(words.SKILLS[words.KIND_GROUP.get(friend_kind, "wild")]),
        "category": category,
    }
    # "Max the owl" on first sight, "Max" later; without a name it is "an owl", then "the owl".
    fields["fnew"] = f"{fields['fa_k']} named {friend_name}" if friend_name else fields["fa_k"]
    uses = words.SPECIAL_USES.get(noun) or words.USES[category]
    story = Story(rng, request, fields, detail={"short": 0.15, "long": 0.95}.get(r.length or "", 0.6))
    for key, use in zip(("use", "use2"), rng.sample(uses * 2, 2) if len(uses) == 1 else rng.sample(uses, 2), strict=False):
        fields[key] = use.format_map(fields)
    return story


def _pick_home(kind: str, rng: random.Random) -> tuple[str, str]:
    home_in, home = rng.choice(words.HOMES[words.KIND_GROUP.get(kind, "wild")]).split("|")
    return home_in, home


def _pick_place(place: str | None, rng: random.Random) -> tuple[str, str]:
    if place is None:
        return rng.choice(words.PLACE_LIST)
    for name, phrase in words.PLACE_LIST:
        if name == place:
            return name, phrase
    return place, f"in the {place}"
