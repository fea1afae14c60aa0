"""What chapter 4 draws and measures: the same captions and noise for every mask, and the sparsity explorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["GUIDANCE", "INERT", "MODEL", "SCOPES", "STEPS", "STOPS", "draw", "spread_captions"]

MODEL = "emoji-sd"
STEPS, GUIDANCE = 25, 3.0
STOPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SCOPES = ("global", "layer", "sensitivity", "random")
INERT = (
    "mid_block",
    "down_blocks.3",
)  # blocks that emoji-sd draws without; `sparsity_curve` measures that it does
FIRST_SEED = 1000
BATCH = 16  # pictures drawn at once: what a processor's cache holds


def spread_captions(captions: Sequence[str], n: int) -> list[str]:
    """Return the first n of all captions in an order that is shuffled once and for all.

    Args:
        captions: as `pl.captions` returns them.
        n: how many, at most all.
    """
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))
    return [captions[i] for i in order[:n].tolist()]


@torch.no_grad()
def draw(
    pipe: Any, prompts: Sequence[str], *, first: int = 0, steps: int = STEPS, guidance: float = GUIDANCE
) -> tuple[Tensor, Tensor]:
    """Return pictures and their latents; picture i always starts from the noise of seed 1000 + first + i.

    Args:
        pipe: a StableDiffusionPipeline, pruned or not.
        prompts: n captions.
        first: place of the first one in the whole list.
        steps, guidance: of the sampler.

    Returns:
        Floats in [0, 1], `[n, 3, h, w]`, and latents `[n, 4, h, w]` before decoding, both on the CPU.
    """
    found = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        noise = [torch.Generator().manual_seed(FIRST_SEED + first + start + i) for i in range(len(part))]
        options = dict(
            num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="latent"
        )
        found.append(pipe(part, **options).images)
    latents = torch.cat(found)
    return decode(pipe, latents), latents.cpu()


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Return the pictures of latents, floats in [0, 1] on the CPU."""
    parts = []
    for part in latents.to(pipe.vae.device, pipe.vae.dtype).split(BATCH):
        decoded = pipe.vae.decode(part / pipe.vae.config.scaling_factor).sample
        parts.append((decoded.float() / 2 + 0.5).clamp(0, 1).cpu())
    return torch.cat(parts)
