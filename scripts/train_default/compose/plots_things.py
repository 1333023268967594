"""Plots that turn on the thing: losing it, finding it, wanting it, sharing it, breaking it, giving it.

Each plot fills the story's text, its summary, sequel and answers. Knows nothing of requests.
"""

from __future__ import annotations

from .openings import ending, new_day, opening
from .story import Story


def _owns(s: Story) -> None:
    """The hero has the thing and loves it."""
    s.say(
        "{N} had {a_t}.",
        "{N} had {a_t} that {he} loved very much.",
        "{His} favourite thing was {a_t}.",
        "More than anything, {N} loved {his} {t}.",
        "{N} had {a_t}. It was a gift from {his} [grandmother|grandfather|mother|father|uncle|aunt].",
    )
    s.maybe("{He} liked to {use}.", "{He} loved to {use}.", "Every day, {he} liked to {use}.", "{He} liked to {use} and to {use2}.")


def lost(s: Story) -> None:
    opening(s)
    _owns(s)
    s.paragraph()
    s.say(
        new_day(s) + " the {t} was gone.",
        new_day(s) + " {N} woke up and could not find the {t}.",
        new_day(s) + " {N} went for a walk {in_place}. When {he} came home, the {t} was gone.",
        new_day(s) + " {N} lost the {t} {in_place}.",
    )
    s.maybe(
        "{N} was very sad.",
        '"Oh no! Where is my {tt}?" cried {N}.',
        '{N} began to cry. "I have lost my {tt}," {he} said.',
        "{His} heart went bump, bump, bump.",
    )
    where = s.rng.sample(
        [
            "under the bed",
            "behind a big tree",
            "in the long grass",
            "under a bush",
            "behind the door",
            "in a hole",
            "under the stones",
            "on the path",
            "behind the fence",
        ],
        4,
    )
    s.say(
        f"{{N}} looked {where[0]}. It was not there. {{He}} looked {where[1]}. It was not there either.",
        f"{{He}} looked {where[0]} and {where[1]}, but {{he}} could not find it.",
        f"First {{he}} looked {where[0]}. Then {{he}} looked {where[1]}. No {{tt}}!",
    )
    s.paragraph()
    s.say("Then {N} met {fnew}.", "Just then, {fnew} came by.", "On the way, {he} met {fnew}.", "{fnew} heard {N} and came to see what was wrong.")
    s.say(
        '"Why are you so sad?" asked {fN}. "I lost my {t}," said {N}.',
        '"Have you seen my {t}?" asked {N}. "No," said {fN}, "but I will help you look for it."',
        '"Can I help you?" asked {fN}. "Yes, please," said {N}. "I cannot find my {t}."',
        '"Do not cry," said {fN}. "We will find your {tt} together."',
    )
    found = where[2]
    s.say(
        f"They looked and looked. At last, {{fN}} saw something {found}. It was the {{t}}!",
        f"They walked {{in_place}} and looked everywhere. And there, {found}, lay the {{t}}!",
        f'{{fN}} had [good|sharp] eyes. "Look, {found}!" {{fhe}} called. There was the {{t}}.',
    )
    s.say(
        '"Thank you, thank you!" said {N} and hugged {fN}.',
        '{N} jumped for joy. "Thank you, {fN}!" {he} said.',
        '{N} was so happy that {he} danced. "You are a true friend," {he} said.',
    )
    s.maybe("From then on, {N} took good care of the {tt}.", "{N} let {fN} hold the {tt} for a while.", "Then they played together until it was dark.")
    s.lesson = s.rng.choice(["friendship", "teamwork", "trying"])
    ending(s)
    s.summary = [
        "{N} the {qk} lost {his} {t}. {fnew} helped {him} to look for it, and they found it " + found + ". They became good friends.",
        "{a_qk} lost {a_t} and was very sad. Then {fN} came and helped. They found the {tt} " + found + ", and {N} was happy again.",
    ]
    s.answers = [
        ("Where was the {tt}?", "The {t} was " + found + "."),
        ("Who helped {N}?", "{fN} helped {N}. {fHe} is [a|such a] good friend."),
        ("Why was {N} sad?", "{N} was sad because {he} had lost {his} {t}."),
    ]
    s.sequel = [
        'The next day, {N} tied a [red|blue|green|yellow] ribbon to the {tt} so that {he} would never lose it again. {fN} laughed. "Now everyone can see it!" {fhe} said.'
    ]


