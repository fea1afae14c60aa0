"""Record of chapter 6: teach emoji-sd 24 new things, starting from the whole model and from pruned ones.

Every start is trained with the same data order, noise and learning rate, for each of three seeds. Half of every batch
are old pictures (the idea of DreamBooth's prior preservation, with real pictures). About 40 minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.quality import psnr, retrieval_rank, ssim
from zoo.acceptance import reconstruct

from .common import MODEL, TOP, Record, interval, judge, mean_metric, once, save_row, spread, tiles_of, unit

BOTH = ("new", "old")
PER_RUN = ("changed", "zeros_before", "zeros_after", "grown_mean", "largest_step")
FINETUNE, SEEDS = {"steps": 150, "batch": 16, "lr": 5e-4, "ema": 0}, (0, 1, 2)
SAMPLER = {"steps": 8, "guidance": 3.0}
OLD, NOISES = 64, 2  # old captions that are drawn; pictures per new caption
SHOWN = ("key", "alarm clock", "shopping cart", "amphora", "telephone", "hourglass done")
# name -> (label, sparsity, masks held, type the weights are trained in, type the start is rounded to)
STARTS = {
    "whole": ("unpruned", 0.0, False, "float32", ""),
    "rounded": ("unpruned, rounded to bfloat16", 0.0, False, "float32", "bfloat16"),
    "half_free": ("50 % zeros, free to grow", 0.5, False, "float32", ""),
    "half_held": ("50 % zeros, held", 0.5, True, "float32", ""),
    "most_free": ("80 % zeros, free to grow", 0.8, False, "float32", ""),
    "most_held": ("80 % zeros, held", 0.8, True, "float32", ""),
    "low_precision": ("unpruned, trained in bfloat16", 0.0, False, "bfloat16", ""),
}


def prepared(start: str):
    """Return the pipeline as a start is, the handle of its masks, and what judges it on old and on new things."""
    _, sparsity, _, trained_in, rounded_to = STARTS[start]
    pipe, clip, captions = pl.load(MODEL), pb.load_clip(MODEL), pb.captions(MODEL)
    pictures, names = pb.new_concepts()
    everything, asked = captions + names, spread(captions, OLD)
    before = judge(pipe, clip, asked, everything, None, **SAMPLER).pictures

    def old() -> dict[str, list]:
        return listed([judge(pipe, clip, asked, everything, before, **SAMPLER)])

    def new(seed: int = 0):
        return judge(pipe, clip, names, everything, pictures, seed=seed, **SAMPLER)

    pruned = pl.prune_magnitude(pipe.unet, sparsity) if sparsity else None
    if rounded_to:
        pipe.unet.to(getattr(torch, rounded_to)).float()
    pipe.unet.to(getattr(torch, trained_in))
    return pipe, pruned, old, new


def listed(found: list) -> dict[str, list]:
    """Return the figures of all pictures as lists."""
    return {key: torch.cat([one.figures[key] for one in found]).tolist() for key in found[0].figures}


def train_one(start: str, seed: int, sheet: Path) -> dict:
    """Train one start with one seed and judge it."""
    pipe, pruned, judge_old, judge_new = prepared(start)
    images, captions, (new, names) = pb.training_images(MODEL), pb.captions(MODEL), pb.new_concepts()
    first = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    task_new, task_old = DenoisingTask.of(pipe, new, names), DenoisingTask.of(pipe, images, captions)

    @torch.no_grad()
    def validate(step: int) -> dict[str, float]:
        def loss(task: DenoisingTask) -> float:  # the same latents, noise and timesteps every time
            return task.loss(pipe.unet, torch.Generator().manual_seed(99), 96, caption_dropout=0).item()

        return {"new_loss": loss(task_new), "old_loss": loss(task_old)}

    repeat = round(len(images) / len(new))
    mixed = torch.cat([images, new.repeat(repeat, 1, 1, 1)])
    reapply = pruned.reapply if STARTS[start][2] else None
    how = {"seed": seed, "half_weights": True, "after_step": reapply, "validate": validate, "validate_every": 50}
    log = pl.finetune(pipe, mixed, captions + names * repeat, **how, **FINETUNE)
    changed = sum((p != first[n]).sum().item() for n, p in pipe.unet.named_parameters())
    zeros = {n: ~m for n, m in pruned.masks.items()} if pruned else {}
    weights = dict(pipe.unet.named_parameters())
    still = sum((weights[n][z] == 0).sum().item() for n, z in zeros.items())
    grown = torch.cat([weights[n][z].abs().flatten() for n, z in zeros.items()]) if zeros else torch.zeros(1)
    pipe.unet.float()
    drawn = [judge_new(1000 * i) for i in range(NOISES)]
    old = judge_old()
    if seed == SEEDS[0]:
        save_row(drawn[0].pictures, sheet, names, SHOWN)
    return {
        "new": listed(drawn),
        "old": old,
        "curve": {name: log.curve(name) for name in ("new_loss", "old_loss")},
        "changed": changed / sum(p.numel() for p in weights.values()),
        "zeros_before": sum(z.sum().item() for z in zeros.values()),
        "zeros_after": still,
        "grown_mean": grown.mean().item(),
        "largest_step": max((p.float() - first[n].float()).abs().max().item() for n, p in weights.items()),
    }


def untrained(start: str) -> dict:
    """Judge a start before it was trained: what it knows of the new things, and what pruning cost the old ones."""
    pipe, pruned, judge_old, judge_new = prepared(start)
    if pruned:
        pruned.finish()
    pipe.unet.float()
    return {"new": listed([judge_new()]), "old": judge_old()}


def ceiling() -> dict:
    """Say what the judge makes of the real new pictures, and what the autoencoder alone leaves of them."""
    pipe, clip, (new, names) = pl.load(MODEL), pb.load_clip(MODEL), pb.new_concepts()
    again = reconstruct(pipe, new)
    rank = retrieval_rank(clip, new, names, pb.captions(MODEL) + names)
    return {
        "top5_real": interval((rank <= TOP).float()),
        "ssim_autoencoder": interval(ssim(unit(again), unit(new))),
        "psnr_db_autoencoder": interval(psnr(unit(again), unit(new))),
    }


def of_all(runs: list[dict], which: str) -> dict[str, torch.Tensor]:
    """Return each figure, one row per seed."""
    return {key: torch.tensor([run[which][key] for run in runs]) for key in runs[0][which]}


def summary(runs: list[dict], which: str) -> dict:
    """Pool the pictures of all seeds for the interval, and keep each seed's mean."""
    found = of_all(runs, which)
    return {k: {**interval(each.mean(0)), "by_seed": [row.mean().item() for row in each]} for k, each in found.items()}


