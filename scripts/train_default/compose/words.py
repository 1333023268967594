"""Word lists of the story composer: names, characters, qualities, things, places.

Knows nothing of sentences or plots. In the lists an underscore stands for a space.
"""

from __future__ import annotations

import random

GIRL_NAMES = """Lily Mia Anna Emma Sara Lucy Ella Zoe Nora Ruby Daisy Molly Rosie Maya Lola Ivy Grace Amy Jane Kate Bella Chloe Eva Hannah Julia Katie Leah Lisa Luna
Maria Nina Olivia Penny Poppy Sophie Tina Violet Wendy Zara Alice Amara Anika Beth Bonnie Carla Clara Dora Elsa Fatima Fiona Freya Gina Greta Hazel
Heidi Holly Ida Ines Iris Jasmine Jenny Jessie Joy Kira Laura Leila Lena Lotte Mabel Maggie Matilda Meera Mila Millie Mona Nadia Naomi Nell Olga Paula
Pia Polly Priya Rita Rosa Sally Salma Selma Sina Stella Susie Talia Tara Tilda Vera Wanda Willa Yara Yuki Abena Zola Thandi Nala Ayana Makena Asha
Tilly Cleo Dina Edith Flora Hilda""".split()
BOY_NAMES = """Tom Tim Ben Max Sam Jack Leo Finn Oscar Theo Noah Adam Alex Billy Bob Charlie Dan David Eli Ethan Felix Fred George Harry Henry Hugo Ian Jake James
Jim Joe John Josh Kai Karl Ken Kofi Liam Lucas Luke Mark Matt Mike Milo Nick Nico Oliver Omar Otto Owen Paul Pete Peter Phil Ralph Ravi Rex Rob Rory
Roy Rudi Simon Spike Steve Ted Tobi Toby Tommy Tony Victor Will Willy Zack Ali Amir Anton Arlo Barnaby Boris Bruno Carlos Casper Chidi Dario Dexter
Diego Edgar Emil Ernie Farid Gus Hamid Hans Igor Ivan Jamal Jonas Juma Kwame Lars Louis Marco Mateo Mohamed Moses Nils Olaf Pablo Percy Quentin Rafi
Samir Sipho Sven Tariq Tau Timo Uwe Walter Yusuf""".split()
PET_NAMES = """Pip Coco Bubbles Fluffy Snowy Buddy Spot Sunny Pepper Ginger Cookie Biscuit Muffin Button Bean Bingo Bobo Boo Buzz Chip Cloud Dash Dot Dusty Fizz Flap
Flash Fudge Fuzzy Giggles Gogo Happy Honey Hop Jojo Jumpy Kiki Lulu Mimi Minty Misty Momo Moss Nibbles Noodle Nutmeg Olive Paws Peanut Pebble Pickles
Pinky Pogo Puff Pumpkin Quack Rusty Sandy Scout Shadow Smokey Sparkle Speedy Squeak Star Stripe Sprout Teddy Thunder Tiki Toto Twinkle Waffles
Whiskers Wiggles Woolly Zippy Zuzu""".split()

# kind, plural-free; group decides homes and skills
ANIMALS = {
    "farm": "cow horse pig sheep goat hen rooster donkey duck goose lamb pony calf chick bull turkey".split(),
    "forest": "fox bear rabbit squirrel owl hedgehog deer wolf mole badger raccoon beaver woodpecker hare mouse skunk moose".split(),
    "pond": "frog toad turtle newt swan otter duckling dragonfly heron snail tadpole".split(),
    "sea": "fish whale dolphin octopus crab seal shark starfish penguin walrus seahorse lobster jellyfish".split(),
    "wild": """lion tiger elephant giraffe monkey zebra hippo rhino crocodile camel kangaroo koala panda parrot leopard gorilla ostrich flamingo lizard snake
tortoise meerkat antelope hyena chameleon warthog baboon cheetah sloth llama""".split(),
    "air": "bird sparrow robin crow eagle pigeon bat butterfly bee ladybug firefly hummingbird seagull".split(),
    "house": "cat dog kitten puppy hamster parakeet bunny goldfish guinea_pig".split(),
    "small": "ant spider worm caterpillar beetle cricket grasshopper".split(),
}
PEOPLE = """girl boy girl boy girl boy farmer baker king queen prince princess sailor fisherman teacher doctor gardener painter singer knight pirate shepherd cook
tailor clown miller postman firefighter dancer child woodcutter shoemaker drummer pilot astronaut grandmother grandfather""".split()
FANTASY = """dragon fairy robot giant mermaid wizard unicorn elf witch monster dinosaur ghost gnome troll snowman goblin alien phoenix""".split()
FEMALE = {"hen", "cow", "girl", "queen", "princess", "mermaid", "witch", "fairy", "grandmother"}
MALE = {"rooster", "bull", "boy", "king", "prince", "fisherman", "wizard", "knight", "shepherd", "woodcutter", "snowman", "postman", "grandfather"}