def found(s: Story) -> None:
    opening(s)
    s.paragraph()
    s.say(
        new_day(s) + " {N} was walking {in_place} when {he} saw something on the ground.",
        new_day(s) + " {N} went for a walk {in_place}. {He} saw something behind a bush.",
        new_day(s) + " {N} found something {in_place}.",
        new_day(s) + " {N} almost fell over something {in_place}.",
    )
    s.say("It was {a_t}!", 'It was {a_t}. "How lovely!" said {N}.', '"What is this?" {he} asked. It was {a_t}.')
    s.maybe(
        "{N} wanted to keep it. {He} wanted to {use}.", "{He} picked it up and looked at it from all sides.", "{N} looked left and right, but nobody was there."
    )
    s.say(
        'But then {he} thought, "It must belong to someone."',
        '"Who does this belong to?" {N} asked.',
        '"Somebody must be very sad without this {tt}," {N} thought.',
    )
    s.paragraph()
    s.say("So {N} asked everyone {he} met.", "{N} went from door to door and asked.", "{He} put the {tt} on {his} back and went to look for the owner.")
    s.maybe('"Is this your {tt}?" {he} asked [a goat|a hen|a snail|an old man|a woman with a basket]. "No, it is not mine," came the answer.')
    s.say(
        "At last {he} heard someone crying. It was {fnew}.",
        "Then {he} came to {fnew} who looked very sad.",
        "Near {place}, {he} met {fnew} with tears in {fhis} eyes.",
    )
    s.say(
        '"I lost my {t}," said {fN}. "I have it here!" said {N} and gave it back.',
        '"Is this yours?" asked {N}. "Yes! That is my {t}!" cried {fN}.',
        '"What is wrong?" asked {N}. "My {t} is gone," said {fN}. {N} smiled and held it up. "Here it is!"',
    )
    s.say(
        "{fN} was so glad that {fhe} hugged {N}.",
        '"You are so honest," said {fN}. "Will you be my friend?"',
        '"Thank you! You could have kept it, but you did not," said {fN}.',
    )
    s.maybe(
        "They sat down and ate [cake|berries|bread and jam|soup|apples] together.",
        '"Come and play with me," said {fN}, and they played all day.',
        "{fN} let {N} {use} too.".replace("{use}", "hold it"),
    )
    s.lesson = s.rng.choice(["honesty", "kindness"])
    ending(s)
    s.summary = [
        "{N} the {k} found {a_t} {in_place}. {He} did not keep it but looked for the owner. It belonged to {fN}, and the two became friends.",
        "{a_qk} found {a_t}. {N} gave it back to {fN}, who was very glad.",
    ]
    s.answers = [
        ("Whose {tt} was it?", "The {tt} belonged to {fN}."),
        ("Where did {N} find the {tt}?", "{N} found the {tt} {in_place}."),
        ("What did {N} do with the {tt}?", "{N} gave it back to {fN}."),
    ]
    s.sequel = ["A week later, {fN} knocked on the door. {fHe} had a present for {N}: a {tt} just like {fhis} own! Now they both had one."]


