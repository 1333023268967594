"""Plots that turn on the characters: fear, trouble, storms, races, learning, new friends, long ways.

Each plot fills the story's text, its summary, sequel and answers. Knows nothing of requests.
"""

from __future__ import annotations

from .openings import ending, new_day, opening
from .story import Story

# How a thing of each category can get somebody out of trouble.
_RESCUE = {
    "toy": "{N} pushed the {t} down to {fhim}. {fN} stepped on it and climbed up",
    "tool": "{N} held out the {t}. {fN} took hold of it, and {N} pulled as hard as {he} could",
    "light": "{N} held up the {t}, and in its light {fN} saw the way out",
    "food": "{N} gave {fN} the {t}. {fN} ate it, felt strong again and climbed out",
    "wear": "{N} let down the {t}. {fN} held on to it, and {N} pulled and pulled",
    "ride": "{N} came with the {t} and tied a rope to it. It pulled {fN} out",
    "nature": "{N} held the {t} up in the sun. It shone so brightly that a big bear saw it and came to help",
    "music": "{N} made a loud noise with the {t}. All the others heard it and came to help",
    "read": "{N} opened the {t}. There was a picture of a bridge, so {N} built one from branches, and {fN} walked out",
    "shelter": "{N} held out the {t} by its end. {fN} took the other end, and {N} pulled",
}
# How a thing of each category can help against fear.
_COMFORT = {
    "toy": "held the {t} tight",
    "tool": "held the {t} like a sword",
    "light": "looked at the light of the {t}",
    "food": "took a small bite of the {t}",
    "wear": "put on the {t}",
    "ride": "thought of the {t} waiting at home",
    "nature": "held the {t} close to {his} heart",
    "music": "played a small song on the {t}",
    "read": "thought of the heroes in the {t}",
    "shelter": "opened the {t}",
}


def _owns(s: Story) -> None:
    s.say(
        "{N} had {a_t}. {He} always took it along.",
        "{N} never went out without {his} {t}.",
        "{His} favourite thing was {a_t}.",
        "{N} had {a_t}.",
        "{N} owned {a_t} and was very proud of it.",
    )


def stuck(s: Story) -> None:
    opening(s)
    _owns(s)
    s.paragraph()
    where = s.rng.choice(["in a deep hole", "in the mud", "between two rocks", "at the bottom of a pit", "in an old well"])
    s.say(new_day(s) + ' {N} was walking {in_place}. Suddenly {he} heard a cry: "Help! Help!"', new_day(s) + " {N} heard someone call for help {in_place}.")
    s.say(f"It was {{fnew}}. {{fHe}} was stuck {where}!", f"{{fnew}} was stuck {where} and could not get out.")
    s.say(
        '"Do not be afraid," said {N}. "I will help you."',
        '"Hold on!" called {N}. "I will get you out."',
        '"Please help me!" said {fN}. "Nobody else has stopped."',
    )
    s.maybe(
        "{N} tried to reach {fhim}, but {he} was too far away.", "First {N} tried it with a stick. The stick broke.", "{N} thought hard. What could {he} do?"
    )
    s.paragraph()
    s.say("Then {N} had an idea: the {t}!", 'Then {he} looked at {his} {t}. "I know what to do!" {he} said.', '"My {tt}!" {he} cried. "That will help."')
    s.say(_RESCUE[s.fields["category"]] + ".")
    s.say("Plop! {fN} was free.", "At last {fN} was out.", "One, two, three, and {fN} was free!")
    s.say(
        '"You saved me!" said {fN}.',
        '"Thank you, {N}. You are a hero," said {fN}.' if s.request.name else '"Thank you! You are a hero," said {fN}.',
        "{fN} hugged {N} and did not want to let go.",
    )
    s.maybe(
        "They walked home together and laughed about the mud on their faces.",
        "To say thank you, {fN} gave {N} a basket of berries.",
        "All the others clapped when they heard about it.",
    )
    s.lesson = s.rng.choice(["kindness", "courage", "teamwork"])
    ending(s)
    s.summary = ["{fN} was stuck " + where + ". {N} the {qk} used {his} {t} and saved {fhim}. They became friends.", "{N} the {k} saved {fnew} with {a_t}."]
    s.answers = [
        ("Who was stuck?", "{fN} was stuck " + where + "."),
        ("How did {N} help?", "{N} used the {t} to get {fN} out."),
        ("What did {N} have?", "{N} had {a_t}."),
    ]
    s.sequel = [
        'The next day, {fN} put up a big sign {in_place}. It said, "Be careful!" After that, nobody got stuck any more, and {N} was very proud of {fhim}.'
    ]


