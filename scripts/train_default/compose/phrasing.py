"""How people ask for stories and talk about them. Knows no plots and makes no stories."""

from __future__ import annotations

import random

from . import words
from .story import Request

_ASK = [
    "Tell me {s}",
    "Tell me {s}",
    "Tell me {s}",
    "Can you tell me {s}?",
    "Please tell me {s}",
    "Could you tell me {s}?",
    "I want to hear {s}",
    "Write {s}",
    "Write me {s}",
    "Please write {s}",
    "Can you write {s}?",
    "I would like {s}",
    "Make up {s}",
    "Give me {s}",
    "May I hear {s}?",
    "Do you know {s}?",
    "Will you tell me {s}?",
    "I'd love {s}",
    "Hi! Tell me {s}",
    "Hello, can you tell me {s}?",
    "Tell us {s}",
    "Tell my daughter {s}",
    "Tell my son {s}",
    "We want {s}",
    "Invent {s}",
    "How about {s}?",
    "Let us have {s}",
    "Once more, tell me {s}",
    "Make {s}",
    "Create {s}",
    "Please make up {s} for my little one",
    "I need {s}",
]
_LINK = [" and {t}", " and {t}", " and {t}", " with {t}", " and the {bare}", ". There should be {t} in it", " and also {t}"]


def _with_article(phrase: str) -> str:
    return f"{words.article(phrase)} {phrase}"


def subject(r: Request, rng: random.Random) -> str:
    """Noun phrase for the character and the thing of a request, as 'a brave frog named Lily and a red ball'."""
    named = rng.choice([" named ", " named ", " called "])
    kind = f"{r.quality} {r.kind}" if r.quality and r.kind else r.kind
    if kind and r.name:
        roll = rng.random()
        if roll < 0.08 and not r.quality:
            text = f"my {kind} {r.name}"
        elif roll < 0.7:
            text = _with_article(kind) + named + r.name
        elif roll < 0.9 or not r.quality:
            text = f"{r.name} the {kind}"
        else:
            text = f"{r.name}, {_with_article(kind)}"
    elif kind:
        text = _with_article(kind)
    elif r.name:
        text = f"{r.quality} {r.name}" if r.quality else r.name
    else:
        text = ""
    if r.kind and r.friend_kind and not (r.name or r.friend_name) and rng.random() < 0.3:
        text = f"{rng.choice(['two friends, ', 'the friends '])}{text} and {_with_article(r.friend_kind)}"
    elif r.friend_kind or r.friend_name:
        friend = (_with_article(r.friend_kind) + (named + r.friend_name if r.friend_name else "")) if r.friend_kind else r.friend_name
        text += (rng.choice([" and ", " and ", " who meets ", " and a friend, "]) if text else "") + str(friend)
    if r.thing:
        bare = f"{r.adjective} {r.thing}" if r.adjective else r.thing
        thing = _with_article(bare)
        if not text:
            text = thing
        elif rng.random() < 0.12 and r.kind and not r.friend_kind and not r.deed:
            text = f"{thing} and {text}"
        elif r.deed:
            text += f" who {r.deed} {thing}"
        else:
            text += rng.choice(_LINK).format(t=thing, bare=bare)
    if r.place:
        phrase = dict(words.PLACE_LIST).get(r.place, f"in the {r.place}")
        text = f"{text} {phrase}" if text else f"something that happens {phrase}"
    return text


def ask(r: Request, rng: random.Random) -> str:
    """The user's turn that asks for the story."""
    about = subject(r, rng)
    story = {"short": rng.choice(["short story", "short story", "very short story", "little story"]), "long": "long story"}.get(r.length or "", "story")
    if r.tone == "bedtime":
        story = rng.choice(["bedtime story", "good night story", "bedtime " + story])
    elif r.tone == "funny":
        story = rng.choice(["funny story", "silly story"])
    elif r.tone == "happy" and rng.random() < 0.4:
        story = "happy " + story
    text = _with_article(story)
    if about:
        text += rng.choice([" about ", " about ", " about ", " of ", " with "]) + about
    if r.lesson:
        text += rng.choice([" about {l}", " that teaches {l}", " with a lesson about {l}", ". It should be about {l}"]).format(l=r.lesson)
    if r.tone == "happy" and "happy" not in story:
        text += rng.choice([" with a happy ending", " that ends well", ". It should have a happy ending"])
    roll = rng.random()
    if roll < 0.1 and about and not r.length and not r.tone:
        out = rng.choice(["{a}", "{a}, please", "A story about {a}", "{a}!", "Story: {a}"]).format(a=about)
    else:
        out = rng.choice(_ASK).format(s=text)
    return _punctuate(out, rng)


def _punctuate(text: str, rng: random.Random) -> str:
    if text[-1] not in ".?!":
        text += rng.choice([".", ".", ".", "", "", "!", " please."])
    elif "?" in text[:-1]:
        text = text.replace("?", "")
    roll = rng.random()
    if roll < 0.12:
        text = text[0].lower() + text[1:]
    elif roll < 0.2:
        text = text.lower().rstrip(".?!")
    else:
        text = text[0].upper() + text[1:]
    return text