def wanted(s: Story) -> None:
    opening(s)
    s.say("But {N} had one big wish. {He} wanted {a_t}.", "There was one thing {N} wanted very much: {a_t}.", "{N} dreamed of {a_t}. {He} wanted to {use}.")
    s.paragraph()
    s.say(new_day(s) + " {N} saw {a_t} {in_place}. It belonged to {fnew}.", new_day(s) + " {he} met {fnew} {in_place} who had {a_t}.")
    s.say(
        '"Can I have it?" asked {N}.',
        '"Oh, what a lovely {tt}! Will you give it to me?" asked {N}.',
        '{N} could not stop looking at it. "May I have your {tt}?" {he} asked.',
    )
    work = s.rng.choice(
        [
            "wash the windows",
            "water the flowers",
            "pick the apples",
            "carry the wood",
            "clean the house",
            "feed the hens",
            "paint the fence",
            "sweep the floor",
            "dig the garden",
        ]
    )
    s.say(
        f'{{fN}} thought about it. "If you help me to {work}, you can have it," {{fhe}} said.',
        f'"First you must {work}," said {{fN}}.',
        f'"I need help. If you {work} for me, the {{tt}} is yours," said {{fN}}.',
    )
    s.paragraph()
    s.say(
        "{N} worked all day. It was hard, and {he} was tired.",
        "So {N} worked and worked. {He} did not stop until the sun went down.",
        "{N} said yes at once. {He} worked for three days.",
        "It was not easy. But {N} thought of the {tt} and did not give up.",
    )
    s.maybe(
        "{His} arms were heavy, but {he} sang a song.",
        '"I can do it," {he} said again and again.',
        "Once {he} wanted to stop, but then {he} saw the {tt} again.",
    )
    s.say(
        "At last the work was done. {fN} smiled and gave {him} the {t}.",
        '"Well done!" said {fN}. "Here is your {tt}."',
        "{fN} kept {fhis} word and gave {N} the {t}.",
    )
    s.say("{N} was very proud. Now {he} could {use}.", "{N} laughed with joy. At once {he} began to {use}.", "Now {N} could {use}, and {he} was very happy.")
    s.maybe("{fN} and {N} sat together and drank tea.", '"Come and see me again," said {fN}.')
    s.lesson = s.rng.choice(["trying", "patience"])
    ending(s)
    s.summary = [
        '{N} the {k} wanted {a_t}. {fN} had one and said, "You can have it if you ' + work + '." {N} worked hard and got the {tt}.',
        "{a_qk} worked hard for {a_t}. In the end {fN} gave it to {him}, and {N} was proud.",
    ]
    s.answers = [
        ("What did {N} want?", "{N} wanted {a_t}."),
        ("What did {N} have to do?", "{N} had to " + work + "."),
        ("Who had the {tt}?", "{fN} had the {tt} at first."),
    ]
    s.sequel = ['After that, {N} still came to help {fN} every week, even without getting anything for it. "Helping you is fun," said {N}.']


def shared(s: Story) -> None:
    opening(s)
    _owns(s)
    s.say("But {N} did not want to share it.", '"It is mine, only mine," {N} always said.', "Nobody else was allowed to touch it.")
    s.paragraph()
    s.say(new_day(s) + " {fnew} came to {home}.", new_day(s) + " {N} met {fnew} {in_place}.")
    s.say(
        '"What a nice {tt}! May I try it?" asked {fN}.',
        '"Can we play together with your {tt}?" asked {fN}.',
        '"I have never seen such {a_t}. May I hold it?" asked {fN}.',
    )
    s.say('"No!" said {N}. "It is mine."', '{N} held the {tt} tight. "No, go away," {he} said.', '"No, you might break it," said {N}.')
    s.say("{fN} went away with a sad face.", "{fN} was sad and sat down alone under a tree.", "{fN} said nothing and walked away slowly.")
    s.paragraph()
    s.say(
        "{N} was alone with the {tt}. But it was no fun any more.",
        "Now {N} had the {tt} all to {self}. But {he} felt lonely.",
        "{N} tried to {use}, but alone it was boring.",
    )
    s.maybe("{He} looked at {fN} and felt bad.", '"Why am I not happy?" {he} asked {self}.', "{He} thought of the sad face of {fN}.")
    s.say(
        'So {N} went to {fN}. "I am sorry," {he} said. "Let us share it."',
        'Then {he} ran after {fN} and said, "Please come back. We can share the {tt}."',
        '"I was wrong," {N} said to {fN}. "You can have a turn."',
    )
    s.say(
        "{fN} smiled. They took turns all day.",
        "{fN} was so happy that {fhe} jumped up and down. They laughed and played until the evening.",
        "Together they had much more fun than {N} ever had alone.",
    )
    s.lesson = "sharing"
    ending(s)
    s.summary = [
        "{N} the {k} had {a_t} and did not want to share it. {fN} was sad. But alone it was boring, so {N} said sorry, and they shared the {tt}.",
        "{a_qk} did not share {a_t}. Then {N} felt lonely and learned to share it with {fN}.",
    ]
    s.answers = [
        ("Why was {fN} sad?", "{fN} was sad because {N} did not share the {tt}."),
        ("What did {N} learn?", "{N} learned to share."),
        ("Who wanted to try the {tt}?", "{fN} wanted to try it."),
    ]
    s.sequel = ['The next day, {N} shared {his} lunch with {fN} too. "Sharing is fun," {he} said. Soon all the others came to play with them.']