def afraid(s: Story) -> None:
    opening(s)
    fear, event = s.rng.choice(
        [
            ("the dark", "it got dark on the way home"),
            ("thunder", "a big storm came, and the thunder went boom"),
            ("deep water", "{he} had to cross the river"),
            ("high places", "{he} had to climb a high hill"),
            ("loud noises", "there was a loud noise in the night"),
            ("being alone", "{he} got lost and was all alone"),
            ("the old cave", "{he} heard a voice from the old cave"),
        ]
    )
    s.say(f"But {{N}} was afraid of {fear}.", f"There was one thing {{N}} did not like: {fear}.", f"Nobody knew that {{N}} was afraid of {fear}.")
    s.say("{N} had {a_t}.", "{His} best thing was {a_t}. It made {him} feel safe.", "{His} [grandmother|mother|father|grandfather] had given {him} {a_t}.")
    s.paragraph()
    s.say(new_day(s) + f" {event}.", new_day(s) + f" {{N}} was {{in_place}} when {event}.".replace(" when it got", " until it got"))
    s.say('{N} began to shake. "I want to go home," {he} said.', "{His} knees went wobble, wobble.", '{N} closed {his} eyes. "I cannot do this," {he} thought.')
    s.say(
        'Then {he} heard a small voice. It was {fnew}. "Please help me. I am afraid too," said {fN}.',
        "There sat {fnew}, crying. {fN} was even more afraid.",
        'Then {fnew} came. "I know how you feel," said {fN}. "Take a deep breath."',
    )
    s.paragraph()
    s.say("{N} " + _COMFORT[s.fields["category"]] + " and took a deep breath.", "{N} " + _COMFORT[s.fields["category"]] + ". That helped a little.")
    s.say(
        '"We will go together," {he} said. Step by step, they went on.',
        '"Come," said {N}. "Hold my hand. We can do it."',
        '"If we sing, it is not so bad," said {fN}. So they sang a song.',
    )
    s.say(
        f"And soon {{N}} saw that {fear} was not so bad.",
        f"After a while, {{N}} was not afraid of {fear} any more.",
        "One step, and one more, and then it was over!",
    )
    s.say('"You did it!" said {fN}.', '"I did it!" called {N}. "I really did it!"', '{fN} clapped. "You are so brave," {fhe} said.')
    s.lesson = "courage"
    ending(s)
    s.summary = [
        f"{{N}} the {{k}} was afraid of {fear}. With {{his}} {{t}} and {{his}} friend {{fN}}, {{he}} was brave and did it.",
        f"{{N}} was afraid of {fear}, but {{he}} learned to be brave.",
    ]
    s.answers = [
        ("What was {N} afraid of?", f"{{N}} was afraid of {fear}."),
        ("Who was with {N}?", "{fN} was with {N}."),
        ("What helped {N}?", "The {t} and {his} friend {fN} helped {N}." if s.fields["fN"] != "the " + s.fields["fk"] else "The {t} and {fN} helped {N}."),
    ]
    s.sequel = [
        f'A few days later, {{N}} met [a little mouse|a small bird|a young rabbit] that was afraid of {fear}. "I was afraid too," said {{N}}. "Come, I will show you how to be brave."'
    ]


