"""Tiny denoisers of every family whose operators are known, with random weights, and what they answer."""

from __future__ import annotations

import torch
from small_denoisers import build
from torch import nn

from pruning_lib.denoisers import example_inputs

_LATENTS = {"in_channels": 4, "out_channels": 4}
_RESAMPLING = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
_PIXART = {"cross_attention_dim": 8, "caption_channels": 6, "use_additional_conditions": False}
DENOISERS = {
    "unet with text": ("unet", {"layers_per_block": 2, "cross_attention_dim": 8}),
    "unet": ("unconditional", _LATENTS),
    "unet with resampling resnets": ("unconditional", _LATENTS | _RESAMPLING),
    "dit": ("dit", {"attention_head_dim": 4}),
    "pixart": ("pixart", {"attention_head_dim": 4, **_PIXART}),
}


def make(name: str = "unet with text") -> nn.Module:
    """Build the denoiser `name` with fixed random weights, none of them zero."""
    kind, changes = DENOISERS[name]
    model = build(kind, **changes)
    with torch.no_grad():
        for weight in model.parameters():  # some layers begin at zero, where removing them would show nothing
            weight.add_(0.05 * torch.randn_like(weight))
    return model


@torch.no_grad()
def run(model: nn.Module, batch: int = 2) -> torch.Tensor:
    """Return the output for fixed inputs."""
    return model(**example_inputs(model, batch=batch, device="cpu", tokens=5)).sample
