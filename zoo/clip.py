"""A mini CLIP: the text tower is the pipeline's text encoder, the image tower is the book's judge.

Both towers are transformers' CLIPModel, trained with the contrastive loss of Radford et al. 2021 (their figure 3) on
emoji of both styles.  The images are shifted, faded, blurred and given noise, so that the judge forgives small flaws.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pruning_lib.finetuning.loop import FitConfig, fit

from .data import EmojiData
from .tokenizer import MAX_TOKENS
from .vae import to_model_range

__all__ = ["build_clip", "caption", "train_clip"]


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained mini CLIP for `tokenizer`: width 128, 3 text and 4 image layers, projection 64."""
    shared = {"hidden_size": 128, "num_attention_heads": 4, "projection_dim": 64, "hidden_act": "quick_gelu"}
    text = {
        **shared,
        "num_hidden_layers": 3,
        "intermediate_size": 512,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "num_hidden_layers": 4, "intermediate_size": 512, "image_size": 64, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def caption(label: str, tags: list[str], generator: torch.Generator, plain: float = 0.6) -> str:
    """Return the label, or (with probability 1 - `plain`) the label and up to three of its tags."""
    if not tags or torch.rand((), generator=generator) < plain:
        return label
    order = torch.randperm(len(tags), generator=generator).tolist()
    count = int(torch.randint(1, 4, (), generator=generator))
    return ", ".join([label, *[tags[i] for i in order[:count]]])


def train_clip(
    data: EmojiData, tokenizer: CLIPTokenizer, config: FitConfig, folder: str | Path, batch: int = 192
) -> CLIPModel:
    """Train so that each image finds its caption among those of the batch, and the other way round.

    A batch holds every label at most once, whatever its style, so that no true pair counts as a wrong one.
    """
    torch.manual_seed(config.seed)
    model = build_clip(tokenizer)
    by_label: dict[str, list[int]] = {}
    for index, label in enumerate(data.labels):
        by_label.setdefault(label, []).append(index)
    groups = list(by_label.values())

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        picked = torch.randperm(len(groups), generator=generator)[:batch].tolist()
        index = [groups[g][int(torch.randint(len(groups[g]), (), generator=generator))] for g in picked]
        texts = [caption(data.labels[i], data.tags[i], generator) for i in index]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").to(config.device)
        images = disturb(to_model_range(data.images[index]), generator).to(config.device)
        out = model(input_ids=tokens.input_ids, pixel_values=images)
        logits, target = out.logits_per_image.float(), torch.arange(len(index), device=config.device)
        value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return value, {"top1": (logits.argmax(1) == target).float().mean().item()}

    return fit(model, loss, config, folder, "clip")


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, fade, blur and add noise to a batch of images in [-1, 1], each image by its own amount."""
    n = len(images)
    size = 1 + 0.15 * (torch.rand(n, generator=generator) * 2 - 1)
    move = (torch.rand(n, 2, generator=generator) * 2 - 1) * 0.12
    grid = torch.zeros(n, 2, 3)
    grid[:, 0, 0] = grid[:, 1, 1] = size
    grid[:, :, 2] = move
    where = F.affine_grid(grid, list(images.shape), align_corners=False)
    moved = F.grid_sample(images - 1, where, align_corners=False) + 1  # minus 1, so that the outside is white
    small = F.interpolate(F.avg_pool2d(moved, 2), scale_factor=2, mode="bilinear")
    blur = torch.rand(n, 1, 1, 1, generator=generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)
    fade = 1 - 0.3 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = 0.15 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    return (((1 - blur) * moved + blur * small - 1) * fade + 1 + noise).clamp(-1, 1)
