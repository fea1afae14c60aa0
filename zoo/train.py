"""Train emoji-sd from nothing, part by part; every part resumes where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from pruning_lib.finetuning.denoising import encode_captions, encode_images, noisy_batch, to_model_range
from pruning_lib.finetuning.loop import FitConfig, fit

from .data import EmojiData
from .parts import build_clip, build_scheduler, build_unet, build_vae, text_encoder_of, train_tokenizer

PARTS = ("tokenizer", "clip", "vae", "unet")  # in the order in which they need each other

# What the shipped model was trained with, and images a step.
RECIPES: dict[str, tuple[FitConfig, int]] = {
    "clip": (FitConfig(steps=1000, weight_decay=0.05, ema=0.998, bf16=True, checkpoint_every=100, log_every=10), 192),
    "vae": (FitConfig(steps=3200, lr=2e-3, bf16=True), 24),
    "unet": (FitConfig(steps=8000, lr=1.2e-3, ema=0.999, checkpoint_every=250), 32),
}
KL_WEIGHT = 1e-4
CAPTION_DROPOUT = 0.1  # for classifier-free guidance (Ho and Salimans 2022)
PLAIN_CAPTIONS = 0.85  # how often the denoiser's caption is the bare name; else tags follow it
CAPTIONS_EACH = 8  # variants per concept, encoded once before training


def train_part(part: str, data: EmojiData, run: Path, batch: int | None = None, **changes) -> None:
    """Train one part, or go on with it, and write the result to `run/<part>/final`.

    Args:
        part: one of `PARTS`; later parts need the earlier ones.
        data: from `prepare`.
        run: folder of the whole training.
        batch: images a step. Default: the recipe's.
        changes: fields of `FitConfig` that differ from the recipe; None leaves one as it is.
    """
    if part not in PARTS:
        raise ValueError(f"Unknown part {part!r}. Allowed: {', '.join(PARTS)}.")
    final = run / part / "final"
    if part == "tokenizer":
        train_tokenizer([*data.labels, *(tag for tags in data.tags for tag in tags)]).save_pretrained(final)
        return
    config, usual = RECIPES[part]
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    batch = usual if batch is None else batch
    if part == "vae":
        model = train_vae(data, config, run / part, batch)
    elif part == "clip":
        model = train_clip(data, trained(run, "tokenizer"), config, run / part, batch)
    else:
        vae = trained(run, "vae").to(config.device)
        text_encoder = text_encoder_of(trained(run, "clip")).to(config.device)
        model = train_unet(data, vae, text_encoder, trained(run, "tokenizer"), config, run / part, batch)
    model.cpu().save_pretrained(final)


def trained(run: Path, part: str) -> CLIPTokenizer | CLIPModel | AutoencoderKL:
    """Return a part that `train_part` finished."""
    path = run / part / "final"
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing. Run `python -m zoo train {part}` first.")
    return {"tokenizer": CLIPTokenizer, "clip": CLIPModel, "vae": AutoencoderKL}[part].from_pretrained(path)


def caption(label: str, tags: list[str], generator: torch.Generator, plain: float = 0.6) -> str:
    """Return the label, or (with probability 1 - `plain`) the label and up to three of its tags."""
    if not tags or torch.rand((), generator=generator) < plain:
        return label
    order = torch.randperm(len(tags), generator=generator).tolist()
    count = int(torch.randint(1, 4, (), generator=generator))
    return ", ".join([label, *[tags[i] for i in order[:count]]])


def train_clip(data: EmojiData, tokenizer: CLIPTokenizer, config: FitConfig, folder: Path, batch: int) -> CLIPModel:
    """Train so that each image finds its caption among those of the batch, and the other way round.

    The contrastive loss of Radford et al. 2021 (their figure 3), on emoji of both styles. A batch holds every label at
    most once, whatever its style, so that no true pair counts as a wrong one.
    """
    torch.manual_seed(config.seed)
    model = build_clip(tokenizer)
    by_label: dict[str, list[int]] = {}
    for index, label in enumerate(data.labels):
        by_label.setdefault(label, []).append(index)
    groups = list(by_label.values())

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        picked = torch.randperm(len(groups), generator=generator)[:batch].tolist()
        index = [groups[g][int(torch.randint(len(groups[g]), (), generator=generator))] for g in picked]
        texts = [caption(data.labels[i], data.tags[i], generator) for i in index]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").to(config.device)
        images = disturb(to_model_range(data.images[index]), generator).to(config.device)
        out = model(input_ids=tokens.input_ids, pixel_values=images)
        logits, target = out.logits_per_image.float(), torch.arange(len(index), device=config.device)
        value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return value, {"top1": (logits.argmax(1) == target).float().mean().item()}

    return fit(model, loss, config, folder, "clip")


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, fade, blur and add noise to images in [-1, 1], so that the judge forgives small flaws."""
    n = len(images)
    size = 1 + 0.15 * (torch.rand(n, generator=generator) * 2 - 1)
    grid = torch.zeros(n, 2, 3)
    grid[:, 0, 0] = grid[:, 1, 1] = size
    grid[:, :, 2] = (torch.rand(n, 2, generator=generator) * 2 - 1) * 0.12
    where = F.affine_grid(grid, list(images.shape), align_corners=False)
    moved = F.grid_sample(images - 1, where, align_corners=False) + 1  # minus 1, so that the outside is white
    small = F.interpolate(F.avg_pool2d(moved, 2), scale_factor=2, mode="bilinear")
    blur = torch.rand(n, 1, 1, 1, generator=generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)
    fade = 1 - 0.3 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = 0.15 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    return (((1 - blur) * moved + blur * small - 1) * fade + 1 + noise).clamp(-1, 1)


def train_vae(data: EmojiData, config: FitConfig, folder: Path, batch: int) -> AutoencoderKL:
    """Train on every image in both styles, with small shifts and mirror images.

    The loss is pixel error plus a small pull of the latents towards a unit Gaussian; there is no adversarial term,
    because flat emoji do not need invented texture. `config.scaling_factor` becomes 1/std of the concepts' latents, so
    that the denoiser sees unit variance.
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
    vae.register_to_config(scaling_factor=1.0)  # for latents that are not scaled yet
    scale = 1 / encode_images(vae, data.concepts().images).std().item()
    vae.register_to_config(scaling_factor=round(scale, 5))
    return vae


def _shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    dy, dx = torch.randint(-4, 5, (2,), generator=generator).tolist()
    images = images.roll((dy, dx), dims=(-2, -1))  # the border is white, so rolling is shifting
    mirror = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def train_unet(
    data: EmojiData,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    config: FitConfig,
    folder: Path,
    batch: int,
) -> UNet2DConditionModel:
    """Train the denoiser on the concepts; latents and text states are computed once, before.

    Time steps are drawn one from each of `batch` equal slices of the schedule, which lowers the gradient's variance.
    """
    data = data.concepts()
    latents = encode_images(vae, data.images).to(config.device)
    generator = torch.Generator().manual_seed(config.seed)
    pairs = zip(data.labels, data.tags, strict=True)
    texts = [caption(*pair, generator, plain=PLAIN_CAPTIONS) for pair in pairs for _ in range(CAPTIONS_EACH)]
    states = encode_captions(text_encoder, tokenizer, texts).unflatten(0, (-1, CAPTIONS_EACH)).to(config.device)
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