def storm(s: Story) -> None:
    opening(s)
    _owns(s)
    s.paragraph()
    s.say(new_day(s) + " a big storm came.", new_day(s) + " dark clouds came over {place}.", new_day(s) + " it began to rain and rain.")
    s.say("The wind blew, and the rain fell on {home}.", "The wind howled: whoo, whoo!", "The water rose higher and higher.")
    s.say(
        "There was a knock at the door. It was {fnew}, cold and wet.",
        '{fnew} came running. "My home is gone!" cried {fN}.',
        "Outside, {N} saw {fnew}. {fHe} had no place to go.",
    )
    s.say('"Come in," said {N}. "There is room for two."', '"You can stay with me," said {N}.', '{N} did not think twice. "Come here, quick!" {he} called.')
    s.paragraph()
    s.say(
        "They sat close together. To cheer {fhim} up, {N} showed {fN} {his} {t}.",
        "{N} gave {fN} the {t} so that {fhe} would not be sad.",
        "{fN} was still sad, so {N} took out the {t}.",
    )
    s.say("{fN} smiled for the first time.", "Soon {fN} forgot the storm.", '"What a lovely {tt}!" said {fN}, and {fhe} laughed.')
    s.maybe("They told stories all night.", "They drank hot [milk|cocoa|tea|soup].", "{fN} sang a song about the sea.")
    s.say(
        "In the morning, the sun was shining again. There was a rainbow over {place}.",
        "When they woke up, the storm was over.",
        "The next morning, the sky was blue.",
    )
    s.say(
        "{N} helped {fN} to build a new home, right next door.",
        "Together they cleaned up and built a new home for {fN}.",
        "All the neighbours came and helped {fN} to build a new home.",
    )
    s.lesson = s.rng.choice(["kindness", "friendship", "teamwork"])
    ending(s)
    s.summary = [
        "A storm came, and {fN} lost {fhis} home. {N} the {qk} let {fhim} stay and showed {fhim} the {t}. Then they built a new home for {fN}.",
        "In a storm, {N} helped {fnew}.",
    ]
    s.answers = [
        ("Who came to {N}?", "{fN} came because of the storm."),
        ("What did {N} show to {fN}?", "{N} showed {fN} the {t}."),
        ("What did they build?", "They built a new home for {fN}."),
    ]
    s.sequel = ["When the next storm came, they were not afraid. {fN} and {N} sat at the window with the {tt} and counted the drops of rain."]


def race(s: Story) -> None:
    opening(s)
    s.paragraph()
    contest, act = s.rng.choice(
        [
            ("a big race", "run to {place} and back"),
            ("a singing contest", "sing the best song"),
            ("a baking contest", "bake the best cake"),
            ("a swimming race", "swim across the lake"),
            ("a drawing contest", "draw the best picture"),
            ("a dancing contest", "dance the best dance"),
            ("a jumping contest", "jump the farthest"),
        ]
    )
    s.say(new_day(s) + f" there was {contest} {{in_place}}.", new_day(s) + f" everyone came for {contest} {{in_place}}.")
    s.say(f"The prize was {{a_t}}. To win it, one had to {act}.", f'"Who can {act} will get {{a_t}}," said [the old owl|the mayor|the king|the teacher].')
    s.say(
        '{N} wanted to win the {tt}. But {fnew} laughed. "I am better than you," said {fN}.',
        '{fnew} wanted to win too. "You have no chance," {fN} said to {N}.',
    )
    s.maybe("{N} was sad, but {he} did not give up. {He} practised every day.", '"I will try it anyway," said {N}.', "{N} practised from morning to night.")
    s.paragraph()
    s.say(
        "Ready, steady, go! {fN} was very good. But in the middle, {fhe} fell and hurt {fhis} leg.",
        "The contest began. {fN} was first. But then {fhe} [slipped|tripped] and fell down.",
    )
    kind = s.rng.random() < 0.5
    if kind:
        s.say("{N} could have won. But {he} stopped and helped {fN} up.", '{N} stopped at once. "Are you hurt?" {he} asked and gave {fhim} a hand.')
        s.say("So they finished together, and everyone clapped.", "They came in last, but all the people cheered for them.")
        s.say('They both got the {t}. "We will share it," they said.', '"The prize goes to {N}, who has a good heart," said the judge, and gave {him} the {t}.')
        s.lesson = "kindness"
    else:
        s.say("{N} did not look left or right. {He} did {his} very best.", "{N} went on, slowly but surely.")
        s.say("And in the end, {N} won! Everyone clapped.", '"The winner is {N}!" called the judge.' if s.request.name else "And {N} was the winner!")
        s.say('{He} got the {t}. {fN} came and said, "Well done. I am sorry that I laughed."', "{N} held the {t} up high. Then {he} let {fN} hold it too.")
        s.lesson = "trying"
    ending(s)
    s.summary = [
        f"{{N}} the {{k}} took part in {contest}. The prize was {{a_t}}. "
        + ("{N} stopped to help {fN}, and everyone cheered." if kind else "{N} tried hard and won."),
        f"{{N}} and {{fN}} were in {contest}. " + ("{N} helped {fN}." if kind else "{N} won {a_t}."),
    ]
    s.answers = [
        ("What was the prize?", "The prize was {a_t}."),
        ("Who laughed at {N}?", "{fN} laughed at {N}."),
        ("Who won?", "They finished together." if kind else "{N} won."),
    ]
    s.sequel = ["The next year, {N} and {fN} practised together. This time, they both won, and the prize was [a big cake|a golden cup|a basket of apples]."]