def broken(s: Story) -> None:
    opening(s)
    s.paragraph()
    s.say("{fnew} was {his} best friend. {fN} had {a_t}.", "{N} had a good friend, {fnew}, who had {a_t}.")
    s.say(new_day(s) + " {N} wanted to try the {tt} while {fN} was away.", new_day(s) + " {N} took the {tt} without asking.")
    s.say("But crack! It broke.", "Oh no! The {tt} fell down and broke.", "Then there was a loud crack. The {tt} was broken!")
    s.say(
        '{N} was scared. "What shall I do now?" {he} thought.',
        "{N} hid the {tt} under a bush.",
        '{His} face turned red. "{fN} will be so angry," {he} thought.',
    )
    s.paragraph()
    s.say('When {fN} came back, {fhe} asked, "Have you seen my {tt}?"', 'Soon {fN} came back. "Where is my {tt}?" {fhe} asked.')
    lied = s.rng.random() < 0.5
    if lied:
        s.say('"No," said {N}. But {he} felt very bad.', '"A [bird|fox|crow] took it," said {N}. It was a lie, and {his} tummy hurt.')
        s.say(
            "That night, {he} could not sleep. In the morning {he} went to {fN} and told the truth.",
            'After a while, {he} could not stand it. "I lied. I broke your {tt}," {he} said.',
        )
    else:
        s.say('{N} took a deep breath. "I broke it. I am so sorry," {he} said.', '{N} looked at {his} feet. "It was me. I broke it," {he} said softly.')
    s.say(
        '{fN} was sad, but then {fhe} smiled. "Thank you for telling the truth," {fhe} said.',
        '"I am sad about the {tt}," said {fN}, "but I am glad that you told me."',
    )
    s.say(
        "They took some glue and fixed the {tt} together.",
        "Together they fixed it with [glue|string|a new part|tape]. It was not perfect, but it was fine.",
        "{N} worked all day to fix it. Soon the {t} was as good as new.",
    )
    s.lesson = "honesty"
    ending(s)
    s.summary = [
        "{N} the {k} broke the {t} of {his} friend {fN}. {He} was scared but told the truth. Then they fixed it together.",
        "{N} broke {a_t} that belonged to {fN}. {N} said sorry, and they fixed it.",
    ]
    s.answers = [
        ("Who broke the {tt}?", "{N} broke the {tt}, but {he} told the truth about it."),
        ("Was {fN} angry?", "{fN} was a little sad, but not angry, because {N} told the truth."),
    ]
    s.sequel = ['The next day, {fN} said, "You may use my {tt}, but please ask me first." {N} nodded. From then on, {he} always asked.']


