"""Emoji images and their captions, from two npm packages, as tensors ready for training.

`fetch` asks the ordinary npm client for the packages; `prepare` turns their folders into one `EmojiData`.
Images are 64×64 pixels over white.  The image licences differ from the packages' own (see the model card):
Noto Emoji is Apache-2.0, Twemoji CC-BY 4.0, the captions and tags of emojibase MIT.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .concepts import is_concept, is_wide

__all__ = ["EmojiData", "PACKAGES", "fetch", "prepare"]

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
        keep = self.concept.nonzero().flatten()
        at = keep.tolist()
        return EmojiData(
            self.images[keep],
            [self.labels[i] for i in at],
            [self.tags[i] for i in at],
            self.style[keep],
            self.concept[keep],
        )

    def save(self, folder: str | Path) -> None:
        """Write `data.safetensors` and `data.json` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"images": self.images, "style": self.style, "concept": self.concept}
        save_file(tensors, folder / "data.safetensors")
        (folder / "data.json").write_text(json.dumps({"labels": self.labels, "tags": self.tags}), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> EmojiData:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder has not been prepared.
            ValueError: its files are damaged.
        """
        folder = Path(folder)
        if not (folder / "data.safetensors").is_file():
            raise FileNotFoundError(
                f"No prepared data in {folder}. Run `python -m zoo data --out {folder}` first."
            )
        try:
            text = json.loads((folder / "data.json").read_text(encoding="utf-8"))
            return cls(labels=text["labels"], tags=text["tags"], **load_file(folder / "data.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"The prepared data in {folder} is damaged: {error}. "
                f"Run `python -m zoo data --out {folder}` again."
            ) from error


def fetch(folder: str | Path) -> Path:
    """Install the npm packages below `folder` and return their `node_modules` folder.

    Raises:
        RuntimeError: npm is missing, or it failed; the message carries npm's own words.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "npm was not found. Install Node.js with npm, or pass --npm-packages with a folder that holds "
            + ", ".join(PACKAGES)
            + "."
        )
    wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
    command = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("npm could not fetch the emoji packages. It said:\n" + done.stderr.strip()[-800:])
    return folder / "node_modules"


def prepare(node_modules: str | Path) -> EmojiData:
    """Read images and captions from the npm packages.

    Args:
        node_modules: the folder that holds the three packages of `PACKAGES`.

    Raises:
        FileNotFoundError: a package is missing; the message names it.
    """
    node_modules = Path(node_modules)
    missing = [name for name in PACKAGES if not (node_modules / name / "package.json").is_file()]
    if missing:
        raise FileNotFoundError(f"{node_modules} lacks {', '.join(missing)}. Fetch them with npm, or let us do it.")
    words = {e["hexcode"]: e for e in json.loads((node_modules / "emojibase-data/en/data.json").read_text("utf-8"))}
    images, labels, tags, style, concept = [], [], [], [], []
    for code, name in enumerate(STYLES):
        package = node_modules / f"emoji-datasource-{name}"
        for entry in json.loads((package / "emoji.json").read_text("utf-8")):
            if not entry[f"has_img_{name}"] or not is_wide(entry["category"]):
                continue
            word = words.get(entry["unified"]) or words.get(entry["unified"].replace("-FE0F", ""))
            if word is None:
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
