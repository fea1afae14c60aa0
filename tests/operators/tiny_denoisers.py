"""Tiny denoisers of every known family, with random weights, and inputs for them."""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from pruning_lib.denoisers import example_inputs

_UNET = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}
_PLAIN = {**_UNET, "layers_per_block": 1, "in_channels": 4, "out_channels": 4}
_TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "out_channels": 8}
_TRANSFORMER |= {"num_layers": 2, "sample_size": 8, "norm_num_groups": 4}

DENOISERS = {
    "unet with text": lambda: UNet2DConditionModel(
        layers_per_block=2,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **_UNET,
    ),
    "unet": lambda: UNet2DModel(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), **_PLAIN
    ),
    "unet with resampling resnets": lambda: UNet2DModel(
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        **_PLAIN,
    ),
    "dit": lambda: DiTTransformer2DModel(num_embeds_ada_norm=1000, **_TRANSFORMER),  # class 1000 is "no class"
    "pixart": lambda: PixArtTransformer2DModel(
        cross_attention_dim=8, caption_channels=6, use_additional_conditions=False, **_TRANSFORMER
    ),
}


def make(name: str = "unet with text", seed: int = 0) -> nn.Module:
    """Build the denoiser `name` with fixed random weights, none of them zero."""
    torch.manual_seed(seed)
    model = DENOISERS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():  # some layers begin at zero, where removing them would show nothing
            weight.add_(0.05 * torch.randn_like(weight))
    return model


@torch.no_grad()
def run(model: nn.Module, batch: int = 2) -> torch.Tensor:
    """Return the output for fixed inputs."""
    return model(**example_inputs(model, batch=batch, device="cpu", tokens=5)).sample