def gift(s: Story) -> None:
    opening(s)
    s.paragraph()
    s.say("{His} best friend was {fnew}.", "{N} had a friend, {fnew}.")
    s.say(
        "Soon it was the birthday of {fN}, and {N} wanted to give {fhim} something special.",
        'It was the birthday of {fN}. "What can I give {fhim}?" thought {N}.',
        "{fN} was ill and had to stay in bed. {N} wanted to make {fhim} happy.",
    )
    s.say(
        "{N} had no money. But {he} had {a_t} that {he} loved.",
        "{N} looked {in_place} and found {a_t}.",
        "{N} went to {place} and got {a_t}.",
        "{N} worked for three days and made {a_t}.",
    )
    s.maybe("{He} put it in a box with a bow.", "{He} cleaned it until it was shiny.", "{He} wrapped it in paper with stars on it.")
    s.paragraph()
    s.say(
        "On the way to {fN}, a strong wind came and blew the {tt} into the [river|mud|bushes].",
        "On the way, {N} fell into the mud with the {tt}.",
        "But it was a long way. {N} had to go over a hill and through the rain.",
    )
    s.say('"Oh no!" cried {N}. But {he} did not give up.', "{N} almost cried. Then {he} went on.", "{N} held the {tt} tight and walked on.")
    s.say("{He} cleaned the {tt} as well as {he} could and knocked on the door.", "At last {he} stood before the door, all wet and dirty.")
    s.say(
        '"This is for you," {he} said. {fN} opened {fhis} eyes wide. "{A_t}! It is the best gift ever!"'.replace("{A_t}", "Oh, {a_t}"),
        'When {fN} saw the {t}, {fhe} laughed with joy. "I always wanted one!" {fhe} said.',
        '{fN} hugged {N}. "You came all this way for me? Thank you for the lovely {tt}!"',
    )
    s.maybe("They ate cake and sang songs.", "They sat together and told stories.", "Then {fN} began to {use}.".replace("{use}", "smile again"))
    s.lesson = s.rng.choice(["kindness", "friendship"])
    ending(s)
    s.summary = [
        "{N} the {k} wanted to give {fN} {a_t}. The way was hard, but {N} did not give up, and {fN} was very happy with the gift.",
        "{a_qk} gave {a_t} to {his} friend {fN}. It was the best gift ever.",
    ]
    s.answers = [("Who got the {tt}?", "{fN} got the {tt} from {N}."), ("What did {N} give to {fN}?", "{N} gave {fN} {a_t}.")]
    s.sequel = ['When the birthday of {N} came, {fN} brought a big cake and a card. On the card it said, "For my best friend." {N} was very happy.']


def mistaken(s: Story) -> None:
    opening(s)
    _owns(s)
    s.paragraph()
    s.say(new_day(s) + " the {tt} was not in its place.", new_day(s) + " {N} could not find the {t}.")
    s.say('{N} saw {fnew} near the door. "You took my {tt}!" {he} shouted.', '"Somebody took it!" said {N}. Then {he} saw {fnew}. "It was you!"')
    s.say('"No, I did not," said {fN}. But {N} did not believe {fhim}.', '{fN} shook {fhis} head. "I never took it," {fhe} said and began to cry.')
    s.paragraph()
    spot = s.rng.choice(["under {his} own bed", "behind the cupboard", "in {his} own bag", "under a pile of leaves", "on top of the shelf"])
    s.say(f"In the evening, {{N}} looked {spot}. There was the {{t}}!", f"Later, {{N}} found the {{t}} {spot}. {{He}} had put it there {{self}}!")
    s.say("{N} felt very bad. {He} ran to {fN}.", '"Oh dear, I was wrong," said {N}. {He} went to {fN} at once.')
    s.say('"I am sorry. You did not take it," {he} said.', '"Please forgive me," {he} said. "I should have looked first."')
    s.say('"It is all right," said {fN}. "Everyone makes mistakes."', '{fN} smiled. "Let us be friends," {fhe} said.')
    s.say(
        "Then they began to play, and {N} let {fN} {use}.".replace("{use}", "have the first turn"),
        "{N} gave {fN} a big hug, and they spent the rest of the day together.",
    )
    s.lesson = "listening"
    ending(s)
    s.summary = [
        "{N} the {k} thought that {fN} had taken {his} {t}. But it was " + spot + ". {N} said sorry, and they became friends.",
        "{N} could not find {his} {t} and blamed {fN}. Then {he} found it and said sorry.",
    ]
    s.answers = [
        ("Did {fN} take the {tt}?", "No, {fN} did not take it. It was " + spot + "."),
        ("Why did {N} say sorry?", "Because {he} had blamed {fN}, who did nothing wrong."),
    ]
    s.sequel = ["The next time {N} could not find something, {he} looked for it first. And {fN} helped {him} to look."]


