"""Record of chapters 5 and 6: narrower and shorter denoisers, before and after a short fine-tune.

Three ratios with three kinds of importance, and BK-SDM's blocks; about 25 minutes on one CPU core. `--what latency`
needs a quiet machine and adds the ratios of times of one call, batch 2, to the record; two minutes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.denoisers import example_inputs
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.latency import ratio

from .common import MACS_CONVENTION, MODEL, Record, asked_for, judge, once, once_drawn, save_row, save_sheet, tiles_of

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
        {"name": f"{name} {kind}", "kind": "narrow", "ratio_name": name, "widths": list(widths), "importance": kind}
        for name, widths in WIDTHS.items()
        for kind in IMPORTANCES
    ]
    short = [{"name": f"bk-sdm {v}", "kind": "blocks", "ratio_name": v, "importance": None} for v in VARIANTS]
    return narrow + short


def cut(row: dict, unet, task: DenoisingTask | None):
    """Prune a copy of `unet` as the row says; without a task, only the shapes are meant."""
    if row["kind"] == "blocks":
        return pl.remove_blocks(unet, row["ratio_name"])
    importance = row["importance"] if task else "random"
    return pl.prune_structured(unet, widths=row["widths"], importance=importance, task=task, seed=SEED)


def looker(pipe, folder: Path, wanted: torch.Tensor | None):
    """Return a function that judges a pipeline and saves the shown pictures as a row of that name."""
    clip, real, asked = pb.load_clip(MODEL), pb.training_images(MODEL), asked_for(N, SHOWN)

    def look(name: str) -> dict:
        found = judge(pipe, clip, asked, pb.captions(MODEL), wanted, real=real, **SAMPLER)
        save_row(found.pictures, folder / f"{name}.png", asked, SHOWN)
        return found.intervals()

    return look


def of_row(row: dict, folder: Path) -> dict:
    """Prune, judge, fine-tune, judge again."""
    pipe, images, captions = pl.load(MODEL), pb.training_images(MODEL), pb.captions(MODEL)

    def whole() -> torch.Tensor:
        return judge(pipe, pb.load_clip(MODEL), asked_for(N, SHOWN), captions, None, **SAMPLER).pictures

    wanted = once_drawn(folder / "unpruned.pt", whole)  # the same pictures for every row: drawn once by the first
    small = cut(row, pipe.unet, DenoisingTask.of(pipe, images, captions))
    sizes = {"params": small.params_after, "macs": small.macs_after}
    pipe.unet = small.unet
    look, run = looker(pipe, folder, wanted), folder / file_name(row)
    before = look(f"{run.name}-before")
    log = pl.finetune(pipe, images, captions, seed=SEED, folder=run, **FINETUNE)
    small.unet.save_pretrained(run)
    return {**row, **sizes, "before": before, "after": look(f"{run.name}-after"), "loss": log.curve()}


def file_name(row: dict) -> str:
    """Return how a row's files begin."""
    return row["name"].replace(" ", "-")


def unpruned(work: Path) -> dict:
    """Judge the whole model."""
    found = looker(pl.load(MODEL), work, None)("unpruned")
    return {name: value for name, value in found.items() if name not in ("ssim", "psnr_db")}


def measure(
    out: Path, work: Path, what: Literal["quality", "latency"] = "quality", repeats: int = 60, device: str = "cpu"
) -> Record:
    """Prune, train and judge; or time."""
    if what == "latency":
        return latency(out, repeats, device)
    whole, found = pl.count_macs(pl.load(MODEL).unet), []
    for row in rows():
        result = once(work / f"{file_name(row)}.json", of_row, row, work)
        result["ratio"] = 1 - result["macs"] / whole.macs
        result["params_ratio"] = 1 - result["params"] / whole.params
        found.append({**result, "finetune": {**FINETUNE, "seed": SEED}, "latency_times_as_fast": None})
    reference, sheet = once(work / "reference.json", unpruned, work), out.with_suffix(".webp")
    names = [file_name(row) for row in found if row["importance"] in ("magnitude", None)]
    moments = [(name, when) for name in names for when in ("before", "after")]
    files = ["unpruned.png", *(f"{name}-{when}.png" for name, when in moments)]
    save_sheet([tiles_of(work / file) for file in files], sheet)
    data = {
        "rows": found,
        "unpruned": {"params": whole.params, "macs": whole.macs, **reference},
        **{"model": MODEL, "sampler": SAMPLER, "shown": list(SHOWN), "sheet": sheet.name},
        "sheet_rows": ["unpruned", *(f"{name} {when}" for name, when in moments)],
        **{"features": "mini-CLIP", "macs_convention": MACS_CONVENTION, "latency": None},
    }
    return Record(data, seeds=[SEED], n=N)


def latency(path: Path, repeats: int, device: str) -> Record:
    """Add latencies to the record."""
    record = pl.load_record(path)
    rows, unet = record["data"]["rows"], pl.load(MODEL, device=device).unet
    models = {"unpruned": unet}
    for row in rows:
        if row["ratio_name"] not in models:  # importance decides which channels stay, not how many
            models[row["ratio_name"]] = cut(row, unet, None).unet
    inputs = example_inputs(unet, batch=2, device=device)
    calls = {name: torch.no_grad()(partial(model, **inputs)) for name, model in models.items()}
    times = pl.measure_latency(calls, repeats=repeats, warmup=5, device=device)
    for row in rows:
        row["latency_times_as_fast"] = ratio(times["unpruned"], times[row["ratio_name"]]).to_dict()
    record["data"]["latency"] = {
        "what": "one call of the denoiser, batch 2",
        "calls": {name: found.to_dict() for name, found in times.items()},
        "passport": pl.passport(seeds=[], n=repeats, device=device),
    }
    return Record(record["data"], seeds=record["passport"]["seeds"], n=record["passport"]["n"])