def against(runs: list[dict], reference: list[dict], which: str) -> dict:
    """Compare picture by picture with the unpruned start: same caption, same noise, same seeds of training."""
    ours, theirs = of_all(runs, which), of_all(reference, which)
    return {key: interval((ours[key] - theirs[key]).mean(0)) for key in ours}


def measure(work: Path) -> Record:
    """Train all starts with all seeds."""
    real, names = pb.new_concepts()
    places = [names.index(name) for name in SHOWN]
    rows, reference, shown, tiles = [], [], [], [real[places]]
    for name, (label, sparsity, held, trained_in, rounded_to) in STARTS.items():
        sheet = work / f"{name}.png"
        runs = [once(work / f"{name}-{seed}.json", train_one, name, seed, sheet) for seed in SEEDS]
        reference = reference or runs  # the first start is the unpruned one
        start = once(work / f"{name}-start.json", untrained, name)
        row = {"name": name, "label": label, "sparsity": sparsity, "held": held}
        row |= {"trained_in": trained_in, "rounded_to": rounded_to}
        row |= {which: summary(runs, which) for which in BOTH}
        row |= {f"{which}_against_whole": against(runs, reference, which) for which in BOTH}
        row |= {"before": {which: summary([start], which) for which in BOTH}, "curves": [run["curve"] for run in runs]}
        rows.append({**row, **{key: [run[key] for run in runs] for key in PER_RUN}})
        tiles.append(tiles_of(sheet))
        shown.append([runs[0]["new"]["ssim"][i] for i in places])
    data = {
        **{"rows": rows, "ceiling": ceiling(), "shown": list(SHOWN), "model": MODEL, "concepts": names},
        **{"old_captions": OLD, "noises": NOISES, "sampler": SAMPLER, "features": "mini-CLIP"},
        "finetune": {**FINETUNE, "old_share": 0.5},
        "interval": "over pictures, each averaged over the seeds of training",
    }
    shown_by = explorer(rows, shown, torch.stack(tiles, 1).flatten(0, 1))
    return Record(data, seeds=list(SEEDS), n=len(names) * NOISES, explorer=shown_by)


def explorer(rows: list[dict], shown: list[list[float]], tiles: torch.Tensor) -> SweepExplorer:
    """Return the figure that opens the chapter: a thing, a start, and the picture that came of it."""
    stops = ["real", *(row["name"] for row in rows)]
    labels = ["the real picture", *(row["label"] for row in rows)]
    each = [[1.0, *(values[i] for values in shown)] for i in range(len(SHOWN))]

    def mean(which: str, label: str) -> Metric:
        found = [row[which]["ssim"] for row in rows]
        ends = [None, *({key: round(f[key], 4) for key in ("value", "low", "high")} for f in found)]
        return mean_metric(f"{which}_ssim", ends * len(SHOWN), label, n=found[0]["n"], digits=2)

    own = [round(value, 4) for row in each for value in row]
    metrics = [
        mean("old", "old things, SSIM to before"),
        mean("new", "new things, SSIM to the real ones"),
        Metric("ssim", own, label="this picture, SSIM to the real one", digits=2),
    ]
    axes = [Axis("thing", SHOWN, label="New thing"), Axis("start", stops, label="Training started from", labels=labels)]
    return SweepExplorer("new-concept", axes, tiles, metrics, title="as recorded")
