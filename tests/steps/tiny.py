"""Small pipelines for the tests of schedules, and their grids."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import torch

from pruning_book.stand_in import stand_in
from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.schedule import Grid, grid_of, timesteps_of
from pruning_lib.steps.units import structure_of

_made = functools.cache(stand_in)
_traced: dict[tuple[str, str], Grid] = {}


def tiny(name: str = "sd-1.5"):
    """Return a narrow pipeline with the structure of a published model and random weights."""
    scale, size = (0.1, 16) if "dit" in name else (0.03, 8)
    return copy.deepcopy(_made(name, scale=scale, sample_size=size))


def laid_out(pipe, steps: int, grain: str = "layers") -> Grid:
    """Return what `grid_of` does, but trace each structure once only: that takes as long as five pictures."""
    key = structure_of(denoiser_of(pipe)[1]), grain
    if key not in _traced:
        _traced[key] = grid_of(pipe, steps, grain)
    times = timesteps_of(pipe, steps)
    return replace(_traced[key], scheduler=type(pipe.scheduler).__name__, steps=steps, timesteps=times)


def by_chance(grid: Grid, share: float = 0.5, seed: int = 0) -> torch.Tensor:
    """Return a table of about this share of the cells, the first call whole."""
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) < share
    on[0] = True
    return on


def latents(pipe, *, steps: int = 4, batch: int = 1, guidance: float = 3.0):
    """Return the latents that a text pipeline draws."""
    noise = [torch.Generator().manual_seed(i) for i in range(batch)]
    how = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": noise, "output_type": "latent"}
    return pipe(["lion", "pizza"][:batch], **how).images