HOMES = {
    "farm": ["on a small farm|the farm", "in a big red barn|the barn", "on a farm near a village|the farm"],
    "forest": ["in a green forest|the forest", "in a hollow tree|the tree", "in the deep woods|the woods", "under an old oak tree|the oak tree"],
    "pond": ["by a quiet pond|the pond", "near a small lake|the lake", "beside a slow river|the river", "in a pond full of lilies|the pond"],
    "sea": ["in the deep blue sea|the sea", "near a sandy beach|the beach", "by a small island|the island", "under the waves|the waves"],
    "wild": ["in the warm jungle|the jungle", "on the wide grassland|the grassland", "near a water hole|the water hole", "in a hot, sunny land|the land"],
    "air": ["in a tall tree|the tree", "in a garden full of flowers|the garden", "on the roof of a church|the roof", "in a nest high up|the nest"],
    "house": [
        "in a cosy house|the house",
        "in a small house with a garden|the garden",
        "with a kind family|the house",
        "in a little flat in the city|the city",
    ],
    "small": ["under a flat stone|the stone", "in the tall grass|the grass", "on a green leaf|the leaf", "in a garden|the garden"],
    "people": [
        "in a small village|the village",
        "in a house by the river|the house",
        "in a little town|the town",
        "at the foot of a mountain|the mountain",
        "near the sea|the sea",
        "at the edge of a forest|the forest",
    ],
    "royal": ["in a tall castle|the castle", "in a palace with many rooms|the palace", "in a castle on a hill|the castle"],
    "fantasy": [
        "in a cave behind a waterfall|the cave",
        "in a far away land|the land",
        "on top of a mountain|the mountain",
        "in an old tower|the tower",
        "deep in a dark wood|the wood",
    ],
}
SKILLS = {
    "farm": ["run", "jump over the fence", "sing"],
    "forest": ["climb trees", "run fast", "hide"],
    "pond": ["swim", "jump", "dive"],
    "sea": ["swim", "dive deep", "splash"],
    "wild": ["run fast", "climb", "roar"],
    "air": ["fly", "fly high", "sing"],
    "house": ["run", "play", "jump"],
    "small": ["crawl", "dig", "climb"],
    "people": ["run", "swim", "ride a bike", "sing", "dance"],
    "royal": ["dance", "ride a horse", "swim"],
    "fantasy": ["fly", "sing", "do magic", "dance"],
}