def learned(s: Story) -> None:
    opening(s)
    skill, teach = s.rng.choice(
        [
            ("swim", "move your legs slowly"),
            ("fly a kite", "run against the wind"),
            ("dance", "listen to the music"),
            ("sing", "open your mouth wide"),
            ("read", "look at one letter at a time"),
            ("ride a bike", "look straight ahead"),
            ("cook soup", "stir it slowly"),
            ("paint", "begin with a big circle"),
            ("whistle", "blow very softly"),
            ("skate", "bend your knees"),
            ("juggle", "look at your hands"),
        ]
    )
    s.say(f"But {{N}} could not {skill}.", f"{{N}} wanted to learn to {skill}.", f"All the others could {skill}, only {{N}} could not.")
    s.paragraph()
    s.say(
        new_day(s) + f" {{N}} tried to {skill} {{in_place}}. It went wrong.",
        new_day(s) + f" {{N}} went out to {skill}. {{He}} fell down on {{his}} nose.",
        new_day(s) + f' {{he}} tried it again. "I will never {skill}," {{he}} said.',
    )
    s.say(
        '{fnew} saw it. "May I help you?" asked {fN}.',
        'Then {he} met {fnew}. "I can teach you," said {fN}.',
        '{fnew} came by. "I could not do it either at first," said {fN}.',
    )
    s.say(f'"You must {teach}," said {{fN}}.', f'{{fN}} showed {{him}} how. "{teach.capitalize()}," {{fhe}} said.')
    s.paragraph()
    s.say(
        "{N} tried once. {He} tried twice. {He} tried ten times.",
        "Every day they practised. Every day {N} got a little better.",
        'It was hard. {N} wanted to stop, but {fN} said, "Once more!"',
    )
    s.say(f"And then, suddenly, {{N}} could {skill}!", f"On the [third|fifth|seventh] day, it worked. {{N}} could {skill}!")
    s.say('"Look at me! Look at me!" {he} called.', "{fN} clapped and cheered.", "{N} laughed with joy.")
    s.say(
        "{fN} gave {him} {a_t} as a prize.",
        "To say thank you, {N} gave {fN} {a_t}.",
        'Then {fN} gave {N} a present. It was {a_t}. "You have earned it," said {fN}.',
    )
    s.lesson = s.rng.choice(["trying", "patience"])
    ending(s)
    s.summary = [
        f"{{N}} the {{k}} wanted to learn to {skill}. {{fN}} helped, and {{N}} practised until {{he}} could do it.",
        f"{{N}} could not {skill}. But {{he}} kept trying, and in the end {{he}} did it.",
    ]
    s.answers = [("What did {N} learn?", f"{{N}} learned to {skill}."), ("Who taught {N}?", "{fN} taught {N}.")]
    s.sequel = [f'Soon [a small mouse|a little duck|a young frog] came to {{N}}. "Can you teach me to {skill}?" "Of course," said {{N}}. "You must {teach}."']


