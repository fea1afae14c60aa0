"""From trained parts to an ordinary diffusers folder: pipeline, judge, captions, real images, half precision."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from .data import EmojiData
from .unet import build_scheduler

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = ["assemble", "check_replaceable", "contact_sheet", "text_encoder_of"]

MAX_BYTES = 25_000_000


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """Return the text tower of `clip` as a model of its own, as Stable Diffusion wants it."""
    encoder = CLIPTextModel(clip.config.text_config)
    weights = clip.text_model.state_dict()
    own = encoder.state_dict()
    # transformers 4 nests the tower under "text_model.", transformers 5 does not
    prefix = "text_model." if any(k.startswith("text_model.") for k in own) else ""
    encoder.load_state_dict({prefix + k: v for k, v in weights.items()})
    return encoder.eval()


def assemble(
    folder: str | Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    data: EmojiData,
    training: dict,
) -> Path:
    """Write the pipeline and what belongs to it into `folder`, replacing what was there in one move.

    Args:
        folder: where; `StableDiffusionPipeline.from_pretrained` reads it.
        unet, vae, clip, tokenizer: the trained parts.
        data: its concepts give the captions and the real images.
        training: configuration and logs of the three runs, stored as `training.json`.

    Raises:
        ValueError: the weights together exceed 25 MB, or `folder` holds something that is no pipeline.
    """
    check_replaceable(folder)
    from diffusers import StableDiffusionPipeline  # here: it prints notes about optional packages

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder_of(clip),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        _save_half(pipe, clip, work)
        _save_tokenizer(tokenizer, work / "tokenizer")
        concepts = data.concepts()
        contact_sheet(concepts.images, columns=22).save(work / "training_images.png", optimize=True)
        text = {"labels": concepts.labels, "tags": concepts.tags}
        (work / "concepts.json").write_text(json.dumps(text, indent=0, ensure_ascii=False) + "\n", "utf-8")
        training = {"concepts": len(concepts.labels), **training}
        (work / "training.json").write_text(json.dumps(training, indent=1) + "\n", "utf-8")
        size = sum(p.stat().st_size for p in work.rglob("*.safetensors"))
        if size > MAX_BYTES:
            raise ValueError(f"The weights take {size / 1e6:.1f} MB, more than the {MAX_BYTES / 1e6:.0f} MB allowed.")
        for extra in ("README.md", "gate.json", "contact_sheet.png"):  # kept from an earlier assembly
            if (folder / extra).is_file():
                shutil.copy2(folder / extra, work / extra)
        os.chmod(work, 0o755)
        if folder.exists():  # moved aside first, so that the old one is whole until the new one stands
            old = work.with_name(work.name + "-old")
            os.replace(folder, old)
            os.replace(work, folder)
            shutil.rmtree(old)
        else:
            os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def check_replaceable(folder: str | Path) -> None:
    """Refuse a place that holds anything but a pipeline: `assemble` would delete it.

    Raises:
        ValueError: it is a file, or a folder with other content.
    """
    folder = Path(folder)
    if not folder.exists() or (folder / "model_index.json").is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()) or folder.resolve() == Path.cwd():
        raise ValueError(
            f"{folder} is there and is no pipeline; it would be replaced. Give a new folder, or one that holds a model."
        )


def contact_sheet(images: Tensor, columns: int, gap: int = 0) -> Image.Image:
    """Lay uint8 images `[n, 3, h, w]` out in rows of `columns`, `gap` white pixels apart."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[y : y + h, x : x + w] = image
    return Image.fromarray(sheet)


def _save_half(pipe: StableDiffusionPipeline, clip: CLIPModel, work: Path) -> None:
    # Copies, so that the caller's models keep their precision.
    parts = {"vae": pipe.vae, "unet": pipe.unet, "text_encoder": pipe.text_encoder, "clip": clip}
    kept = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts.items()}
    try:
        pipe.to(dtype=torch.float16)
        pipe.save_pretrained(work, safe_serialization=True)
        clip.half().save_pretrained(work / "clip", safe_serialization=True)
    finally:
        for name, part in parts.items():
            part.float().load_state_dict(kept[name])
    for config in work.glob("*/config.json"):
        settings = json.loads(config.read_text("utf-8"))
        settings.pop("_name_or_path", None)  # where the part was trained means nothing to who loads it
        if config.parent.name in ("text_encoder", "clip"):
            # transformers loads in the type the config names; the other parts load as float32, and all must agree
            settings.pop("torch_dtype", None)
            settings["dtype"] = "float32"
        if config.parent.name == "text_encoder":
            settings["default_guidance_scale"] = 3.0  # `pruning_lib`'s commands guide this much; see its `loading`
        config.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Add the two files that transformers 4 reads; transformers 5 writes only `tokenizer.json`."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", "utf-8")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
