"""Record of chapter 6: teach emoji-sd 24 new things, starting from the whole model and from pruned ones.

    python -m benchmarks new_concept

Every start is trained with the same steps, data order, noise and learning rate, for each of three seeds. Half of every
batch are old pictures, so that the model need not forget them (the idea of DreamBooth's prior preservation, with real
pictures). Single runs are kept, so that an interrupted benchmark goes on. About 40 minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.interval import bootstrap_interval
from pruning_lib.quality import psnr, retrieval_rank, ssim
from zoo.data import contact_sheet

from .common import Record, judge, once, spread, tiles_of, unit

MODEL = "emoji-sd"
PER_RUN = ("changed", "zeros_before", "zeros_after", "grown_mean", "largest_step")
STEPS, BATCH, LR, SEEDS = 150, 16, 5e-4, (0, 1, 2)
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


def train_one(start: str, seed: int, sheet: Path) -> dict:
    """Train one start with one seed and judge it."""
    _, sparsity, held, trained_in, rounded_to = STARTS[start]
    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)
    images, captions = pb.training_images(MODEL), pb.captions(MODEL)
    new, names = pb.new_concepts()
    everything = captions + names
    asked = [captions[i] for i in spread(OLD, len(captions))]
    before = judge(pipe, clip, asked, everything, None, **SAMPLER).pictures

    pruned = pl.prune_magnitude(pipe.unet, sparsity) if sparsity else None
    if rounded_to:
        pipe.unet.to(getattr(torch, rounded_to)).float()
    if trained_in != "float32":
        pipe.unet.to(getattr(torch, trained_in))
    first = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    task_new, task_old = DenoisingTask.of(pipe, new, names), DenoisingTask.of(pipe, images, captions)

    @torch.no_grad()
    def validate(step: int) -> dict[str, float]:
        def loss(task: DenoisingTask) -> float:  # the same latents, noise and timesteps every time
            return task.loss(pipe.unet, torch.Generator().manual_seed(99), 96, caption_dropout=0).item()

        return {"new_loss": loss(task_new), "old_loss": loss(task_old)}

    repeat = round(len(images) / len(new))
    mixed = torch.cat([images, new.repeat(repeat, 1, 1, 1)])
    log = pl.finetune(
        pipe,
        mixed,
        captions + names * repeat,
        steps=STEPS,
        lr=LR,
        batch=BATCH,
        seed=seed,
        ema=0,
        half_weights=True,
        after_step=pruned.reapply if held else None,
        validate=validate,
        validate_every=50,
    )
    changed = sum((p != first[n]).sum().item() for n, p in pipe.unet.named_parameters())
    zeros = {n: ~m for n, m in pruned.masks.items()} if pruned else {}
    weights = dict(pipe.unet.named_parameters())
    still = sum((weights[n][z] == 0).sum().item() for n, z in zeros.items())
    grown = torch.cat([weights[n][z].abs().flatten() for n, z in zeros.items()]) if zeros else torch.zeros(1)
    pipe.unet.float()
    drawn = [judge(pipe, clip, names, everything, new, seed=1000 * i, **SAMPLER) for i in range(NOISES)]
    old = judge(pipe, clip, asked, everything, before, **SAMPLER)
    if seed == SEEDS[0]:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        pictures = drawn[0].pictures[[names.index(name) for name in SHOWN]]
        contact_sheet(pictures, columns=len(SHOWN)).save(sheet)
    return {
        "new": {k: torch.cat([d.figures[k] for d in drawn]).tolist() for k in drawn[0].figures},
        "old": {k: v.tolist() for k, v in old.figures.items()},
        "curve": {name: log.curve(name) for name in ("new_loss", "old_loss")},
        "changed": changed / sum(p.numel() for p in weights.values()),
        "zeros_before": sum(z.sum().item() for z in zeros.values()),
        "zeros_after": still,
        "grown_mean": grown.mean().item(),
        "largest_step": max((p.float() - first[n].float()).abs().max().item() for n, p in weights.items()),
    }


def untrained(name: str) -> dict:
    """Judge a start before it was trained: what it knows of the new things, and what pruning cost the old ones."""
    _, sparsity, _, trained_in, rounded_to = STARTS[name]
    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)
    captions = pb.captions(MODEL)
    new, names = pb.new_concepts()
    asked = [captions[i] for i in spread(OLD, len(captions))]
    before = judge(pipe, clip, asked, captions + names, None, **SAMPLER).pictures
    if sparsity:
        pl.prune_magnitude(pipe.unet, sparsity).finish()
    for kind in (rounded_to, trained_in):
        pipe.unet.to(getattr(torch, kind or "float32")).float()
    drawn = judge(pipe, clip, names, captions + names, new, **SAMPLER)
    old = judge(pipe, clip, asked, captions + names, before, **SAMPLER)
    return {
        "new": {k: v.tolist() for k, v in drawn.figures.items()},
        "old": {k: v.tolist() for k, v in old.figures.items()},
    }


def ceiling() -> dict:
    """Say what the judge makes of the real new pictures, and what the autoencoder alone leaves of them."""
    from zoo.acceptance import reconstruct

    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)
    new, names = pb.new_concepts()
    again = reconstruct(pipe, new)
    rank = retrieval_rank(clip, new, names, pb.captions(MODEL) + names)
    return {
        "top5_real": bootstrap_interval((rank <= 5).float()).to_dict(),
        "ssim_autoencoder": bootstrap_interval(ssim(unit(again), unit(new))).to_dict(),
        "psnr_db_autoencoder": bootstrap_interval(psnr(unit(again), unit(new))).to_dict(),
    }


def summary(runs: list[dict], which: str) -> dict:
    """Pool the pictures of all seeds for the interval, and keep each seed's mean."""
    return {
        key: {
            **bootstrap_interval(torch.tensor([r[which][key] for r in runs]).mean(0)).to_dict(),
            "by_seed": [torch.tensor(r[which][key]).mean().item() for r in runs],
        }
        for key in runs[0][which]
    }


