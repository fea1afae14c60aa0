"""What chapter 4 draws and measures: the same captions and noise for every mask, and the sparsity explorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning_lib.denoisers import example_inputs
from pruning_lib.latency import Latency, measure_latency
from pruning_lib.quality import clip_score, ssim
from pruning_lib.records import load_record
from pruning_lib.weights.magnitude import Sensitivity, prune_magnitude
from pruning_lib.weights.masks import PrunedWeights
from pruning_lib.weights.select import prunable_weights

from ..sparse_file import sparse_bytes
from .histogram import Histogram, WeightBins
from .sheet import to_pil
from .sweep import SweepExplorer

MODEL = "emoji-sd"
STEPS, GUIDANCE = 10, 3.0
STOPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
INERT = ("mid_block", "down_blocks.3")  # blocks that emoji-sd draws without; `sparsity_curve` measures that it does
PROMPTS = ("lion", "pizza", "red heart", "rocket", "sunflower", "smiling face with sunglasses")
FIRST_SEED = 1000
BATCH = 16  # pictures drawn at once: what a processor's cache holds


def quiet(pipe: Any) -> Any:
    """Return a pipeline that shows no progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def spread_captions(captions: Sequence[str], n: int) -> list[str]:
    """Return the first n of all captions in an order that is shuffled once and for all."""
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))
    return [captions[i] for i in order[:n].tolist()]


@torch.no_grad()
def draw(
    pipe: Any, prompts: Sequence[str], *, first: int = 0, steps: int = STEPS, guidance: float = GUIDANCE
) -> tuple[Tensor, Tensor]:
    """Return pictures and their latents; picture i always starts from the noise of seed 1000 + `first` + i.

    `first` is the place of the first of n prompts in the whole list. The pictures are floats in [0, 1], `[n, 3, h, w]`,
    the latents, before decoding, `[n, 4, h, w]`, both on the CPU.
    """
    found = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        noise = [torch.Generator().manual_seed(FIRST_SEED + first + start + i) for i in range(len(part))]
        options = dict(num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="latent")
        found.append(pipe(part, **options).images)
    latents = torch.cat(found)
    return decode(pipe, latents), latents.cpu()


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Return the pictures of latents, floats in [0, 1] on the CPU."""
    parts = []
    for part in latents.to(pipe.vae.device, pipe.vae.dtype).split(BATCH):
        decoded = pipe.vae.decode(part / pipe.vae.config.scaling_factor).sample
        parts.append((decoded.float() / 2 + 0.5).clamp(0, 1).cpu())
    return torch.cat(parts)


def prune_at(module: torch.nn.Module, scope: str, sparsity: float, sensitivity: Sensitivity | None) -> PrunedWeights:
    """Prune for one stop of the explorer; the sensitivity is used only where the scope asks for it."""
    given = sensitivity if scope == "sensitivity" else None
    return prune_magnitude(module, sparsity, scope=scope, sensitivity=given)


def cut_of(pruned: PrunedWeights) -> tuple[float, float] | None:
    """Return the smallest and the largest threshold among the layers, None where nothing was cut by size."""
    found = [row.threshold for row in pruned.layers if row.threshold is not None]
    if not found or pruned.scope == "random":
        return None
    return (max(found),) * 2 if pruned.scope == "global" else (min(found), max(found))


def time_denoisers(denoisers: Mapping[str, torch.nn.Module], repeats: int, warmup: int = 2) -> dict[str, Latency]:
    """Time one call of each, all on one device, in turn, with a batch of two: what one step with guidance costs."""
    calls, device = {}, None
    for name, module in denoisers.items():
        device = next(module.parameters()).device
        inputs = example_inputs(module, batch=2, device=device)
        calls[name] = torch.no_grad()(lambda module=module, inputs=inputs: module(**inputs))
    return measure_latency(calls, repeats=repeats, warmup=warmup, device=device)


def sparsity_explorer(
    record: str | Path = "sparsity_explorer",
    *,
    load: Callable[[str], Any] | None = None,
    load_clip: Callable[[str], Any] | None = None,
    curve: str | Path = "sparsity_curve",
) -> SweepExplorer:
    """Return the explorer of chapter 4, from the record that `benchmarks/sparsity_explorer.py` writes.

    With `load`, as `pruning_lib.load`, each stop prunes the loaded model where a kernel is there, draws, and puts its
    weights back; `load_clip`, as `pruning_book.load_clip`, scores the new pictures too. `curve` is the record with the
    measured sensitivities, read only then.
    """
    panel = Histogram(**load_record(record)["data"]["histogram"])
    bins = WeightBins(tuple(panel.edges))

    @cache
    def live() -> tuple[Any, Sensitivity, Any]:
        sensitivity = Sensitivity.from_dict(load_record(curve)["data"]["sensitivity"])
        return quiet(load(MODEL)), sensitivity, load_clip(MODEL) if load_clip else None

    @cache
    def whole(prompt: str) -> Tensor:
        return draw(live()[0], [prompt], first=PROMPTS.index(prompt))[0]

    def on_change(stop: dict) -> dict:
        pipe, sensitivity, clip = live()
        prompt = stop["prompt"]
        reference = whole(prompt)
        weights = {name: w.detach().clone() for name, w in prunable_weights(pipe.unet).weights.items()}
        with prune_at(pipe.unet, stop["scope"], stop["sparsity"], sensitivity) as pruned:
            image = draw(pipe, [prompt], first=PROMPTS.index(prompt))[0]
            metrics = {
                "ssim": ssim(reference, image).item(),
                "latency_ms": time_denoisers({"pruned": pipe.unet}, 5)["pruned"].median_ms,
                "sparse_mb": sparse_bytes(pipe.unet.state_dict()) / 1e6,
            }
        if clip is not None:
            metrics["clip_score"] = clip_score(clip, image, [prompt]).item()
        removed = {"removed": bins.count(weights, pruned.masks), "cut": cut_of(pruned)}
        return {"image": to_pil(image)[0], "metrics": metrics, "histogram": removed}

    return SweepExplorer.from_record(
        record,
        "sparsity-explorer",
        title="How many weights can be zero?",
        picture="64 x 64 image from emoji-sd",
        start={"prompt": PROMPTS[0], "scope": "global", "sparsity": 0.5},
        baseline={"sparsity": 0.0},
        chart=("sparsity", "mean_ssim"),
        histogram=panel,
        on_change=on_change if load else None,
    )
