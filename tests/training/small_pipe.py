"""emoji-sd with a very small denoiser, so that a step of training costs nothing."""

from __future__ import annotations

import copy

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        norm_num_groups=4,
        attention_head_dim=2,
    )


def with_unet(pipe: StableDiffusionPipeline, unet: torch.nn.Module) -> StableDiffusionPipeline:
    """Return a pipeline that shares all parts but the denoiser."""
    return StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)


def copy_of(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    return with_unet(pipe, copy.deepcopy(pipe.unet))