# quality: (what one saw of it, why it helped or hurt; "good" or "bad" or "sad")
QUALITIES = {
    "brave": ("{He} was not afraid of the dark or of loud thunder.", "good"),
    "kind": ("{He} always helped others.", "good"),
    "clever": ("{He} always had a good idea.", "good"),
    "curious": ("{He} wanted to know everything.", "good"),
    "cheerful": ("{He} smiled from morning to night.", "good"),
    "gentle": ("{He} never hurt anyone.", "good"),
    "friendly": ("{He} said hello to everyone.", "good"),
    "helpful": ("{He} liked to help wherever {he} could.", "good"),
    "polite": ("{He} always said please and thank you.", "good"),
    "patient": ("{He} could wait for a very long time.", "good"),
    "honest": ("{He} always told the truth.", "good"),
    "wise": ("Everyone came to {him} with questions.", "good"),
    "hard-working": ("{He} worked from morning to night.", "good"),
    "playful": ("{He} wanted to play all day long.", "good"),
    "generous": ("{He} gave something to everyone.", "good"),
    "strong": ("{He} could carry very heavy things.", "good"),
    "quick": ("Nobody could run as fast as {him}.", "good"),
    "tiny": ("{He} was so small that nobody saw {him}.", "sad"),
    "little": ("{He} was smaller than all the others.", "sad"),
    "big": ("{He} was bigger than all the others.", "good"),
    "old": ("{He} had seen many summers.", "good"),
    "young": ("{He} still had a lot to learn.", "good"),
    "shy": ("{He} did not dare to talk to others.", "sad"),
    "lonely": ("{He} had nobody to play with.", "sad"),
    "sad": ("{He} did not smile very often.", "sad"),
    "timid": ("{He} was afraid of many things.", "sad"),
    "clumsy": ("{He} often fell over {his} own feet.", "sad"),
    "quiet": ("{He} spoke so softly that few could hear {him}.", "sad"),
    "sleepy": ("{He} could fall asleep anywhere.", "sad"),
    "slow": ("{He} was always the last one.", "sad"),
    "hungry": ("{He} thought about food all day.", "sad"),
    "forgetful": ("{He} always forgot where things were.", "sad"),
    "lazy": ("{He} liked to sleep all day.", "bad"),
    "greedy": ("{He} wanted to have everything.", "bad"),
    "selfish": ("{He} never gave anything away.", "bad"),
    "proud": ("{He} thought {he} was better than all the others.", "bad"),
    "grumpy": ("{He} was always in a bad mood.", "bad"),
    "naughty": ("{He} played tricks on everyone.", "bad"),
    "stubborn": ("{He} never listened to others.", "bad"),
    "messy": ("{He} never put {his} things away.", "bad"),
    "impatient": ("{He} could not wait for anything.", "bad"),
    "silly": ("{He} made everyone laugh.", "good"),
    "happy": ("{He} sang a song every morning.", "good"),
    "noisy": ("Everyone could hear {him} from far away.", "bad"),
    "rude": ("{He} never said please or thank you.", "bad"),
    "funny": ("{He} told the best jokes.", "good"),
    "magical": ("{He} could make small stars with {his} breath.", "good"),
    "beautiful": ("Everyone liked to look at {him}.", "good"),
    "careful": ("{He} always looked twice.", "good"),
    "adventurous": ("{He} dreamed of far away places.", "good"),
}