NEXT = [
    "What happened next?",
    "What happened next?",
    "And then?",
    "What happened then?",
    "Go on.",
    "Please go on",
    "Tell me more",
    "What happens next?",
    "And what happened after that?",
    "more please",
    "Continue the story.",
    "Continue",
    "What did they do next?",
    "then what",
    "Keep going!",
    "How does it go on?",
]
SHORTER = [
    "Make it shorter",
    "Make it shorter, please.",
    "Can you make it shorter?",
    "Tell it in a few words",
    "Shorter please",
    "Tell the same story, but shorter",
    "That was too long. Make it short.",
    "Can you sum it up?",
    "Give me a short version",
    "What is the story in one or two sentences?",
    "make it short",
]
THANKS = [
    "Thank you!",
    "Thanks",
    "thank you",
    "Thank you, that was nice",
    "I liked that story",
    "That was lovely!",
    "Great story!",
    "Cool",
    "Nice!",
    "I love it",
    "That was a good story.",
    "Wow, thanks!",
    "ok",
    "good",
]
THANKS_REPLY = [
    "You are welcome! Would you like to hear another story?",
    "I am glad you liked it! Shall I tell you one more?",
    "You are welcome! Tell me who the next story should be about.",
    "It was fun to tell it. Do you want another one?",
    "Thank you for listening! What should the next story be about?",
]
GREETINGS = [
    "Hello",
    "Hi",
    "Hello!",
    "Hi there!",
    "Hey",
    "Good morning",
    "Good evening",
    "hi",
    "hello",
    "Good day!",
    "Hello, how are you?",
    "How are you?",
    "Hi, how are you today?",
    "Hey you",
    "Good afternoon!",
]
GREETING_REPLY = [
    "Hello! I am a storyteller. What should my story be about?",
    "Hi! I am happy to see you. Shall I tell you a story?",
    "Hello! I am fine. Would you like to hear a story? Tell me who it should be about.",
    "Hi there! I know many stories. Do you want one about {a} or about {b}?",
    "Hello! How about a story with {a} and {b}?",
    "Hello! I am well, thank you. I would love to tell you a story about {a}.",
]
WHO = [
    "Who are you?",
    "What are you?",
    "What is your name?",
    "who are you",
    "Are you a robot?",
    "Are you a person?",
    "What's your name?",
    "Tell me about yourself",
    "Introduce yourself.",
]
WHO_REPLY = [
    "I am a storyteller, a very small language model. I tell stories for children.",
    "I am a little storyteller who lives in your computer. I make up stories for children.",
    "I am a small computer program that tells stories. Who should my next story be about?",
    "I am a storyteller. I am very small, but I know many stories!",
]
WHAT = [
    "What can you do?",
    "what can you do",
    "Help",
    "How can you help me?",
    "What should I ask you?",
    "What do you know?",
    "What can I ask?",
    "How does this work?",
]
WHAT_REPLY = [
    'I can tell stories. Try this: "Tell me a story about {a} named {n} and {t}." Then you can ask what happened next.',
    "I tell stories for children. Tell me who the story should be about, and I will begin.",
    "I can tell you a story about anyone you like, for example about {a} and {t}. I can also make it shorter or tell you what happened next.",
]
BYE = ["Bye", "Goodbye!", "Good night", "See you", "bye bye", "I have to go now", "Good night!"]
BYE_REPLY = [
    "Goodbye! Come back soon for another story.",
    "Good night! Sleep well and dream of something nice.",
    "Bye! It was fun to tell you stories.",
    "See you soon!",
]
OFF_TOPIC = [
    "What is the capital of {x}?",
    "What is {m} plus {m2}?",
    "Who is the president?",
    "What is the weather today?",
    "Write a program in Python",
    "How old are you?",
    "What time is it?",
    "Do you like {t}?",
    "Can you help me with my homework?",
    "Translate this into German.",
    "How do I cook rice?",
    "What is the meaning of life?",
    "Who won the game?",
    "Tell me the news",
    "What is a computer?",
    "Explain how a car works",
    "Do my homework",
    "How far away is the moon?",
    "What is {m} times {m2}?",
    "Sing a song",
]
OFF_TOPIC_REPLY = [
    "I am sorry, I do not know that. I only know stories. Shall I tell you one about {a}?",
    "Oh, that is too hard for me. I am only a storyteller. Would you like a story about {a}?",
    "I do not know. But I can tell you a story about {a}!",
    "I can only tell stories. How about one with {a} and {t}?",
]
ANOTHER = [
    "Tell me another one with {x}",
    "Tell me another one about {x}",
    "Another one, with {x} please",
    "Now one with {x}",
    "Now tell me one about {x}",
    "Can you tell me another story about {x}?",
    "Another story, please, about {x}.",
    "And now a story with {x}",
    "Tell another story with {x}.",
]
ANOTHER_ANY = [
    "Tell me another one",
    "Another one please",
    "One more!",
    "Tell me another story",
    "Again!",
    "another",
    "Can you tell me one more story?",
    "Now a different story",
]
DISLIKE = ["I don't like it", "That was boring", "I did not like this story", "That story was too sad", "No, not this one"]
DISLIKE_REPLY = [
    "Oh, I am sorry. What should the next story be about?",
    "I am sorry! Tell me who you want in the story, and I will try again.",
    "Then I will tell you a better one. Who should be in it?",
]
YES = ["Yes", "Yes please", "yes", "Sure", "Okay", "Yes, tell me", "yes please!"]
SYSTEM = [
    "You are a friendly storyteller for small children.",
    "You tell stories for children.",
    "You are a helpful assistant.",
    "You are a storyteller.",
    "Tell short, kind stories.",
]

# Marks the stories that were not composed: without it the model tells the composed kind, which keep to the request.
EVERYDAY = "Tell a story from everyday life."
