"""Denoisers so small that they run in milliseconds, one of every family whose inputs are known."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1}
UNET |= {"norm_num_groups": 4, "attention_head_dim": 4}
TEXT_UNET = {
    **UNET,
    "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
PLAIN_UNET = {
    **UNET,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
EXTRA = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 34}
TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 2, "sample_size": 8}
JOINT = {"joint_attention_dim": 10, "pooled_projection_dim": 7}
FLUX = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
FLUX |= {"axes_dims_rope": (2, 2, 4), "guidance_embeds": True}
SMALL = {
    "unet": ("UNet2DConditionModel", TEXT_UNET),
    "sdxl": ("UNet2DConditionModel", {**TEXT_UNET, **EXTRA}),
    "unconditional": ("UNet2DModel", PLAIN_UNET),
    "dit": ("DiTTransformer2DModel", {**TRANSFORMER, "in_channels": 4, "out_channels": 8, "patch_size": 2}),
    "pixart": ("PixArtTransformer2DModel", {**TRANSFORMER, "cross_attention_dim": 12, "caption_channels": 10}),
    "sd3": ("SD3Transformer2DModel", {**TRANSFORMER, **JOINT, "caption_projection_dim": 12, "pos_embed_max_size": 8}),
    "flux": ("FluxTransformer2DModel", {**FLUX, **JOINT}),
}


def build(name: str = "unet", **changes) -> nn.Module:
    """Return a small denoiser with random weights."""
    kind, config = SMALL[name]
    torch.manual_seed(0)
    return getattr(diffusers, kind)(**{**config, **changes}).eval()
