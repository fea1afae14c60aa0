"""Record of chapter 4's explorer: pictures, quality, bytes, latency and histogram for every mask.

Goes on from sparsity_curve. Times are of one call of the UNet with a batch of two, the step of a guided picture, all
masks in turn. About five minutes on two CPU cores.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import asdict

import torch
from torch import Tensor
from tqdm.auto import tqdm

import pruning_book as pb
import pruning_lib as pl
from pruning_book.sparse_file import sparse_bytes
from pruning_book.widgets import sparsity as setting
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.histogram import Histogram, WeightBins
from pruning_book.widgets.sparsity import GUIDANCE, MODEL, PROMPTS, STEPS, STOPS
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.quality import clip_score, ssim
from pruning_lib.weights.magnitude import SCOPES, Sensitivity
from pruning_lib.weights.select import prunable_weights

from .common import Record, mean_metric, time_metric

LABELS = ("global", "layer by layer", "by sensitivity", "random")
WARMUP = 2


def masks() -> list[tuple[str, float]]:
    """Return every scope at every stop."""
    return list(itertools.product(SCOPES, STOPS))


def measure(repeats: int = 30, curve: str = "sparsity_curve", device: str = "cpu") -> Record:
    """Prune, draw, judge and time; `curve` is the name or the file of that record."""
    curve = pl.load_record(curve)
    sensitivity = Sensitivity.from_dict(curve["data"]["sensitivity"])
    pipe, clip = pl.load(MODEL, device=device), pb.load_clip(MODEL)
    weights = {name: weight.detach().clone() for name, weight in prunable_weights(pipe.unet).weights.items()}
    bins = WeightBins.around(weights)

    def draw() -> list[Tensor]:
        return [setting.draw(pipe, [prompt], first=i)[0] for i, prompt in enumerate(PROMPTS)]

    whole, found, copies = draw(), {}, {}
    for scope, stop in tqdm(masks(), desc="masks", unit="mask"):
        if stop == 0 and scope != SCOPES[0]:  # no weight is removed, whatever the scope
            found[scope, stop] = found[SCOPES[0], stop]
            continue
        with setting.prune_at(pipe.unet, scope, stop, sensitivity) as pruned:
            images, call = draw(), f"{scope} {stop}"
            scores = [clip_score(clip, image, [prompt]).item() for image, prompt in zip(images, PROMPTS, strict=True)]
            found[scope, stop] = {
                **{"images": images, "call": call, "clip": [round(score, 2) for score in scores]},
                "ssim": [round(ssim(a, b).item(), 4) for a, b in zip(whole, images, strict=True)],
                "bytes": sparse_bytes(pipe.unet.state_dict()),
                **{"removed": bins.count(weights, pruned.masks), "cut": setting.cut_of(pruned)},
            }
            copies[call] = copy.deepcopy(pipe.unet)
    timed = setting.time_denoisers(copies, repeats, WARMUP)
    many = {(r["scope"], r["asked"]): r["ssim"] for r in curve["data"]["rows"] if r["part"] == "unet"}
    explorer = assemble(found, timed, many, bins, weights)
    more = {"model": MODEL, "sampler": "DDIM, trailing", "steps": STEPS, "guidance": GUIDANCE, "timed_batch": 2}
    more |= {"warmup": WARMUP, "histogram": asdict(explorer.histogram)}
    seeds = [setting.FIRST_SEED + i for i in range(len(PROMPTS))]
    return Record(more, seeds=seeds, n=repeats, device=device, explorer=explorer)


def assemble(found: dict, timed: dict, many: dict, bins: WeightBins, weights: dict[str, Tensor]) -> SweepExplorer:
    """Return the explorer: every figure in the order of prompt, scope, sparsity."""
    every = [(i, mask) for i in range(len(PROMPTS)) for mask in masks()]
    times = [timed[found[mask]["call"]] for _, mask in every]
    means = [many[scope if stop else "global", stop] for _, (scope, stop) in every]
    each = [mean["n"] for mean in means]
    size = [round(found[m]["bytes"] / 1e6, 3) for _, m in every]
    metrics = [
        Metric("ssim", [found[m]["ssim"][i] for i, m in every], label="SSIM of this picture", n=1, digits=3),
        mean_metric("mean_ssim", means, "mean SSIM of many pictures", n=each, digits=3),
        Metric("clip_score", [found[m]["clip"][i] for i, m in every], label="CLIP score (mini CLIP)", n=1, digits=1),
        Metric("sparse_mb", size, label="UNet in a sparse file", unit="MB"),
        time_metric(times, "one UNet call", n=times[0].n, places=3, digits=1),
    ]
    axes = [
        Axis("prompt", PROMPTS, label="Prompt"),
        Axis("scope", SCOPES, label="Scope", labels=LABELS),
        Axis("sparsity", STOPS, label="Sparsity"),
    ]
    removed, cut = ([found[mask][key] for mask in masks()] for key in ("removed", "cut"))
    told = {"label": "weight", "title": "Weights of the UNet"}
    panel = Histogram(bins.edges, bins.count(weights), ("scope", "sparsity"), removed, cut, **told)
    images = torch.cat([found[m]["images"][i] for i, m in every])
    return SweepExplorer("sparsity-explorer", axes, images, metrics, title="as recorded", histogram=panel)
