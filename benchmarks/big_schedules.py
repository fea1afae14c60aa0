"""Record of chapter 15: what schedules cost on the papers' models, counted on structures without weights.

Four models at the step counts of DiP-GO's tables, and the schedule that its authors published for Stable Diffusion 1.5.
Nothing is run but shapes, so the numbers are exact; about two minutes on one CPU core.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

import pruning_lib as pl
from pruning_book.activation_memory import backward_bytes, kept_for_backward
from pruning_book.stand_in import stand_in
from pruning_lib.denoisers import denoiser_of, example_inputs, meta_copy
from pruning_lib.steps.budget import deepcache, uniform
from pruning_lib.steps.schedule import Grid, grid_of
from pruning_lib.steps.units import GRAINS, Control, attach, units_of

from .common import Record

# model -> numbers of steps; the paper reports SD-2.1 at ratios against 50 and 20 steps
MODELS = {"sd-1.5": (50,), "sd-2.1": (50, 20), "dit-xl-2-256": (250,), "pixart-alpha": (20,)}
RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # shares of MACs removed
# The authors' schedule for SD-1.5 with 0.8 removed: steps at which their nine blocks are computed. At step 7 one block
# differs; we do not know which, so every choice is counted.
PUBLISHED_ROWS, PUBLISHED_STEPS, ODD_ROW = (0, 7, 13, 19, 20, 21, 26, 32, 39, 48), 50, 7
# What the papers report; seconds are theirs, on their machines.
SD15 = {"times_as_fast": 4.4, "removed": 0.8, "seconds_at": {"0.3": 5.01, "0.8": 1.23}, "steps": 50}
REPORTED = {
    "sd-1.5": {**SD15, "macs_without_attention": 338.83e9},
    "dit-xl-2-256": {"times_as_fast": 2.4, "removed": 0.6, "steps": 250},
    "deepcache sd-1.5": {"times_as_fast": 2.3},
}
SIDES = {"sd-1.5": (64, 48, 32)}  # latents that memory is counted at; default: the published one
BATCH = 2  # guidance
# of Stable Diffusion 1.x, as published
AUTOENCODER = {
    **{"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4},
    **{"layers_per_block": 2, "norm_num_groups": 32, "sample_size": 512},
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def pipe_on_meta(name: str):
    """Return a pipeline of the right class whose denoiser has the published size and no weights."""
    pipe = stand_in(name)
    setattr(pipe, denoiser_of(pipe)[0], pl.denoiser_on_meta(name))
    return pipe


def rows_of(grid: Grid) -> list[dict]:
    """Count simple schedules at every ratio; those that a grid has no room for are left out."""
    rows = []
    for removed in RATIOS:
        for kind, make in {"uniform": uniform, "deepcache": deepcache}.items():
            try:
                found = cost_of(grid, make(grid, keep_macs=round(1 - removed, 6)).on)
            except (ValueError, TypeError) as error:
                found = {"refused": str(error)}
            rows.append({"kind": kind, "removed": removed, **found})
    return rows


def cost_of(grid: Grid, on: torch.Tensor) -> dict:
    """Count a table in both conventions."""
    kept = {"keep_macs": grid.macs_ratio(on), "keep_macs_without_attention": grid.macs_ratio(on, attention=False)}
    macs = {"macs": grid.macs_of(on), "macs_without_attention": grid.macs_of(on, attention=False)}
    return {**kept, **macs, "calls": int(grid.calls(on).sum()), "cells": int(grid.live(on).sum())}


def grains_of(pipe, steps: int) -> dict[str, dict]:
    """Describe the units at each grain, and the least that any schedule keeps."""
    found = {}
    for grain in GRAINS:
        grid = grid_of(pipe, steps, grain)
        first = torch.zeros(grid.shape, dtype=torch.bool)
        first[0] = True
        found[grain] = {
            "units": grid.shape[1],
            "calls": grid.shape[0],
            "base_macs": grid.base_macs,
            "output_reads_input": grid.wiring.output_reads_input,
            "dearest": grid.names[max(range(len(grid.macs)), key=grid.macs.__getitem__)],
            "dearest_share": max(grid.macs) / (sum(grid.macs) + grid.base_macs),
            "least": {"with": grid.macs_ratio(first), "without": grid.macs_ratio(first, attention=False)},
        }
    return found


def published() -> dict:
    """Count the authors' schedule at their grain of nine blocks."""
    grid = grid_of(pipe_on_meta("sd-1.5"), PUBLISHED_STEPS, "blocks")
    on = torch.zeros(grid.shape, dtype=torch.bool)
    on[list(PUBLISHED_ROWS)] = True
    odd = []
    for index, name in enumerate(grid.names):
        on[ODD_ROW, index] = False
        odd.append({"off": name, **cost_of(grid, on)})
        on[ODD_ROW, index] = True
    about = {"names": list(grid.names), "rows": list(PUBLISHED_ROWS), "steps": PUBLISHED_STEPS}
    return {**about, **cost_of(grid, on), "odd": odd}