def against(runs: list[dict], reference: list[dict], which: str) -> dict:
    """Compare picture by picture with the unpruned start: same caption, same noise, same seeds of training."""
    difference = {
        key: torch.tensor([r[which][key] for r in runs]) - torch.tensor([r[which][key] for r in reference])
        for key in runs[0][which]
    }
    return {key: bootstrap_interval(value.mean(0)).to_dict() for key, value in difference.items()}


def measure(work: Path) -> Record:
    """Train all starts with all seeds."""
    real, names = pb.new_concepts()
    places = [names.index(name) for name in SHOWN]
    rows, reference, shown = [], [], []
    tiles = [real[places]]
    for name, (label, sparsity, held, trained_in, rounded_to) in STARTS.items():
        runs = []
        for seed in SEEDS:
            print(f"{name}, seed {seed}", flush=True)
            sheet = work / f"{name}.png"
            runs.append(once(work / f"{name}-{seed}.json", lambda n=name, s=seed, p=sheet: train_one(n, s, p)))
        reference = reference or runs  # the first start is the unpruned one
        start = once(work / f"{name}-start.json", lambda n=name: untrained(n))
        rows.append(
            {
                "name": name,
                "label": label,
                "sparsity": sparsity,
                "held": held,
                "trained_in": trained_in,
                "rounded_to": rounded_to,
                "new": summary(runs, "new"),
                "old": summary(runs, "old"),
                "new_against_whole": against(runs, reference, "new"),
                "old_against_whole": against(runs, reference, "old"),
                "before": {which: summary([start], which) for which in ("new", "old")},
                "curves": [r["curve"] for r in runs],
                **{k: [r[k] for r in runs] for k in PER_RUN},
            }
        )
        tiles.append(tiles_of(work / f"{name}.png"))
        shown.append([runs[0]["new"]["ssim"][i] for i in places])
    data = {
        "rows": rows,
        "ceiling": ceiling(),
        "shown": list(SHOWN),
        "model": MODEL,
        "concepts": names,
        "old_captions": OLD,
        "noises": NOISES,
        "sampler": SAMPLER,
        "features": "mini-CLIP",
        "finetune": {"steps": STEPS, "batch": BATCH, "lr": LR, "ema": 0, "old_share": 0.5},
        "interval": "over pictures, each averaged over the seeds of training",
    }
    shown_by = explorer(rows, shown, torch.stack(tiles, 1).flatten(0, 1))
    return Record(data, seeds=list(SEEDS), n=len(names) * NOISES, explorer=shown_by)


def explorer(rows: list[dict], shown: list[list[float]], tiles: torch.Tensor) -> SweepExplorer:
    """Return the figure that opens the chapter: a thing, a start, and the picture that came of it."""
    stops = ["real", *(row["name"] for row in rows)]
    labels = ["the real picture", *(row["label"] for row in rows)]
    each = [[1.0, *(values[i] for values in shown)] for i in range(len(SHOWN))]

    def mean(which: str, name: str, label: str) -> Metric:
        found = [row[which]["ssim"] for row in rows]
        parts = {key: [None, *(round(f[key], 4) for f in found)] * len(SHOWN) for key in ("value", "low", "high")}
        return Metric(
            name,
            parts["value"],
            label=label,
            low=parts["low"],
            high=parts["high"],
            interval="95 % interval",
            n=found[0]["n"],
            digits=2,
        )

    metrics = [
        mean("old", "old_ssim", "old things, SSIM to before"),
        mean("new", "new_ssim", "new things, SSIM to the real ones"),
        Metric(
            "ssim", [round(v, 4) for row in each for v in row], label="this picture, SSIM to the real one", digits=2
        ),
    ]
    axes = [Axis("thing", SHOWN, label="New thing"), Axis("start", stops, label="Training started from", labels=labels)]
    return SweepExplorer("new-concept", axes, tiles, metrics, title="as recorded")
