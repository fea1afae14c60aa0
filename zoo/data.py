"""Emoji pictures with their names, from three npm packages: all of them, those emoji-sd learns to draw, and new ones.

Pictures have 64 x 64 pixels over white. Their licences differ from the packages' own (see the model card): Noto Emoji
is Apache-2.0, Twemoji CC-BY 4.0, the names and search words of emojibase MIT.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

PACKAGES = {"emoji-datasource-google": "16.0.0", "emoji-datasource-twitter": "16.0.0", "emojibase-data": "17.0.0"}
STYLES = ("google", "twitter")


@dataclass(frozen=True)
class EmojiData:
    """Every emoji once per style.

    Attributes:
        images: uint8 `[n, 3, 64, 64]`, RGB over white.
        labels: the short name of each image, `n` strings.
        tags: search words of each image, `n` lists.
        style: 0 for Noto (Google), 1 for Twemoji, int64 `[n]`.
        concept: bool `[n]`, True for the Noto images emoji-sd learns to draw.
    """

    images: torch.Tensor
    labels: list[str]
    tags: list[list[str]]
    style: torch.Tensor
    concept: torch.Tensor

    def concepts(self) -> EmojiData:
        """Return only the images the denoiser learns, in a fixed order."""
        keep = self.concept.nonzero().flatten().tolist()
        labels, tags = [self.labels[i] for i in keep], [self.tags[i] for i in keep]
        return EmojiData(self.images[keep], labels, tags, self.style[keep], self.concept[keep])

    def save(self, folder: Path) -> None:
        """Write `data.safetensors` and `data.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"images": self.images, "style": self.style, "concept": self.concept}
        save_file(tensors, folder / "data.safetensors")
        (folder / "data.json").write_text(json.dumps({"labels": self.labels, "tags": self.tags}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> EmojiData:
        """Read what `save` wrote."""
        if not (folder / "data.safetensors").is_file():
            raise FileNotFoundError(f"No prepared data in {folder}. Run `python -m zoo data --out {folder}` first.")
        text = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        return cls(labels=text["labels"], tags=text["tags"], **load_file(folder / "data.safetensors"))


def fetch(folder: Path) -> Path:
    """Install the npm packages below `folder` and return their `node_modules` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("npm") is None:
        wanted = "npm was not found. Install Node.js with npm, or pass --npm-packages with a folder that holds"
        raise RuntimeError(f"{wanted} {', '.join(PACKAGES)}.")
    wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
    command = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("npm could not fetch the emoji packages. It said:\n" + done.stderr.strip()[-800:])
    return folder / "node_modules"


def prepare(node_modules: Path) -> EmojiData:
    """Read images and captions from the folder that holds the three npm packages."""
    words = {e["hexcode"]: e for e in json.loads((node_modules / "emojibase-data/en/data.json").read_text("utf-8"))}
    images, labels, tags, style, concept = [], [], [], [], []
    for code, name in enumerate(STYLES):
        package = node_modules / f"emoji-datasource-{name}"
        for entry in json.loads((package / "emoji.json").read_text("utf-8")):
            word = words.get(entry["unified"]) or words.get(entry["unified"].replace("-FE0F", ""))
            if not entry[f"has_img_{name}"] or entry["category"] in NOT_WIDE or word is None:
                continue
            images.append(_over_white(package / "img" / name / "64" / entry["image"]))
            labels.append(word["label"])
            tags.append(word.get("tags", []))
            style.append(code)
            concept.append(name == "google" and is_concept(entry["subcategory"], word["label"]))
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return EmojiData(stacked, labels, tags, torch.tensor(style), torch.tensor(concept))


def _over_white(path: Path) -> np.ndarray:
    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB").resize((64, 64), Image.LANCZOS))


def contact_sheet(images: torch.Tensor, columns: int, gap: int = 0) -> Image.Image:
    """Lay uint8 images `[n, 3, h, w]` out in rows of `columns`, `gap` white pixels apart."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[y : y + h, x : x + w] = image
    return Image.fromarray(sheet)


# --- which emoji emoji-sd learns to draw, as rules over the subcategories of emoji-datasource
#
# A tiny model on a small budget draws a few hundred things well or a few thousand badly. We keep the first: things a
# reader names at a glance, each with a one- to four-word name, and no near duplicates (one cat, not three; one face of
# the moon, not eight). The autoencoder and the mini CLIP see more, because they profit from variety and cost little.

# Flags, keycaps, arrows, clocks and people come in dozens of lookalikes, or need a skin tone we would have to choose.
NOT_WIDE = ("Flags", "People & Body", "Component", "Symbols")

# Subcategories whose every member is a concept, apart from the names in SKIP.
WHOLE = """
animal-mammal animal-bird animal-reptile animal-amphibian animal-marine animal-bug plant-flower plant-other
food-fruit food-vegetable food-sweet face-smiling face-affection face-tongue face-glasses face-hat face-costume
musical-instrument award-medal
""".split()

# Subcategories from which only the names listed here are taken.
SOME = {
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
SKIP = set(
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


def is_concept(subcategory: str, label: str) -> bool:
    """Say whether the emoji `label` of this subcategory is one that emoji-sd learns to draw."""
    if subcategory in WHOLE:
        return label not in SKIP
    return label in SOME.get(subcategory, "").split("|")


# Plain objects that emoji-sd never learned to draw and that are no near duplicate of a known one, for teaching it
# something new. The autoencoder and the mini CLIP have seen them, in both styles; the denoiser has not.
UNSEEN = tuple(
    "key|bell|mobile phone|pencil|envelope|coin|watch|alarm clock|compass|mirror|window|bed|shopping cart|wheel|tent|"
    "hourglass done|brick|basket|shorts|church|amphora|yarn|package|telephone".split("|")
)


def save_unseen(data: EmojiData, folder: Path) -> None:
    """Write Noto's pictures of UNSEEN, `images.png` and `captions.json`, into `folder`; `new_concepts` reads them."""
    unlearned = ((data.style == 0) & ~data.concept).nonzero().flatten().tolist()
    place = {data.labels[i]: i for i in unlearned}
    if missing := [name for name in UNSEEN if name not in place]:
        raise ValueError(f"The data has no unlearned Noto picture of {', '.join(missing)}.")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = data.images[[place[name] for name in UNSEEN]]
    contact_sheet(pictures, columns=6).save(folder / "images.png", optimize=True)
    (folder / "captions.json").write_text(json.dumps(UNSEEN, indent=0) + "\n", encoding="utf-8")
