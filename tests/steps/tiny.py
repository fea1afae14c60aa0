"""Small pipelines for the tests of schedules."""

from __future__ import annotations

import torch

from pruning_book.stand_in import stand_in


def tiny(name: str = "sd-1.5"):
    """Return a narrow pipeline with the structure of a published model and random weights."""
    return stand_in(name, scale=0.1, sample_size=8 if "dit" not in name else 16)


def latents(pipe, *, steps: int = 4, batch: int = 1, seed: int = 0, guidance: float = 3.0, **more):
    """Return the latents that a text pipeline draws."""
    noise = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
    prompts = ["lion", "pizza", "red heart", "cat face"][:batch]
    return pipe(
        prompts, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="latent", **more
    ).images