# things by category; each category has phrases for using one ("it")
THINGS = {
    "toy": """ball kite doll teddy_bear spinning_top balloon puppet toy_car toy_train toy_boat hoop yo-yo puzzle marble block toy_robot
        rocking_horse swing skipping_rope bubble_wand dice marionette toy_plane toy_bear seesaw slingshot rattle yarn_ball paper_boat paper_plane snow_globe pinwheel toy_truck jack-in-the-box frisbee stuffed_rabbit card_game""",
    "tool": """key rope ladder hammer shovel bucket basket broom needle brush net wheel stick axe spade rake saw mop sponge hook jar
        bottle box bag sack barrel wheelbarrow pot pan spoon fork cup mug plate bowl kettle teapot comb mirror magnet telescope compass
        clock watch pencil pen crayon button ribbon thread nail screw tent pillow blanket carpet chair stool table bench lock chest
        paintbrush camera map letter envelope stamp coin purse wallet ruler tray candle_holder towel soap_dish cushion curtain parcel ticket lunchbox suitcase statue wallet keyring hourglass anvil fishing_rod feather_duster doormat flowerpot birdhouse beehive thermometer calendar globe medal trophy flag lunch_basket pitcher thermos funnel sieve whisk spatula""",
    "light": "lamp lantern candle torch flashlight night_light",
    "food": """apple cake cookie pear banana orange pie loaf_of_bread carrot pumpkin cherry strawberry melon sandwich pancake muffin
        lollipop piece_of_cheese honey_pot nut egg mango coconut potato tomato peach plum pizza bowl_of_soup jar_of_jam cupcake lemon
        turnip cabbage watermelon pineapple biscuit chocolate_bar candy bun donut pretzel waffle radish cucumber onion raspberry noodle omelette pudding meatball bagel croissant raisin marshmallow corn_cob ice_cream""",
    "wear": "hat scarf coat dress cap crown shirt jacket belt necklace ring bracelet sock glove boot shoe cape apron mask bow sweater mitten slipper earring brooch headband vest pajama_top raincape straw_hat",
    "ride": "boat cart bike wagon sled raft scooter car train truck balloon_basket ship canoe tractor rocket bus plane skateboard tricycle ferry helicopter gondola kayak hot_air_balloon pram sleigh unicycle",
    "nature": """stone shell feather flower seed leaf acorn pearl rose rock pine_cone mushroom pebble crystal star snowflake sunflower
        tulip nest cloud rainbow gem diamond twig petal bean daffodil icicle fossil log cactus dandelion clover coral ruby emerald""",
    "music": "drum bell whistle flute guitar trumpet horn violin piano harp banjo tambourine music_box harmonica xylophone",
    "read": "book diary picture_book storybook notebook newspaper cookbook songbook",
    "shelter": "umbrella parasol",
}
USES = {
    "toy": ["play with it", "show it to {his} friends", "take it everywhere", "play with it all day", "sleep with it next to {him}"],
    "tool": ["use it every day", "keep it clean", "carry it everywhere", "show it to everyone", "take good care of it"],
    "light": ["look at its warm light", "carry it in the evening", "put it in the window", "see it shine"],
    "food": ["smell it", "look at it", "think about how good it would taste", "keep it for a special day"],
    "wear": ["wear it every day", "wear it when the sun was shining", "look at it in the water", "show it to everyone"],
    "ride": ["ride in it", "travel with it", "wash it until it was shiny", "go fast with it", "take {his} friends for a ride"],
    "nature": ["look at it in the sun", "hold it in the light", "look at it for a long time", "keep it in a safe place"],
    "music": ["play it in the evening", "play it for {his} friends", "make music with it", "play happy songs on it"],
    "read": ["look at it before bed", "read it in the evening", "read it to {his} friends", "look at the pictures in it"],
    "shelter": ["walk in the rain with it", "open and close it", "carry it everywhere", "twirl it around"],
}
SPECIAL_USES = {
    "ball": ["bounce it", "kick it across the grass", "roll it down the hill", "throw it high into the air"],
    "kite": ["fly it in the wind", "watch it dance in the sky"],
    "drum": ["beat it loudly", "play boom, boom, boom on it"],
    "bell": ["ring it", "hear it go ding, ding"],
    "whistle": ["blow it", "blow it very loudly"],
    "balloon": ["let it float on its string", "hold it by the string"],
    "doll": ["brush its hair", "sing to it"],
    "swing": ["swing up high on it"],
    "boat": ["sail in it", "row it across the water"],
    "mirror": ["look into it", "make silly faces in it"],
    "telescope": ["look at the stars with it"],
    "key": ["wear it on a string", "wonder what it could open"],
    "map": ["look at it and dream", "plan long trips with it"],
    "sled": ["ride it down the hill"],
    "blanket": ["sleep under it", "cuddle up in it"],
    "pillow": ["rest {his} head on it"],
    "paintbrush": ["paint pictures with it"],
    "crayon": ["draw with it"],
    "camera": ["take pictures with it"],
    "seed": ["dream about what would grow from it"],
    "crown": ["wear it on {his} head"],
    "coin": ["count it again and again"],
    "puzzle": ["solve it again and again"],
    "lollipop": ["look at it", "lick it"],
    "star": ["see it twinkle"],
    "bucket": ["carry water in it"],
    "rope": ["swing on it", "jump over it"],
    "shovel": ["dig holes with it"],
    "basket": ["carry berries in it"],
    "flower": ["smell it"],
    "rose": ["smell it"],
}
COLOURS = "red blue green yellow pink purple orange white black golden silver brown".split()
ADJECTIVES = """big small little tiny shiny old new pretty beautiful magic round special secret strange wooden heavy soft bright striped sparkling colorful giant huge
enormous fancy dusty rusty smooth warm lovely funny""".split()
FOOD_ADJECTIVES = "big small sweet tasty juicy red yellow fresh round delicious huge tiny yummy green golden warm".split()

