"""Denoisers so small that they run in milliseconds, one of every family."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import nn

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
TEXT_UNET = {
    **UNET,
    "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 2, "sample_size": 8}
SMALL = {
    "unet": (diffusers.UNet2DConditionModel, TEXT_UNET),
    "sdxl": (
        diffusers.UNet2DConditionModel,
        {
            **TEXT_UNET,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 34,
        },
    ),
    "unconditional": (
        diffusers.UNet2DModel,
        {
            **UNET,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "dit": (diffusers.DiTTransformer2DModel, {**TRANSFORMER, "in_channels": 4, "out_channels": 8, "patch_size": 2}),
    "pixart": (diffusers.PixArtTransformer2DModel, {**TRANSFORMER, "cross_attention_dim": 12, "caption_channels": 10}),
    "sd3": (
        diffusers.SD3Transformer2DModel,
        {
            **TRANSFORMER,
            "joint_attention_dim": 10,
            "caption_projection_dim": 12,
            "pooled_projection_dim": 7,
            "pos_embed_max_size": 8,
        },
    ),
    "flux": (
        diffusers.FluxTransformer2DModel,
        {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 10,
            "pooled_projection_dim": 7,
            "axes_dims_rope": (2, 2, 4),
            "guidance_embeds": True,
        },
    ),
}


def build(name: str, **changes) -> nn.Module:
    """Return a small denoiser with random weights."""
    cls, config = SMALL[name]
    torch.manual_seed(0)
    return cls(**{**config, **changes}).eval()


@pytest.fixture
def unet() -> nn.Module:
    return build("unet")


@pytest.fixture(params=list(SMALL))
def denoiser(request) -> nn.Module:
    """One of every family, in turn."""
    return build(request.param)


@pytest.fixture(scope="session", name="build")
def _build():
    return build
