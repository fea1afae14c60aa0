"""The denoiser: a UNet2DConditionModel with SD-1.5's own topology, sixty times narrower.

Three cross-attention stages and a plain one, two layers per block: the same module names and skip connections as
SD-1.5, so that whatever we learn about a unit here carries its name over.  It predicts v (Salimans and Ho 2022,
appendix D), which keeps few-step sampling stable, and is trained with captions dropped one time in ten, for
classifier-free guidance (Ho and Salimans 2022).
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pruning_lib.finetuning.denoising import encode_captions, encode_images, noisy_batch
from pruning_lib.finetuning.loop import FitConfig, fit

from .clip import caption
from .data import EmojiData

__all__ = ["build_scheduler", "build_unet", "encode_captions", "encode_images", "train_unet"]

CAPTION_DROPOUT = 0.1
PLAIN_CAPTIONS = 0.85  # how often a caption is the bare name; else tags follow it
CAPTIONS_EACH = 8  # variants per concept, encoded once before training


def build_unet(channels: tuple[int, ...] = (32, 64, 96, 96)) -> UNet2DConditionModel:
    """Return an untrained denoiser for latents `[b, 4, 16, 16]` and text states `[b, 24, 128]`."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=128,
        norm_num_groups=16,
        # diffusers reads this as the number of heads; every head is 16 to 24 wide.
        attention_head_dim=(2, 4, 4, 4),
    )


def build_scheduler() -> DDIMScheduler:
    """Return SD-1.5's noise schedule with v-prediction, sampled from its noisiest level on.

    Sampling starts from pure noise, so it must start at the level that was trained on the noisiest latents ("trailing",
    Lin et al. 2024, section 3.3); with few steps the usual "leading" spacing starts well below it.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def train_unet(
    data: EmojiData,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    config: FitConfig,
    folder: str | Path,
    batch: int = 32,
) -> UNet2DConditionModel:
    """Train the denoiser on the concepts of `data`; latents and text states are computed once, before.

    Time steps are drawn one from each of `batch` equal slices of the schedule, which lowers the gradient's variance.
    """
    data = data.concepts()
    latents = encode_images(vae, data.images).to(config.device)
    states = _caption_states(data, text_encoder, tokenizer, config.seed).to(config.device)
    nothing = encode_captions(text_encoder, tokenizer, [""]).to(config.device)
    scheduler = build_scheduler()
    torch.manual_seed(config.seed)
    unet = build_unet()

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(latents), (batch,), generator=generator)
        which = torch.randint(CAPTIONS_EACH, (batch,), generator=generator)
        clean, text = latents[index], states[index, which]
        noisy = noisy_batch(scheduler, clean, text, nothing, generator, caption_dropout=CAPTION_DROPOUT)
        return noisy.loss(unet), {}

    return fit(unet, loss, config, folder, "unet")


def _caption_states(data: EmojiData, text_encoder, tokenizer, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    texts = [
        caption(label, tags, generator, plain=PLAIN_CAPTIONS)
        for label, tags in zip(data.labels, data.tags, strict=True)
        for _ in range(CAPTIONS_EACH)
    ]
    states = encode_captions(text_encoder, tokenizer, texts)
    return states.view(len(data.labels), CAPTIONS_EACH, *states.shape[1:])
