"""The first half of Stable Diffusion in miniature: an autoencoder from 64×64×3 pixels to 16×16×4 latents.

It is diffusers' AutoencoderKL (Kingma and Welling 2014; Rombach et al. 2022, section 3.1) with two stages fewer than
SD's and no attention.  The loss is pixel error plus a small pull of the latents towards a unit Gaussian; there is no
adversarial term, because flat emoji do not need invented texture.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from pruning_lib.finetuning.denoising import to_model_range
from pruning_lib.finetuning.loop import FitConfig, fit

from .data import EmojiData

__all__ = ["build_vae", "latent_scale", "to_model_range", "train_vae"]

KL_WEIGHT = 1e-4


def build_vae(channels: tuple[int, ...] = (16, 32, 64)) -> AutoencoderKL:
    """Return an untrained autoencoder; each channel count after the first halves the resolution."""
    stages = len(channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        layers_per_block=1,
        norm_num_groups=min(16, channels[0]),
        mid_block_add_attention=False,
    )


def train_vae(data: EmojiData, config: FitConfig, folder: str | Path, batch: int = 32) -> AutoencoderKL:
    """Train on every image of `data` in both styles, with small shifts and mirror images.

    Returns:
        The autoencoder with `config.scaling_factor` set to 1/std of its latents.
    """
    torch.manual_seed(config.seed)
    vae = build_vae()

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(data.labels), (batch,), generator=generator)
        x = to_model_range(_shift_and_flip(data.images[index], generator)).to(config.device)
        latent = vae.encode(x).latent_dist
        noise = torch.randn(latent.mean.shape, generator=generator).to(x.device)
        out = vae.decode(latent.mean + latent.std * noise).sample.float()
        mse, kl = F.mse_loss(out, x), 0.5 * (latent.mean**2 + latent.var - 1 - latent.logvar).mean()
        return mse + 0.05 * F.l1_loss(out, x) + KL_WEIGHT * kl, {"mse": mse.item(), "kl": kl.item()}

    vae = fit(vae, loss, config, folder, "vae")
    vae.register_to_config(scaling_factor=latent_scale(vae, data))
    return vae


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, data: EmojiData) -> float:
    """Return 1/std of the latents of the concept images, so that the denoiser sees unit variance."""
    images = data.concepts().images
    latents = [vae.encode(to_model_range(part).to(vae.device)).latent_dist.mean for part in images.split(64)]
    return round(1 / torch.cat(latents).std().item(), 5)


def _shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    dy, dx = (torch.randint(-4, 5, (2,), generator=generator)).tolist()
    images = images.roll((dy, dx), dims=(-2, -1))  # the border is white, so rolling is shifting
    mirror = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)
