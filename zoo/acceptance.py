"""Is the model good enough to teach with?  Three checks with thresholds, and a contact sheet for the eye.

1. The autoencoder reconstructs the training images at 27 dB or better on average.
2. Images generated from training captions find their own caption among the nearest five of all captions at least 0.8
   times as often as the real images do.  The judge is the mini CLIP, whose text tower also steers the model; so the
   rate of the real images, not 1, is the yardstick.
3. The pipeline loads and its weights stay within their size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruning_book.judge import MiniCLIP, generate
from pruning_lib.interval import bootstrap_interval
from pruning_lib.quality import psnr, retrieval_rank

from .assemble import MAX_BYTES
from .vae import to_model_range

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = ["PSNR_MIN", "RATE_MIN", "run_gate"]

PSNR_MIN = 27.0
RATE_MIN = 0.8
TOP = 5


@torch.no_grad()
def reconstruct(pipe: StableDiffusionPipeline, images: Tensor) -> Tensor:
    """Return uint8 `[n, 3, 64, 64]` after encoding to the mean latent and decoding."""
    parts = []
    for part in images.split(64):
        latent = pipe.vae.encode(to_model_range(part).to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mean
        parts.append(pipe.vae.decode(latent).sample.float().cpu())
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def run_gate(
    pipe: StableDiffusionPipeline,
    clip: MiniCLIP,
    images: Tensor,
    texts: list[str],
    folder: str | Path,
    *,
    n: int = 256,
    steps: int = 25,
    guidance: float = 3.0,
    seed: int = 0,
) -> tuple[dict, Tensor]:
    """Measure the gate.

    Args:
        pipe, clip: the model and its judge.
        images, texts: the real images and all captions, in the same order.
        folder: the model's folder, whose weights are weighed.
        n: captions to generate, chosen by `seed`.

    Returns:
        The figures, with `passed`, and the generated images uint8 `[n, 3, 64, 64]` in the order of
        `figures["captions"]`.

    Raises:
        ValueError: n exceeds the number of captions, or is too small for an interval.
    """
    if not 2 <= n <= len(texts):
        raise ValueError(f"n={n} captions were asked for; give 2 to {len(texts)}, which is all the model knows.")
    own = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:n].sort().values
    asked = [texts[i] for i in own]
    drawn = generate(pipe, asked, steps=steps, guidance=guidance, seed=seed)
    quality = psnr(reconstruct(pipe, images).float() / 255, images.float() / 255)
    real = retrieval_rank(clip, images[own], asked, texts) <= TOP
    fake = retrieval_rank(clip, drawn, asked, texts) <= TOP
    size = sum(p.stat().st_size for p in Path(folder).rglob("*.safetensors"))
    figures = {
        "psnr_db": _interval(quality),
        "psnr_worst_db": quality.min().item(),
        "top5_real": _interval(real.float()),
        "top5_generated": _interval(fake.float()),
        "ratio": fake.float().mean().item() / max(real.float().mean().item(), 1e-9),
        "weights_bytes": size,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "n": n,
        "captions": asked,
        "thresholds": {"psnr_db": PSNR_MIN, "ratio": RATE_MIN, "bytes": MAX_BYTES},
    }
    figures["passed"] = bool(
        figures["psnr_db"]["value"] >= PSNR_MIN and figures["ratio"] >= RATE_MIN and size <= MAX_BYTES
    )
    return figures, drawn


def _interval(values: Tensor) -> dict:
    found = bootstrap_interval(values)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
