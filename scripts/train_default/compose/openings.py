"""First and last sentences that every plot shares. Knows no plot."""

from __future__ import annotations

from . import words
from .story import Story


def opening(s: Story) -> None:
    """Introduce the character: kind, name, home, quality."""
    once = s.rng.choice(
        [
            "Once upon a time, there",
            "Once upon a time, there",
            "Once there",
            "Long ago, there",
            "There once",
            "There",
            "Many years ago, there",
            "{In_home}, there",
            "A long time ago, there",
        ]
    )
    s.fields["In_home"] = s.fields["in_home"][0].upper() + s.fields["in_home"][1:]
    lived = s.rng.choice(["lived", "was"])
    named = "[named|called]"
    has_name = s.request.name is not None
    if "In_home" in once:
        s.say(once + " lived {a_qk}" + (f" {named} {{N}}." if has_name else "."))
    elif lived == "lived":
        s.say(
            once + " lived {a_qk}" + (f" {named} {{N}}" if has_name else "") + " {in_home}.",
            once + " lived {a_qk} {in_home}." + (" {His} name was {N}." if has_name else ""),
        )
    else:
        s.say(once + " was {a_qk}" + (f" {named} {{N}}." if has_name else "."))
        s.maybe("{N} lived {in_home}.", "{He} lived {in_home}.")
    seen = words.QUALITIES.get(s.fields["q"])
    if seen is not None and s.rng.random() < 0.4 + 0.5 * s.detail:
        s.say(seen[0], "{N} was [very|always|really] {q}. " + seen[0], "Everyone knew that {N} was {q}. " + seen[0], seen[0])
    elif s.rng.random() < 0.6 * s.detail:
        s.say(
            "{N} liked to {skill}.",
            "{N} loved to {skill} with {his} friends.",
            "Every day, {N} liked to {skill}.",
            "More than anything, {N} loved to {skill}.",
            "{He} could {skill} better than anyone else.",
        )


def new_day(s: Story) -> str:
    """A template fragment that starts the events, with its comma."""
    return s.rng.choice(
        [
            "One day,",
            "One [sunny|rainy|cold|warm|windy|bright|quiet|foggy] [day|morning|afternoon],",
            "One morning,",
            "One evening,",
            "One day in [spring|summer|autumn|winter],",
            "Early one morning,",
            "On a [sunny|cold|warm|windy] day,",
            "Then, one day,",
        ]
    )


_LESSONS = {
    "sharing": [
        "{N} learned that sharing makes everyone happy.",
        "{N} learned that things are more fun when you share them.",
        "And {N} never forgot how good it feels to share.",
    ],
    "honesty": [
        "{N} learned that it is always better to tell the truth.",
        "{N} learned that the truth is better than a lie.",
        "From then on, {N} always told the truth.",
    ],
    "kindness": [
        "{N} learned that a small kindness can be a big help.",
        "{N} learned that being kind makes the heart warm.",
        "{N} knew that kindness always comes back.",
    ],
    "courage": [
        "{N} learned that being brave means to try even when you are afraid.",
        "{N} learned that {he} was braver than {he} thought.",
        "After that, {N} was not so afraid any more.",
    ],
    "friendship": [
        "{N} learned that a good friend is the best thing of all.",
        "{N} learned that with a friend everything is easier.",
        "{N} knew that a true friend is worth more than gold.",
    ],
    "patience": ["{N} learned that good things take time.", "{N} learned that it is good to wait.", "{N} learned to be patient."],
    "trying": ["{N} learned never to give up.", "{N} learned that you can do it if you keep trying.", "{N} was glad that {he} did not give up."],
    "teamwork": [
        "{N} learned that together you can do more than alone.",
        "{N} learned that working together makes hard things easy.",
        "{N} knew that two can do what one cannot.",
    ],
    "listening": ["{N} learned to listen to good advice.", "{N} learned to think before {he} acted.", "After that, {N} was always careful."],
}
LESSONS = list(_LESSONS)


def ending(s: Story) -> None:
    """Close the story: the lesson, or a happy, quiet or funny last sentence."""
    if s.request.lesson or s.rng.random() < 0.45:
        s.say(*_LESSONS[s.request.lesson or s.lesson])
    tone = s.request.tone
    if tone == "bedtime":
        s.say(
            "That night, {N} closed {his} eyes and fell asleep with a smile. Good night, {N}.",
            "When the moon came up, {N} lay down in {his} bed and slept well. Sweet dreams.",
            "The stars came out, and soon {N} was fast asleep, dreaming of the {tt}.",
        )
    elif tone == "funny":
        s.say(
            "And when {N} thinks of it today, {he} still has to laugh: ha, ha, ha!",
            "They all laughed until their tummies hurt.",
            "And everyone laughed, even {N}. What a silly day!",
        )
    elif s.request.length == "short":
        s.say(
            "And they lived happily ever after.",
            "{N} was very happy.",
            "And that was the end of the story.",
            "Everyone was happy. The end.",
            "It was the best day of all.",
            "{N} smiled all day.",
        )
    else:
        s.say(
            "And they lived happily ever after.",
            "And from that day on, {N} and {fN} were the best of friends.",
            "That [night|evening], {N} went to [bed|sleep] with a [big|happy] smile.",
            "It was the best day of {his} life.",
            "And if you go to {home} today, you may still see {N} and the {t}.",
            "From that day on, {N} and {fN} met every day.",
            "And {N} was happy for a very long time.",
            "{N} went home and told everyone about {his} day.",
            "The end.",
            "{N} never forgot that day.",
            "Everyone was happy, and {N} was the happiest of all.",
            "When the sun went down, they walked home together.",
            "And that is the story of {N} and the {t}.",
        )


# What may happen after any story.
SEQUELS = [
    "The next [day|morning], {N} and {fN} met again {in_place}. They [built a little house from branches|picked berries|played hide and seek|flew a kite|looked for shells] and told each other stories until it was time to go home.",
    'A week later, {fN} came to see {N}. "I have an idea," said {fN}. "Let us have a party!" They invited everyone, and there was [cake|pie|lemonade|music] for all.',
    'After that, {N} went home and [ate a big bowl of soup|drank a cup of warm milk|took a bath]. Then {he} lay down in {his} bed and thought of the {t}. "What a day!" {he} said and fell asleep.',
    'Then a little [mouse|bird|rabbit|duck] came and asked, "May I play with you too?" "Of course," said {N}. Now they were three friends, and they had even more fun.',
    "Some days later, it began to snow. {N} and {fN} made a big snowman. It got a [carrot|stick|button] for a nose, and they put the {tt} beside it. How it shone!",
    "When [summer|spring|autumn] came, {N} and {fN} went on a trip together. They saw [a high mountain|the wide sea|a big city|a deep lake] and came home with many stories to tell.",
    'In the evening, {N} told {his} [mother|father|grandmother|grandfather] everything. "I am proud of you," {N} heard, and got a big hug and a [cookie|warm bun|sweet apple].',
    'Then it was time for supper. {fN} stayed, and they ate [pancakes|soup|noodles|bread and cheese] together. "Tomorrow we will meet again," said {N}. And so they did.',
]
