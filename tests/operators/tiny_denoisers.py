"""Tiny denoisers of every known family, with random weights, and inputs for them."""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from pruning_lib.denoisers import example_inputs

__all__ = ["DENOISERS", "make", "run"]


def _unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def _plain_unet() -> nn.Module:
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def _resampling_resnets() -> nn.Module:
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        in_channels=4,
        out_channels=4,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )


def _dit() -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    )


def _pixart() -> nn.Module:
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        cross_attention_dim=8,
        caption_channels=6,
        norm_num_groups=4,
        use_additional_conditions=False,
    )


DENOISERS = {
    "unet with text": _unet,
    "unet": _plain_unet,
    "unet with resampling resnets": _resampling_resnets,
    "dit": _dit,
    "pixart": _pixart,
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
