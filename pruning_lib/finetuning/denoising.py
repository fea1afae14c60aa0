"""The denoising objective, and what it is computed from: latents of images and text states of captions.

Ho et al. 2020, Eq. 14: noise a clean latent to a random level, ask the denoiser, and compare with what it predicts: the
noise ("epsilon"), the clean latent ("sample"), or v = alpha noise - sigma clean (Salimans and Ho 2022, appendix D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..quality import with_texts

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer


def to_model_range(images: Tensor) -> Tensor:
    """Map uint8 `[..., h, w]` in 0..255 to float in [-1, 1], the range every diffusers VAE expects."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return scaled latents `[n, c, h/f, w/f]` of uint8 images `[n, 3, h, w]`, the mean of each distribution."""
    parts = [vae.encode(to_model_range(x).to(vae.device, vae.dtype)).latent_dist.mean for x in images.split(64)]
    return torch.cat(parts) * vae.config.scaling_factor


@torch.no_grad()
def encode_captions(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return the text states `[n, tokens, d]` the denoiser attends to."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return torch.cat([text_encoder(t.to(text_encoder.device))[0] for t in tokens.split(256)])


def noise_schedule(scheduler: SchedulerMixin) -> DDPMScheduler:
    """Return the noise levels of `scheduler` in the form that training needs, whatever the sampler is."""
    name = type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{name} has no alphas_cumprod, so it is no schedule of noise levels. "
            "Give the pipeline one that has, such as DDIMScheduler or DPMSolverMultistepScheduler."
        )
    schedule = DDPMScheduler.from_config(scheduler.config)
    kind = schedule.config.prediction_type
    if kind not in _TARGETS:
        raise ValueError(f"prediction_type={kind!r} of {name}; known: {', '.join(map(repr, _TARGETS))}.")
    return schedule


_TARGETS = {
    "epsilon": lambda schedule, clean, noise, t: noise,
    "sample": lambda schedule, clean, noise, t: clean,
    "v_prediction": lambda schedule, clean, noise, t: schedule.get_velocity(clean, noise, t),
}


@dataclass(frozen=True)
class NoisyBatch:
    """What a denoiser is shown, and what it should answer.

    Attributes:
        noisy: latents `[b, c, h, w]` with noise.
        timesteps: int64 `[b]`.
        text: text states `[b, tokens, d]`, some of them those of the empty caption.
        target: what the denoiser should predict, as `noisy`.
    """

    noisy: Tensor
    timesteps: Tensor
    text: Tensor
    target: Tensor

    def share(self, rank: int, count: int) -> NoisyBatch:
        """Return every `count`-th sample, from number `rank` on: the shares of all ranks make up the batch."""
        return NoisyBatch(*(part[rank::count] for part in vars(self).values()))

    def predict(self, denoiser: nn.Module) -> Tensor:
        """Return what `denoiser` answers, float32 `[b, c, h, w]`; it is called in the type of its weights."""
        kind = next(denoiser.parameters()).dtype
        return denoiser(self.noisy.to(kind), self.timesteps, self.text.to(kind)).sample.float()

    def loss(self, denoiser: nn.Module) -> Tensor:
        """Return the mean squared error of its answer, with gradients."""
        return F.mse_loss(self.predict(denoiser), self.target)


def noisy_batch(
    schedule: SchedulerMixin,
    clean: Tensor,
    text: Tensor,
    nothing: Tensor,
    generator: torch.Generator,
    *,
    caption_dropout: float = 0.1,
    timesteps: Tensor | None = None,
) -> NoisyBatch:
    """Add noise to clean latents and leave out some captions.

    Args:
        schedule: with `add_noise` and `get_velocity`, as `noise_schedule` returns it.
        clean: latents `[b, c, h, w]`, on the denoiser's device.
        text: text states `[b, tokens, d]`.
        nothing: the states of the empty caption, `[1, tokens, d]`.
        generator: on the CPU; draws the dropped captions, the timesteps and the noise, in this order. One timestep
            comes from each of b equal slices of the levels, so the gradient varies less than with independent draws.
        caption_dropout: share of captions replaced by `nothing`, in [0, 1], for guidance (Ho and Salimans 2022).
        timesteps: int64 `[b]`, replaces the drawn ones.
    """
    batch, device = len(clean), clean.device
    drop = torch.rand(batch, generator=generator) < caption_dropout
    slices = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    drawn = (slices * schedule.config.num_train_timesteps).long()
    t = (drawn if timesteps is None else timesteps).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    text = torch.where(drop[:, None, None].to(device), nothing, text)
    target = _TARGETS[schedule.config.prediction_type](schedule, clean, noise, t)
    return NoisyBatch(schedule.add_noise(clean, noise, t), t, text, target)


