"""The mini CLIP as a judge, real images and captions, new ones to learn, and pictures drawn to be judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from pruning_lib.checks import check_device, check_whole, nearest
from pruning_lib.finetuning.denoising import to_model_range
from pruning_lib.loading import check_complete, check_weights, models_folder
from pruning_lib.quality import Judge, as_bytes, check_unit, clip_score, psnr, ssim
from pruning_lib.sampling import pictures, quietly

HIGHEST_PSNR = 100.0  # decibels; equal pictures would be infinite, and a log with infinities is not JSON


@dataclass(frozen=True)
class MiniCLIP:
    """Both towers of a CLIPModel, in evaluation mode, with the pipeline's tokenizer."""

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
    """Turn PIL images or uint8 `[n, 3, h, w]` into uint8 `[n, 3, 64, 64]`; other sizes are resized with antialiasing.

    No images, or a tensor of another shape or type, are a ValueError.
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
    """Load the judge of model `name`; unknown: a ValueError, damaged weights: a ModelUnavailableError."""
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
    """Return pictures, uint8 `[24, 3, 64, 64]`, and captions that emoji-sd cannot draw yet, from `save_unseen`."""
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


def draw(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 10,
    guidance_scale: float = 3.0,
    batch: int = 16,
) -> Tensor:
    """Draw every prompt from every seed's noise, which is the same for every prompt and every model.

    `pipe` is a text-to-image pipeline; a denoiser in float32 may stand among parts in half precision, as in training. A
    `guidance_scale` of 1 or less is none; `batch` pictures are drawn per call. Returns float32 `[n * m, 3, h, w]` in
    [0, 1] on the CPU: all m seeds of the first of n prompts, then those of the second.
    """
    types = {getattr(part, "dtype", None) for part in pipe.components.values() if isinstance(part, nn.Module)}
    half = types & {torch.float16, torch.bfloat16}
    mixed = half and torch.float32 in types
    prompts, seeds = zip(*((prompt, seed) for prompt in prompts for seed in seeds), strict=True)
    with torch.autocast(pipe.device.type, half.pop()) if mixed else nullcontext():
        return pictures(pipe, prompts, seeds, steps=steps, guidance_scale=guidance_scale, batch=batch)


class PictureValidator:
    """Draws fixed pictures while a model is trained, and says how close they are to those that it drew before pruning.

    What it returns goes into the log, where `FinetuneLog.curve("ssim")` finds it. `reference` are the teacher's
    pictures, `pictures` is step -> what was drawn, `[n * m, 3, h, w]`, if `keep` asks for them.

    Example:
        >>> look = PictureValidator(small, pipe, ["lion", "tomato"], steps=10)
        >>> log = pl.finetune(small, images, captions, steps=200, validate=look, validate_every=50)
        >>> log.curve("ssim")
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        teacher: DiffusionPipeline | Tensor,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] = (0,),
        steps: int = 10,
        guidance_scale: float = 3.0,
        batch: int = 16,
        judge: Judge | None = None,
        keep: bool = False,
    ) -> None:
        """Draw the reference; no prompts or seeds, and pictures of another number, are a ValueError.

        Args:
            pipe: what is trained; it draws with the weights it has when the validator is called.
            teacher: the pipeline before pruning; or its pictures, as `draw` returns them.
            prompts, seeds, steps, guidance_scale, batch: as in `draw`.
            judge: for a CLIP score, as `pb.load_clip()` returns it.
        """
        if isinstance(prompts, str) or not list(prompts):
            raise ValueError(f"prompts={prompts!r}; expected a list of at least one text.")
        if not list(seeds):
            raise ValueError("seeds is empty; give at least one, as in seeds=(0,).")
        check_whole("steps", steps, 1)
        check_whole("batch", batch, 1)
        self.pipe, self.prompts, self.seeds = pipe, list(prompts), list(seeds)
        self.how = {"steps": steps, "guidance_scale": guidance_scale, "batch": batch}
        self.judge, self.keep, self.pictures = judge, keep, {}
        if isinstance(teacher, Tensor):
            self.reference = check_unit(teacher, "teacher").cpu()
        else:
            self.reference = draw(teacher, self.prompts, self.seeds, **self.how)
        wanted = len(self.prompts) * len(self.seeds)
        if len(self.reference) != wanted:
            make = f"{len(self.prompts)} prompts with {len(self.seeds)} seeds make {wanted}"
            raise ValueError(f"teacher holds {len(self.reference)} pictures; {make}.")

    def __call__(self, step: int) -> dict[str, object]:
        """Draw, and return the means over all pictures, and their number, "pictures".

        "ssim" (at most 1), "psnr" (decibels, at most 100 each) and, with a judge, "clip" (0 to 100).  Where the model
        draws NaN the similarities are None, which is what a log can hold.
        """
        drawn = draw(self.pipe, self.prompts, self.seeds, **self.how)
        if self.keep:
            self.pictures[step] = drawn
        figures: dict[str, object] = {"pictures": len(drawn)}
        if not drawn.isfinite().all():
            return {**figures, "ssim": None, "psnr": None}
        figures["ssim"] = ssim(drawn, self.reference).mean().item()
        figures["psnr"] = psnr(drawn, self.reference).clamp(max=HIGHEST_PSNR).mean().item()
        if self.judge is not None:
            texts = [prompt for prompt in self.prompts for _ in self.seeds]
            figures["clip"] = clip_score(self.judge, drawn, texts).mean().item()
        return figures
