"""Which emoji emoji-sd learns to draw, as rules over the subcategories of emoji-datasource.

A tiny model on a small budget draws a few hundred things well or a few thousand badly.  We keep the first: things a
reader names at a glance, each with a one- to four-word name, and no near duplicates (one cat, not three; one face of
the moon, not eight).  The VAE and the mini CLIP see the wider set, because they profit from variety and cost little.
"""

from __future__ import annotations

import re

__all__ = ["is_concept", "is_wide"]

# Subcategories whose every member is a concept, apart from the names in _SKIP.
_WHOLE = """
animal-mammal animal-bird animal-reptile animal-amphibian animal-marine animal-bug plant-flower plant-other
food-fruit food-vegetable food-sweet face-smiling face-affection face-tongue face-glasses face-hat face-costume
musical-instrument award-medal
""".split()

# Subcategories from which only the names listed here are taken.
_SOME = {
    "food-prepared": "hot dog|taco|hamburger|pizza|poultry leg|bread|french fries|cooking|popcorn|croissant|bacon|"
    "pancakes|pretzel|sandwich|cheese wedge|waffle|egg",
    "food-asian": "rice ball|spaghetti|dango|sushi|fried shrimp|fortune cookie|steaming bowl",
    "drink": "wine glass|cocktail glass|tropical drink|beer mug|glass of milk|bubble tea|teapot|hot beverage|mate",
    "sky & weather": "rainbow|full moon|crescent moon|sun with face|glowing star|star|cloud with rain|tornado|fire|"
    "droplet|ringed planet|sun|cloud|umbrella with rain drops|snowman|high voltage|snowflake|comet|umbrella|"
    "cloud with lightning|water wave",
    "face-neutral-skeptical": "smirking face|neutral face|grimacing face|zipper-mouth face|lying face|unamused face",
    "face-hand": "thinking face|shushing face",
    "face-sleepy": "sleeping face|pensive face|drooling face",
    "face-unwell": "face with medical mask|nauseated face|exploding head|hot face|cold face|face with head-bandage",
    "face-concerned": "crying face|loudly crying face|flushed face|frowning face|astonished face|"
    "face screaming in fear|yawning face|pleading face",
    "face-negative": "skull|angry face|enraged face|smiling face with horns|face with symbols on mouth",
    "cat-face": "grinning cat|smiling cat with heart-eyes|crying cat",
    "heart": "red heart|blue heart|green heart|yellow heart|purple heart|orange heart|black heart|pink heart|"
    "broken heart|heart with arrow|heart on fire|sparkling heart|heart with ribbon|love letter",
    "transport-ground": "motorcycle|racing car|locomotive|bus|ambulance|fire engine|police car|taxi|automobile|"
    "delivery truck|tractor|bicycle|stop sign|kick scooter|motor scooter|skateboard|pickup truck|fuel pump|"
    "high-speed train|vertical traffic light|police car light|construction",
    "transport-air": "rocket|helicopter|airplane|flying saucer|parachute|satellite",
    "transport-water": "ship|speedboat|sailboat|canoe|anchor|ring buoy",
    "sport": "tennis|basketball|american football|volleyball|soccer ball|baseball|boxing glove|bowling|"
    "martial arts uniform|ice skate|ping pong|badminton|flag in hole|skis",
    "game": "video game|bullseye|pool 8 ball|game die|crystal ball|puzzle piece|teddy bear|kite|mirror ball|"
    "joystick|slot machine|nesting dolls",
    "event": "wrapped gift|jack-o-lantern|Christmas tree|balloon|party popper|ribbon|red envelope",
    "place-building": "house|castle|school|hospital|factory|Tokyo tower|Statue of Liberty",
    "place-geographic": "volcano|mountain|camping|desert island|mount fuji",
    "clothing": "graduation cap|top hat|crown|glasses|necktie|t-shirt|jeans|dress|bikini|handbag|running shoe|"
    "high-heeled shoe|lipstick|ring|gem stone|backpack|billed cap|socks|scarf",
    "tool": "bomb|wrench|hammer|shield|magnet|axe|screwdriver|ladder|gear|crossed swords|toolbox",
    "household": "door|toilet|bathtub|broom|bucket|soap|chair",
    "science": "microscope|telescope|test tube|dna",
    "light & video": "light bulb|camera|television|candle|flashlight|film projector",
    "computer": "laptop|floppy disk|battery|printer|optical disk",
    "music": "headphone|radio|musical note|studio microphone",
    "office": "briefcase|scissors|paperclip|calendar|pushpin|bar chart|clipboard",
}

# Near duplicates of a concept that stays, or too busy to read at 64 pixels.
_SKIP = set(
    """ox|goat|ewe|service dog|guide dog|cat|dog|cow|pig nose|pig|water buffalo|bison|chicken|baby chick|
front-facing baby chick|black bird|feather|wing|goose|boar|dragon face|whale|oyster|spider web|microbe|cricket|fly|
rosette|blossom|white flower|leaf fluttering in wind|nest with eggs|empty nest|leafless tree|sheaf of rice|
fallen leaf|green apple|melon|brown mushroom|beans|root vegetable|kissing face with smiling eyes|
kissing face with closed eyes|smiling face|smiling face with tear|grinning face with smiling eyes|
smiling face with smiling eyes|rolling on the floor laughing|2nd place medal|3rd place medal|poodle|
two-hump camel|squinting face with tongue|custard|shaved ice|horse|monkey|rat|mouse|tiger|rabbit|shamrock""".replace(
        "\n", ""
    ).split("|")
)

_LISTED = {sub: set(names.split("|")) for sub, names in _SOME.items()}

# Flags, keycaps, arrows, clocks and people come in dozens of lookalikes, or need a skin tone we would have to choose.
_NOT_WIDE = re.compile(r"^(Flags|People & Body|Component|Symbols)$")


def is_wide(category: str) -> bool:
    """Say whether an emoji of this category trains the VAE and the mini CLIP."""
    return not _NOT_WIDE.match(category)


def is_concept(subcategory: str, label: str) -> bool:
    """Say whether the emoji `label` of this subcategory is one that emoji-sd learns to draw."""
    if subcategory in _WHOLE:
        return label not in _SKIP
    return label in _LISTED.get(subcategory, ())
