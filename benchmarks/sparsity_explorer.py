"""Record the sparsity explorer of chapter 4: pictures, quality, bytes, latency and histogram for every mask.

    python -m benchmarks sparsity_curve       # first: it measures the sensitivities and the quality over many pictures
    python -m benchmarks sparsity_explorer

Times are of one call of the pruned UNet with a batch of two, the step of a guided picture; all masks are timed in turn,
each in a copy of its own, so that a disturbance from outside hits them alike. About five minutes on two CPU cores.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import pruning_book as pb
import pruning_lib as pl
from pruning_book.sparse_file import sparse_bytes
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.histogram import Histogram, WeightBins
from pruning_book.widgets.sparsity import (
    FIRST_SEED,
    GUIDANCE,
    MODEL,
    PROMPTS,
    SCOPES,
    STEPS,
    STOPS,
    cut_of,
    draw,
    prune_at,
    time_denoisers,
)
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.quality import clip_score, ssim
from pruning_lib.weights.magnitude import Sensitivity
from pruning_lib.weights.select import prunable_weights

from .common import Record

LABELS = ("global", "layer by layer", "by sensitivity", "random")
WARMUP = 2


def measure(repeats: int = 30, curve: str = "sparsity_curve", device: str = "cpu") -> Record:
    """Prune, draw, judge and time; `curve` is the name or the file of that record."""
    curve = pl.load_record(curve)
    sensitivity = Sensitivity.from_dict(curve["data"]["sensitivity"])
    pipe = pl.load(MODEL, device=device)
    pipe.set_progress_bar_config(disable=True)
    clip = pb.load_clip(MODEL)
    whole = [draw(pipe, [prompt], first=i)[0] for i, prompt in enumerate(PROMPTS)]
    weights = {name: weight.detach().clone() for name, weight in prunable_weights(pipe.unet).weights.items()}
    bins = WeightBins.around(weights)
    masks = list(itertools.product(SCOPES, STOPS))
    found: dict[tuple[str, float], dict[str, Any]] = {}
    copies: dict[str, nn.Module] = {}
    for scope, stop in tqdm(masks, desc="masks", unit="mask"):
        if stop == 0 and scope != SCOPES[0]:  # no weight is removed, whatever the scope
            found[scope, stop] = found[SCOPES[0], stop]
            continue
        with prune_at(pipe.unet, scope, stop, sensitivity) as pruned:
            images = [draw(pipe, [prompt], first=i)[0] for i, prompt in enumerate(PROMPTS)]
            found[scope, stop] = {
                "images": images,
                "ssim": [round(ssim(a, b).item(), 4) for a, b in zip(whole, images, strict=True)],
                "clip": [
                    round(clip_score(clip, image, [p]).item(), 2) for image, p in zip(images, PROMPTS, strict=True)
                ],
                "bytes": sparse_bytes(pipe.unet.state_dict()),
                "removed": bins.count(weights, pruned.masks),
                "cut": cut_of(pruned),
                "call": f"{scope} {stop}",
            }
            copies[f"{scope} {stop}"] = copy.deepcopy(pipe.unet)
    timed = time_denoisers(copies, repeats, WARMUP)
    explorer = assemble(found, timed, mean_ssim(curve), bins, weights)
    more = {
        "model": MODEL,
        "sampler": "DDIM, trailing",
        "steps": STEPS,
        "guidance": GUIDANCE,
        "timed_batch": 2,
        "warmup": WARMUP,
        "histogram": asdict(explorer.histogram),
    }
    seeds = [FIRST_SEED + i for i in range(len(PROMPTS))]
    return Record(more, seeds=seeds, n=repeats, device=device, explorer=explorer)


def mean_ssim(curve: dict) -> dict[tuple[str, float], dict]:
    """Return (scope, stop) -> mean SSIM with its interval, from the record of many pictures."""
    rows = {(r["scope"], r["asked"]): r["ssim"] for r in curve["data"]["rows"] if r["part"] == "unet"}
    return {(scope, stop): rows[scope if stop else "global", stop] for scope in SCOPES for stop in STOPS}


def assemble(found: dict, timed: dict, many: dict, bins: WeightBins, weights: dict[str, Tensor]) -> SweepExplorer:
    """Return the explorer: every figure in the order of prompt, scope, sparsity."""
    masks = list(itertools.product(SCOPES, STOPS))
    every = [(i, mask) for i in range(len(PROMPTS)) for mask in masks]
    times = [timed[found[mask]["call"]] for _, mask in every]
    means = [many[mask] for _, mask in every]
    metrics = [
        Metric("ssim", [found[m]["ssim"][i] for i, m in every], label="SSIM of this picture", n=1, digits=3),
        Metric(
            "mean_ssim",
            [m["value"] for m in means],
            label="mean SSIM of many pictures",
            low=[m["low"] for m in means],
            high=[m["high"] for m in means],
            interval="95 % interval",
            n=[m["n"] for m in means],
            digits=3,
        ),
        Metric("clip_score", [found[m]["clip"][i] for i, m in every], label="CLIP score (mini CLIP)", n=1, digits=1),
        Metric(
            "sparse_mb", [round(found[m]["bytes"] / 1e6, 3) for _, m in every], label="UNet in a sparse file", unit="MB"
        ),
        Metric(
            "latency_ms",
            [round(t.median_ms, 3) for t in times],
            label="one UNet call",
            unit="ms",
            low=[round(t.p10_ms, 3) for t in times],
            high=[round(t.p90_ms, 3) for t in times],
            interval="median, p10 to p90",
            n=times[0].n,
            digits=1,
        ),
    ]
    axes = [
        Axis("prompt", PROMPTS, label="Prompt"),
        Axis("scope", SCOPES, label="Scope", labels=LABELS),
        Axis("sparsity", STOPS, label="Sparsity"),
    ]
    panel = Histogram(
        bins.edges,
        bins.count(weights),
        ("scope", "sparsity"),
        [found[m]["removed"] for m in masks],
        [found[m]["cut"] for m in masks],
        label="weight",
        title="Weights of the UNet",
    )
    images = torch.cat([found[m]["images"][i] for i, m in every])
    return SweepExplorer("sparsity-explorer", axes, images, metrics, title="as recorded", histogram=panel)