def new_friend(s: Story) -> None:
    opening(s)
    s.say(
        "But {N} had nobody to play with.", "{N} wanted to have a friend.", "{N} often played alone with {his} {t}.", "{N} was new {in_home} and knew nobody."
    )
    s.say("{N} had only {a_t}.", "{He} had {a_t}, but playing alone was not much fun.", "So {he} talked to {his} {t}.")
    s.paragraph()
    s.say(
        new_day(s) + " {N} took the {tt} and went to look for a friend.",
        new_day(s) + " {N} went {in_place} with {his} {t}.".replace("went {in_place}", "sat {in_place}"),
    )
    other = s.rng.choice(["squirrel", "hen", "cat", "goat", "beetle", "crow", "duck"])
    s.maybe(
        f'{{He}} asked a {other}, "Will you play with me?" "No, I have no time," said the {other}.', f"A {other} came by, but it did not even look at {{him}}."
    )
    s.say("Then {he} saw {fnew} sitting alone.", "Behind a tree, {he} saw {fnew}.", "There {he} met {fnew}, who looked sad.")
    s.say(
        '"Hello," said {N}. "I am {N}. Who are you?"' if s.request.name else '"Hello," said {N}. "Who are you?"',
        '"Do you want to play with me?" asked {N}.',
        '"Hello! I like your {tt}," said {fN}.',
    )
    s.paragraph()
    s.say(
        '{fN} looked at the {tt}. "That is a lovely {tt}. May I try?" "Yes!" said {N}.',
        '"I am all alone," said {fN}. "Me too," said {N}. "Then let us be friends!"',
        '{fN} smiled. "I would love to play," {fhe} said.',
    )
    s.say(
        "They played with the {t} until the sun went down.",
        "They laughed and ran and played all day.",
        "{N} showed {fN} the {t}, and {fN} showed {N} how to {fskill}.",
    )
    s.say(
        '"Will you come back tomorrow?" asked {fN}. "Yes, I will," said {N}.',
        '"Now I have a friend," thought {N}, and {his} heart was warm.',
        "Neither of them was lonely any more.",
    )
    s.lesson = "friendship"
    ending(s)
    s.summary = [
        "{N} the {k} had nobody to play with, only {a_t}. Then {he} met {fN}, and they became friends.",
        "{N} was alone. {He} met {fnew}, and they played with the {t}.",
    ]
    s.answers = [("Who became the friend of {N}?", "{fN} became the friend of {N}."), ("What did they play with?", "They played with the {t}.")]
    s.sequel = [
        'The next morning, {fN} was already at the door. "Today I will show you my secret place," said {fN}. It was {in_place}, and there was a little house made of branches.'
    ]


def hungry(s: Story) -> None:
    opening(s)
    s.paragraph()
    food = s.rng.choice(["a loaf of bread", "a bowl of soup", "a big cake", "a basket of apples", "some cheese", "a pot of honey", "a bag of nuts"])
    s.say(new_day(s) + f" {{N}} had {food} for lunch.", new_day(s) + f" {{N}} was on {{his}} way home with {food}.")
    s.say('By the road sat {fnew}. "I am so hungry," said {fN}.', 'Then {he} met {fnew}, thin and weak. "Please give me something to eat," said {fN}.')
    s.maybe("{N} was hungry too.", "{N} looked at the food. It was not much.", "At first {N} wanted to walk on.")
    s.say("But {he} gave half of it to {fN}.", '"Here, take it," said {N}. "We can share."', "{N} sat down and shared everything with {fhim}.")
    s.paragraph()
    s.say(
        'When they had eaten, {fN} smiled. "You have a good heart. This is for you." {fHe} gave {N} {a_t}.',
        '"Nobody was ever so kind to me," said {fN}, and gave {N} {a_t}.',
    )
    s.say("{N} took the {tt} home. Now {he} could {use}.", '"What a wonderful {tt}!" said {N}.', "{N} was surprised. {He} had always wanted such {a_t}.")
    s.say("Every time {he} looked at the {tt}, {he} thought of {fN}.", "After that, {fN} came every [Sunday|Friday|week], and they ate together.")
    s.lesson = s.rng.choice(["kindness", "sharing"])
    ending(s)
    s.summary = [
        "{N} the {k} shared " + food + " with {fnew}. To say thank you, {fN} gave {him} {a_t}.",
        "{N} was kind to {fN}, who was hungry, and got {a_t}.",
    ]
    s.answers = [
        ("Who was hungry?", "{fN} was hungry."),
        ("What did {N} share?", "{N} shared " + food + "."),
        ("What did {fN} give to {N}?", "{fN} gave {N} {a_t}."),
    ]
    s.sequel = [
        'One winter day, {N} had nothing to eat. There was a knock at the door. It was {fN} with a big pot of soup. "Now it is my turn to share," said {fN}.'
    ]