@dataclass(frozen=True)
class DenoisingTask:
    """Images and captions as a denoiser sees them, with the noise levels it is trained on.

    Attributes:
        latents: `[n, c, h, w]`, float32.
        states: text states `[n, tokens, d]`, one per latent.
        nothing: the states of the empty caption, `[1, tokens, d]`.
        schedule: see `noise_schedule`.
    """

    latents: Tensor
    states: Tensor
    nothing: Tensor
    schedule: SchedulerMixin

    @classmethod
    def of(
        cls, pipe: StableDiffusionPipeline, images: Tensor | Sequence[Image.Image], captions: Sequence[str]
    ) -> DenoisingTask:
        """Encode images and captions with a pipeline's own autoencoder and text encoder.

        Args:
            pipe: a Stable Diffusion pipeline with one text encoder.
            images: n PIL images, uint8 `[n, 3, h, w]` or floats in [0, 1], of the size the pipeline draws.
            captions: n texts, one per image.
        """
        needed = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        missing = [name for name in needed if not hasattr(pipe, name)]
        if missing or hasattr(pipe, "text_encoder_2") or pipe.unet.config.get("addition_embed_type"):
            raise TypeError(
                "Expected a Stable Diffusion pipeline with one text encoder, such as pl.load('emoji-sd'); got "
                f"{type(pipe).__name__}{', which lacks ' + ', '.join(missing) if missing else ''}."
            )
        pixels = with_texts(images, captions, "caption")
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        if tuple(pixels.shape[-2:]) != (side, side):
            size = f"{pixels.shape[-1]} x {pixels.shape[-2]}"
            raise ValueError(f"The images are {size} pixels; this pipeline draws {side} x {side}. Resize them first.")
        schedule = noise_schedule(pipe.scheduler)  # refuses before the encoding
        latents = encode_images(pipe.vae, pixels).float()
        states = encode_captions(pipe.text_encoder, pipe.tokenizer, [*captions, ""]).float()
        return cls(latents, states[:-1], states[-1:], schedule)

    @property
    def levels(self) -> int:
        """Number of noise levels; timesteps run from 0 to `levels` - 1."""
        return self.schedule.config.num_train_timesteps

    def draw(
        self, generator: torch.Generator, batch: int, caption_dropout: float = 0.1, timesteps: Tensor | None = None
    ) -> NoisyBatch:
        """Draw `batch` images with replacement and add noise to them; other arguments as in `noisy_batch`."""
        index = torch.randint(len(self.latents), (batch,), generator=generator)
        shown = self.schedule, self.latents[index], self.states[index], self.nothing, generator
        return noisy_batch(*shown, caption_dropout=caption_dropout, timesteps=timesteps)

    def loss(self, unet: nn.Module, generator: torch.Generator, batch: int, caption_dropout: float = 0.1) -> Tensor:
        """Return the denoising loss of a batch as `draw` returns it."""
        return self.draw(generator, batch, caption_dropout).loss(unet)

    def loss_at(self, unet: nn.Module, timestep: int, generator: torch.Generator, batch: int) -> Tensor:
        """Return the denoising loss of a batch at one timestep, 0 to `levels` - 1, with every caption in place."""
        if not 0 <= timestep < self.levels:
            raise ValueError(f"timestep={timestep}; allowed: 0 to {self.levels - 1}.")
        return self.draw(generator, batch, 0, torch.full((batch,), timestep)).loss(unet)
