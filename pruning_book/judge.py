"""The mini CLIP as a judge of images, the real images and captions it is measured against, and new ones to learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from pruning_lib.checks import check_device, nearest
from pruning_lib.finetuning.denoising import to_model_range
from pruning_lib.loading import check_complete, check_weights, models_folder
from pruning_lib.quality import as_bytes
from pruning_lib.sampling import pictures, quietly


@dataclass(frozen=True)
class MiniCLIP:
    """A CLIPModel with its tokenizer.

    Attributes:
        model: both towers, in evaluation mode.
        tokenizer: the pipeline's tokenizer.
    """

    features_name: ClassVar[str] = "mini-CLIP"  # what a Fréchet distance calls them

    model: CLIPModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Return pooled image features `[n, 128]`, before projection: what the Fréchet distance uses."""
        pixels = to_model_range(as_pixels(images)).to(self.model.device)
        return torch.cat([self.model.vision_model(pixel_values=p).pooler_output for p in pixels.split(128)])

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Return unit vectors `[n, 64]`, one per image."""
        return F.normalize(self.model.visual_projection(self.features(images)), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors `[n, 64]`, one per text."""
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        pooled = [self.model.text_model(t.to(self.model.device)).pooler_output for t in tokens.split(256)]
        return F.normalize(self.model.text_projection(torch.cat(pooled)), dim=-1)


def as_pixels(images: Sequence[Image.Image] | Tensor) -> Tensor:
    """Turn PIL images or a uint8 tensor into uint8 `[n, 3, 64, 64]`; other sizes are resized with antialiasing.

    Raises:
        ValueError: no images, or a tensor of another shape or type.
    """
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Expected uint8 [n, 3, h, w], got {images.dtype} {tuple(images.shape)}.")
        if images.shape[-2:] == (64, 64):
            return images
        images = [Image.fromarray(i.permute(1, 2, 0).cpu().numpy()) for i in images]
    if len(images) == 0:
        raise ValueError("No images were given.")
    return as_bytes([i if i.size == (64, 64) else i.convert("RGB").resize((64, 64), Image.BICUBIC) for i in images])


def load_clip(name: str = "emoji-sd", *, device: str = "cpu") -> MiniCLIP:
    """Load the judge that ships with model `name`, in float32.

    Raises:
        ValueError: no such model, or a device that is not there.
        ModelUnavailableError: its weights file is damaged.
    """
    folder = _folder(name) / "clip"
    device = check_device(device)
    stored = check_weights(folder.parent)
    with quietly():
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        check_complete(folder, model, stored.get("clip"))
        return MiniCLIP(model, CLIPTokenizer.from_pretrained(folder.parent / "tokenizer"))


def captions(name: str = "emoji-sd") -> list[str]:
    """Return the captions model `name` was trained on, in the order of `training_images`."""
    return json.loads((_folder(name) / "concepts.json").read_text("utf-8"))["labels"]


def training_images(name: str = "emoji-sd") -> Tensor:
    """Return the real images, uint8 `[n, 3, 64, 64]`, in the order of `captions`."""
    return _tiles(_folder(name) / "training_images.png", len(captions(name)))


def new_concepts(folder: str | Path | None = None) -> tuple[Tensor, list[str]]:
    """Return pictures, uint8 `[24, 3, 64, 64]`, and captions of things that emoji-sd cannot draw yet.

    Args:
        folder: where `save_unseen` wrote them. Default: those that ship with the package.

    Example:
        >>> images, captions = pb.new_concepts()
        >>> finetune(pipe, images, captions, steps=200)
    """
    folder = models_folder() / "unseen" if folder is None else Path(folder)
    names = json.loads((folder / "captions.json").read_text("utf-8"))
    return _tiles(folder / "images.png", len(names)), names


def _folder(name: str) -> Path:
    known = {path.parent.name: path.parent for path in models_folder().glob("*/model_index.json")}
    if name not in known:
        raise ValueError(f"No model {name!r} ships with the package. {nearest(str(name), known)}")
    return known[name]


def _tiles(sheet: Path, count: int) -> Tensor:
    """Return the first pictures of a sheet, row by row, uint8 `[count, 3, 64, 64]`."""
    pixels = torch.from_numpy(np.array(Image.open(sheet).convert("RGB")))
    rows, columns = pixels.shape[0] // 64, pixels.shape[1] // 64
    tiles = pixels.view(rows, 64, columns, 64, 3).permute(0, 2, 4, 1, 3)
    return tiles.reshape(-1, 3, 64, 64)[:count].contiguous()


def generate(
    pipe: DiffusionPipeline,
    prompts: list[str],
    *,
    steps: int = 25,
    guidance: float = 3.0,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Return uint8 `[n, 3, 64, 64]`; image i starts from noise of seed `seed` + i, whatever the batch size."""
    seeds = range(seed, seed + len(prompts))
    return as_pixels(as_bytes(pictures(pipe, prompts, seeds, steps=steps, guidance_scale=guidance, batch=batch)))