def journey(s: Story) -> None:
    opening(s)
    s.paragraph()
    s.say(
        new_day(s) + " {N} heard of {a_t} hidden {in_place}.",
        new_day(s) + ' an old [owl|man|woman|turtle] said to {N}, "There is {a_t} {in_place}. Only one with a good heart can find it."',
        new_day(s) + " {N} found a map. It showed the way to {a_t} {in_place}.",
    )
    s.say("{N} packed some bread and set out.", '"I will find it," said {N} and went off.', "So {N} said goodbye and began {his} journey.")
    obstacles = s.rng.sample(
        [
            "{He} crossed a wide river on a log.",
            "{He} climbed over a steep hill.",
            "{He} walked through a dark forest.",
            "{He} crossed a bridge that shook in the wind.",
            "{He} walked through tall grass for two days.",
            "{He} slept under the stars.",
        ],
        2,
    )
    s.say(obstacles[0])
    s.maybe(obstacles[1])
    s.paragraph()
    s.say(
        'On the way, {he} met {fnew}. "Where are you going?" asked {fN}. "May I come with you?"',
        'Then {fnew} stood in {his} way. "Who are you?" asked {fN}. {N} told {fhim} everything.',
    )
    s.say("They went on together.", "Two are better than one, so they went together.", '"I know the way," said {fN}. "Follow me."')
    s.say(
        "At last, {in_place}, they saw something shine. It was the {t}!",
        'They looked for a long time. Then {fN} called, "There it is!" It was the {t}.',
        "They dug a deep hole, and there was the {t}!",
    )
    s.say('"It belongs to both of us," said {N}.', "{N} could not believe {his} eyes.", '"We did it!" they cried and danced around it.')
    s.say("They took the {tt} home, and everyone came to see it.", "They carried it home and told everyone about their journey.")
    s.lesson = s.rng.choice(["teamwork", "trying", "courage", "friendship"])
    ending(s)
    s.summary = ["{N} the {qk} went on a journey to find {a_t}. On the way {he} met {fN}, and together they found it.", "{N} and {fN} found {a_t} {in_place}."]
    s.answers = [
        ("What did they find?", "They found {a_t}."),
        ("Who went with {N}?", "{fN} went with {N}."),
        ("Where was the {tt}?", "The {tt} was {in_place}."),
    ]
    s.sequel = ['Soon they wanted to go on a new journey. "Let us find out where the river ends," said {fN}. {N} packed {his} bag, and off they went.']


def scary_neighbour(s: Story) -> None:
    opening(s)
    s.say("Near {home} lived {fnew}. Everyone was afraid of {fhim}.", 'Not far away lived {fnew}. "Do not go there," everyone said.')
    s.paragraph()
    s.say(
        new_day(s) + " {N} lost {his} {t}. It had fallen into the garden of {fN}.", new_day(s) + " the wind carried the {t} of {N} right to the door of {fN}."
    )
    s.say("{N} was afraid. But {he} wanted {his} {tt} back, so {he} knocked.", '"I must get it back," said {N} and went to the door on tiptoe.')
    s.say(
        'The door opened slowly. There stood {fN} with the {tt}. "Is this yours?" {fhe} asked in a soft voice.',
        '"Who is there?" said a deep voice. {fN} came out, and {fhe} was smiling.',
    )
    s.paragraph()
    s.say('"Nobody ever comes to see me," said {fN}. "Would you like some [cake|tea|soup|pie]?"', '"I am not bad," said {fN}. "I am only lonely."')
    s.say(
        "They sat down and talked. {N} saw that {fN} was very nice.",
        "{N} stayed all afternoon. {fN} told the best stories.",
        "They played with the {t} together, and {fN} laughed like a bell.",
    )
    s.say("Then {N} told all the others, and nobody was afraid of {fN} any more.", "The next day, {N} brought all {his} friends along.")
    s.lesson = s.rng.choice(["friendship", "courage", "listening"])
    ending(s)
    s.summary = ["Everyone was afraid of {fN}. But when {N} the {k} went to get {his} {t} back, {he} saw that {fN} was nice and only lonely."]
    s.answers = [("Was {fN} bad?", "No, {fN} was nice. {fHe} was only lonely."), ("Why did {N} go to {fN}?", "{N} wanted {his} {t} back.")]
    s.sequel = ['After that, {fN} made a big party in the garden. There was music and cake, and everyone came. "This is the best day of my life," said {fN}.']


PLOTS = (stuck, afraid, storm, race, learned, new_friend, hungry, journey, scary_neighbour)