class _Sizes(Control):
    """Adds up the bytes of what is cached."""

    def __init__(self):
        self.bytes = 0

    def unit(self, index, compute):
        values = compute()
        self.bytes += sum(value.nbytes for value in values)
        return values


def cache_bytes(denoiser: nn.Module, side: int) -> int:
    """Return the bytes of one step's caches, in half precision."""
    copy, sizes = nn.Module.to(meta_copy(denoiser), torch.float16), _Sizes()
    inputs = example_inputs(copy, sample_size=side, batch=BATCH, dtype=torch.float16)
    with torch.no_grad(), attach(copy, units_of(copy), sizes):
        copy(**inputs)
    return sizes.bytes


def memory_of(name: str) -> list[dict]:
    """Count what a training step keeps: weights, caches of one step, activations of one call."""
    denoiser, rows = pl.denoiser_on_meta(name), []
    for side in SIDES.get(name, (denoiser.config.sample_size,)):
        how = {"sample_size": side, "batch": BATCH}
        row = {**how, "dtype": "float16", "weights": 2 * sum(p.numel() for p in denoiser.parameters())}
        row |= {"caches": cache_bytes(denoiser, side), "call": backward_bytes(denoiser, **how)}
        rows.append({**row, "call_checkpointed": backward_bytes(denoiser, **how, checkpointing=True)})
    return rows


def decoding_bytes(vae: nn.Module, side: int) -> int:
    """Count what decoding one latent keeps for its gradient; `vae` has its type and no weights."""
    latent = torch.empty(1, 4, side, side, device="meta", dtype=vae.dtype, requires_grad=True)
    return kept_for_backward(lambda: vae.decode(latent), vae.parameters())


def decoding(side: int, checkpointing: bool) -> dict:
    """Count what decoding one latent costs: MACs, and the bytes kept for its gradient, in half precision."""
    with torch.device("meta"):
        vae = nn.Module.to(AutoencoderKL.from_config(AUTOENCODER), torch.float16).requires_grad_(False)
    vae.train(checkpointing)
    if checkpointing:
        vae.enable_gradient_checkpointing()
    kept = decoding_bytes(vae, side)
    decoder = nn.Sequential(vae.post_quant_conv, vae.decoder).float().eval()
    macs = pl.count_macs(decoder, input=torch.empty(1, 4, side, side)).macs
    weights = 2 * sum(p.numel() for p in vae.parameters())
    about = {"sample_size": side, "checkpointing": checkpointing}
    return {**about, "kept": kept, "macs": macs, "weights": weights}


def measure() -> Record:
    """Count everything."""
    models = []
    for name, counts in MODELS.items():
        pipe = pipe_on_meta(name)
        denoiser = denoiser_of(pipe)[1]
        whole = pl.count_macs(denoiser)
        size = {"sample_size": denoiser.config.sample_size, "params": whole.params, "macs": whole.macs}
        size["macs_without_attention"] = whole.macs_without_attention
        for steps in counts:
            grid = grid_of(pipe, steps)
            about = {"name": name, "steps": steps, "calls": grid.shape[0], "scheduler": grid.scheduler, **size}
            counted = {"grains": grains_of(pipe, steps), "schedules": rows_of(grid)}
            models.append({**about, **counted, "memory": memory_of(name) if steps == counts[0] else None})
    decoded = [decoding(side, again) for side in SIDES["sd-1.5"] for again in (False, True)]
    data = {"models": models, "published": published(), "reported": REPORTED, "decoding": decoded}
    return Record(data, seeds=[], n=len(models))
