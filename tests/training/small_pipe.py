"""emoji-sd with a very small denoiser, so that a step of training costs nothing, and four images to train on."""

from __future__ import annotations

import copy

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from small_denoisers import TEXT_UNET

import pruning_book as pb
import pruning_lib as pl

IMAGES, CAPTIONS = pb.training_images()[:4], pb.captions()[:4]


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    sizes = {"sample_size": 16, "layers_per_block": 2, "cross_attention_dim": 128, "attention_head_dim": 2}
    return UNet2DConditionModel(**{**TEXT_UNET, **sizes})


def with_unet(pipe: StableDiffusionPipeline, unet: torch.nn.Module) -> StableDiffusionPipeline:
    """Return a pipeline that shares all parts but the denoiser."""
    return StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)


def small_pipe() -> StableDiffusionPipeline:
    return with_unet(pl.load("emoji-sd"), small_unet())


def copy_of(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    return with_unet(pipe, copy.deepcopy(pipe.unet))
