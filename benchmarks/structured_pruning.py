"""Records of chapters 5 and 6: narrower and shorter denoisers, before and after a short fine-tune.

    python -m benchmarks structured_pruning
    python -m benchmarks structured_pruning --what latency

First it prunes at three ratios with three kinds of importance, removes blocks as BK-SDM does, fine-tunes each on the
model's own training pictures, and judges; about 25 minutes on one CPU core. `--what latency` needs a quiet machine and
no trained weights: it times one call of each architecture, batch 2 as guidance needs it, in turn, and adds the ratios
to the record; about two minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.denoisers import example_inputs
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.latency import ratio
from zoo.data import contact_sheet

from .common import Record, judge, once, spread, tiles_of

MODEL = "emoji-sd"
# name -> widths of the levels, from mild to hard; the whole model has 32, 64, 96, 96
WIDTHS = {"narrow-1": (32, 48, 80, 80), "narrow-2": (16, 48, 64, 64), "narrow-3": (16, 32, 48, 48)}
IMPORTANCES = ("magnitude", "taylor", "random")
VARIANTS = ("base", "small")
FINETUNE = {"steps": 400, "batch": 16, "lr": 1e-3}
SEED, N = 0, 160
SAMPLER = {"steps": 8, "guidance": 3.0}
SHOWN = ("lion", "pizza", "red heart", "rocket", "sunflower", "smiling face with sunglasses", "house", "guitar")


def rows() -> list[dict]:
    """Return the architectures, without figures."""
    narrow = [
        {
            "name": f"{name} {importance}",
            "kind": "narrow",
            "ratio_name": name,
            "widths": list(widths),
            "importance": importance,
        }
        for name, widths in WIDTHS.items()
        for importance in IMPORTANCES
    ]
    short = [{"name": f"bk-sdm {v}", "kind": "blocks", "ratio_name": v, "importance": None} for v in VARIANTS]
    return narrow + short


def cut(row: dict, unet, task: DenoisingTask | None):
    """Prune a copy of `unet` as the row says; without a task, only the shapes are meant."""
    if row["kind"] == "blocks":
        return pl.remove_blocks(unet, row["ratio_name"])
    importance = row["importance"] if task else "random"
    return pl.prune_structured(unet, widths=row["widths"], importance=importance, task=task, seed=SEED)


def prompts() -> list[str]:
    """Return the captions that are drawn: spread over all, the shown ones among them."""
    known = pb.captions(MODEL)
    chosen = [known[i] for i in spread(N, len(known))]
    rest = [name for name in SHOWN if name not in chosen]
    return chosen[: N - len(rest)] + rest


def of_row(row: dict, folder: Path) -> dict:
    """Prune, judge, fine-tune, judge again."""
    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)
    images, captions, asked = pb.training_images(MODEL), pb.captions(MODEL), prompts()
    # the same pictures for every row: drawn once by the first
    kept = folder / "unpruned.pt"
    if not kept.is_file():
        torch.save(judge(pipe, clip, asked, captions, None, **SAMPLER).pictures, kept)
    wanted = torch.load(kept, weights_only=True)
    small = cut(row, pipe.unet, DenoisingTask.of(pipe, images, captions))
    sizes = {"params": small.params_after, "macs": small.macs_after}
    pipe.unet = small.unet

    def look(when: str) -> dict:
        found = judge(pipe, clip, asked, captions, wanted, real=images, **SAMPLER)
        tiles = found.pictures[[asked.index(name) for name in SHOWN]]
        contact_sheet(tiles, columns=len(SHOWN)).save(folder / f"{row['name'].replace(' ', '-')}-{when}.png")
        return found.intervals()

    before = look("before")
    run = folder / row["name"].replace(" ", "-")
    log = pl.finetune(pipe, images, captions, seed=SEED, folder=run, **FINETUNE)
    small.unet.save_pretrained(run)
    return {**row, **sizes, "before": before, "after": look("after"), "loss": log.curve()}


def measure(
    out: Path, work: Path, what: Literal["quality", "latency"] = "quality", repeats: int = 60, device: str = "cpu"
) -> Record:
    """Prune, train and judge; or time."""
    if what == "latency":
        return latency(out, repeats, device)
    work.mkdir(parents=True, exist_ok=True)
    whole = pl.count_macs(pl.load(MODEL).unet)
    found = []
    for row in rows():
        print(row["name"], flush=True)
        result = once(work / f"{row['name'].replace(' ', '-')}.json", lambda r=row: of_row(r, work))
        result["ratio"] = 1 - result["macs"] / whole.macs
        result["params_ratio"] = 1 - result["params"] / whole.params
        found.append({**result, "finetune": {**FINETUNE, "seed": SEED}, "latency_times_as_fast": None})
    reference = once(work / "reference.json", lambda: unpruned(work))
    names = [r["name"].replace(" ", "-") for r in found if r["importance"] in ("magnitude", None)]
    sheets = [work / "unpruned.png", *(work / f"{n}-{when}.png" for n in names for when in ("before", "after"))]
    tiles = torch.cat([tiles_of(s) for s in sheets])
    contact_sheet(tiles, columns=len(SHOWN)).save(out.with_suffix(".webp"), quality=90, method=6)
    data = {
        "rows": found,
        "unpruned": {"params": whole.params, "macs": whole.macs, **reference},
        "model": MODEL,
        "sampler": SAMPLER,
        "shown": list(SHOWN),
        "sheet": out.with_suffix(".webp").name,
        "sheet_rows": ["unpruned", *(f"{n} {when}" for n in names for when in ("before", "after"))],
        "features": "mini-CLIP",
        "macs_convention": "with attention products, batch 1, one call",
        "latency": None,
    }
    return Record(data, seeds=[SEED], n=N)


def unpruned(work: Path) -> dict:
    """Judge the whole model."""
    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)
    asked = prompts()
    found = judge(pipe, clip, asked, pb.captions(MODEL), None, real=pb.training_images(MODEL), **SAMPLER)
    tiles = found.pictures[[asked.index(name) for name in SHOWN]]
    contact_sheet(tiles, columns=len(SHOWN)).save(work / "unpruned.png")
    return {name: value for name, value in found.intervals().items() if name not in ("ssim", "psnr_db")}


def latency(path: Path, repeats: int, device: str) -> Record:
    """Add latencies to the record."""
    record = pl.load_record(path)
    unet = pl.load(MODEL, device=device).unet
    models, places = {"unpruned": unet}, {}
    for row in record["data"]["rows"]:
        places[row["name"]] = row["ratio_name"]
        if row["ratio_name"] not in models:  # importance decides which channels stay, not how many
            models[row["ratio_name"]] = cut(row, unet, None).unet
    inputs = example_inputs(unet, batch=2, device=device)
    calls = {name: torch.no_grad()(lambda m=model: m(**inputs)) for name, model in models.items()}
    times = pl.measure_latency(calls, repeats=repeats, warmup=5, device=device)
    faster = {name: ratio(times["unpruned"], times[name]).to_dict() for name in models if name != "unpruned"}
    for row in record["data"]["rows"]:
        row["latency_times_as_fast"] = faster[places[row["name"]]]
    record["data"]["latency"] = {
        "what": "one call of the denoiser, batch 2",
        "calls": {name: t.to_dict() for name, t in times.items()},
        "passport": pl.passport(seeds=[], n=repeats, device=device),
    }
    return Record(record["data"], seeds=record["passport"]["seeds"], n=record["passport"]["n"])