PLACES = """forest|in the forest;river|by the river;hill|on the hill;garden|in the garden;park|in the park;beach|on the beach;cave|in the cave;
meadow|in the meadow;market|at the market;village|in the village;bridge|on the bridge;lake|by the lake;farm|on the farm;mountain|on the mountain;
island|on the island;castle|in the castle;school|at the school;playground|on the playground;barn|in the barn;attic|in the attic;kitchen|in the kitchen;
library|in the library;train station|at the train station;zoo|at the zoo;desert|in the desert;jungle|in the jungle;field|in the field;well|by the well;
swamp|in the swamp;waterfall|by the waterfall;treehouse|in the treehouse;harbour|at the harbour;windmill|by the windmill;city|in the city;
bakery|at the bakery;toy shop|in the toy shop;tower|in the tower;valley|in the valley;pond|by the pond;moon|on the moon;palace|in the palace;
museum|at the museum;circus|at the circus;hospital|at the hospital;backyard|in the backyard;orchard|in the orchard;ship|on the ship""".replace("\n", "")
PLACE_LIST = [tuple(entry.split("|")) for entry in PLACES.split(";")]

_ONSETS = "b d f g h j k l m n p r s t v w z br dr fl gr kl pl sn st tr th sh ch".split()
_VOWELS = "a e i o u a e i o oo ee".split()
_CODAS = ["", "", "", "n", "l", "r", "m", "x", "s", "t", "k", "p", "nd", "lo"]
_NAME_ENDS = "a i o y ie u ka la na ra lo mo ni to bo li ra rin dor bert lin mir zo".split()


def _blend(rng: random.Random) -> str:
    """The beginning of one listed word and the end of another: unusual, yet pronounceable."""
    first, second = (rng.choice(rng.choice(_BLENDED)).lower().replace("-", "") for _ in range(2))
    return first[: rng.randint(2, 4)] + second[-rng.randint(2, 5) :]


def invented_word(rng: random.Random, n_syllables: int) -> str:
    """A pronounceable word that is (almost surely) in no list, in lower case."""
    if rng.random() < 0.6:
        return _blend(rng)
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(n_syllables)]
    return "".join(parts) + rng.choice(_CODAS)


def invented_name(rng: random.Random) -> str:
    """A pronounceable name that is (almost surely) in no list."""
    if rng.random() < 0.6:
        return _blend(rng).capitalize()
    stem = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice([1, 1, 2])))
    return (stem + rng.choice("b d g k l m n r s t v z".split()) + rng.choice(_NAME_ENDS)).capitalize()


def article(phrase: str) -> str:
    """'a' or 'an' for the phrase that follows."""
    word = phrase.split()[0].lower()
    if word.startswith(("uni", "eu", "one", "use", "uku")):
        return "a"
    return "an" if word[0] in "aeiou" or word.startswith(("hour", "honest")) else "a"


KIND_GROUP: dict[str, str] = {kind.replace("_", " "): group for group, kinds in ANIMALS.items() for kind in kinds}
KIND_GROUP |= dict.fromkeys(PEOPLE, "people") | dict.fromkeys(FANTASY, "fantasy")
KIND_GROUP |= dict.fromkeys(("king", "queen", "prince", "princess", "knight"), "royal")
THING_CATEGORY: dict[str, str] = {thing.replace("_", " "): category for category, things in THINGS.items() for thing in things.split()}

# Capitalised words inside a sentence that name nobody.
NO_NAMES = set(
    """And But Christmas Dad Daddy Grandma Grandpa Granny He Her His I It Mama Miss Mom Mommy Monday Mr Mrs Mum Mummy Once One Papa She Sir So
    Sunday The Then They""".split()
)
# Things of real stories that the composer does not use.
STORY_THINGS = set(
    """beach bed bird bread bug bush cage car cat cave computer couch dance dog door farm fence fire forest fountain game garage garden hill house
    juice lake meat milk monster moon mountain night park party phone picnic picture pond present race radio rain river road salad sandbox sauce
    school sea shop sky slide snow sofa song spoon statue store sun surprise television tooth toy treasure tree truck tunnel wagon water wind
    window zoo""".split()
)
# Things that are more often verbs in real stories.
VERBS = set("""block bow brush lock nail plate play ring saw screw slide stamp train watch""".split())
# Where invented words take their halves from.
_BLENDED = [
    GIRL_NAMES,
    BOY_NAMES,
    PET_NAMES,
    PEOPLE,
    FANTASY,
    COLOURS,
    ADJECTIVES,
    list(QUALITIES),
    sorted(STORY_THINGS),
    [part for thing in THING_CATEGORY for part in thing.split()],
    [kind.split()[0] for kind in KIND_GROUP],
]