def magic(s: Story) -> None:
    opening(s)
    s.paragraph()
    s.say(
        new_day(s) + " {N} was walking {in_place} with {his} friend, {fnew}. There {he} found {a_t}.",
        new_day(s) + " {fnew} gave {N} {a_t}.",
        new_day(s) + " {N} and {his} friend, {fnew}, saw {a_t} {in_place}.",
    )
    s.say(
        "When {he} touched it, it began to glow.",
        'The {tt} began to speak! "I am magic," it said. "You have three wishes."',
        '"This {tt} can make a wish come true," said a soft voice.',
    )
    wish, went_wrong = s.rng.choice(
        [
            ("a mountain of cake", "There was so much cake that {N} could not get out of the door"),
            ("to be as big as a house", "{N} grew and grew until {his} head hit the clouds"),
            ("a thousand toys", "There were so many toys that nobody could walk any more"),
            ("to fly", "{N} flew up and up and did not know how to come down"),
            ("snow in summer", "It snowed so much that all the flowers froze"),
            ("that nobody could see {him}", "Nobody saw {him}, and nobody played with {him}"),
            ("a pot of gold", "The pot was so heavy that the floor broke"),
        ]
    )
    s.say(f"{{N}} wished for {wish}." if not wish.startswith(("to", "that")) else f"{{N}} wished {wish}.")
    s.say("Puff! It came true.", "Whoosh! The wish came true at once.", "The {tt} shone bright, and it happened.")
    s.say(
        f"But oh dear! {went_wrong}.",
        f"At first it was fun. But then {went_wrong[0].lower() + went_wrong[1:] if not went_wrong.startswith('{') else went_wrong}.",
    )
    s.paragraph()
    s.say(
        '"Help!" cried {N}. {fN} heard {him} and came.',
        '{N} began to cry. "I do not want this any more," {he} said.',
        '{fN} came and said, "Wish for what is really good."',
    )
    s.say("{N} thought for a long time. Then {he} wished that everything was as before.", '"I wish that all was as it was before," said {N}.')
    s.say("The {tt} glowed one last time, and all was well.", "Puff! Everything was as before.")
    s.say(
        '"I do not need magic," said {N}. "I have a friend." And {he} and {fN} went to play.',
        "{N} gave the {t} to the wind, and it flew away like a star.",
        "{N} put the {tt} back where {he} had found it.",
    )
    s.lesson = s.rng.choice(["listening", "friendship"])
    ending(s)
    s.summary = [
        "{N} the {k} got a magic {tt}. {His} wish came true, but it went wrong. So {N} wished that all was as before.",
        "A magic {tt} gave {N} a wish. It was not as good as {he} thought, and in the end {N} was happy without magic.",
    ]
    s.answers = [
        ("What did {N} wish for?", f"{{N}} wished {wish}." if wish.startswith(("to", "that")) else f"{{N}} wished for {wish}."),
        ("What was magic?", "The {t} was magic."),
    ]
    s.sequel = [
        'Some days later, the {tt} came back! "You have one wish left," it said. {N} smiled. "I wish that everyone may sleep well tonight." And so it was.'
    ]


PLOTS = (lost, found, wanted, shared, broken, gift, mistaken, magic)
