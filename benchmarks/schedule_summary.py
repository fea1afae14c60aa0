"""From judged cells to the record of the comparison: figures with intervals, and differences picture by picture."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from schedule_rows import (
    BUDGETS,
    EXTRA,
    GUIDANCE,
    IMAGES,
    MODEL,
    ROWS,
    SEARCHED,
    STEPS,
    STRIP,
    N,
    cell_name,
    held_out,
    reuse_of,
    schedule_file,
    search_prompts,
    shown,
)
from torch import Tensor

import pruning_book as pb
import pruning_lib as pl
from pruning_book.frechet import frechet_distance
from pruning_lib.interval import bootstrap_interval, quantile_pair, resamples
from pruning_lib.steps.budget import deepcache
from pruning_lib.steps.schedule import grid_of
from zoo.assemble import contact_sheet

FIGURES = ("ssim", "psnr_db", "clip_score")  # one number per picture; higher is better
DISTANCES = ("frechet_real", "frechet_unpruned")  # of all pictures; lower is better
BOOT = 100


class Distances:
    """Fréchet distances on mini-CLIP features, of the same resamples for every row, so that rows can be subtracted.

    Args:
        real: features of the real pictures, `[m, d]`, never resampled.
        unpruned: of the unpruned model's pictures, `[N, d]`, resampled together with the row's.
    """

    def __init__(self, real: Tensor, unpruned: Tensor):
        self.real, self.unpruned = real, unpruned
        self.draws = torch.cat(list(resamples(len(unpruned), n_boot=BOOT, seed=0)))

    def __call__(self, features: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Return, for both distances, the value and its resamples `[BOOT]`."""
        found = {
            "frechet_real": (features, self.real, lambda i: (features[i], self.real)),
            "frechet_unpruned": (features, self.unpruned, lambda i: (features[i], self.unpruned[i])),
        }
        return {
            name: (frechet_distance(a, b), torch.tensor([frechet_distance(*part(i)) for i in self.draws]))
            for name, (a, b, part) in found.items()
        }


def _around(value: float, found: Tensor) -> dict:
    """Return an interval; resampled distances lie too high, and are moved down by their mean excess."""
    low, high = quantile_pair(found.double() - found.double().mean() + value, 0.95)
    return {"value": value, "low": min(low, value), "high": max(high, value), "n": N, "level": 0.95}


def record(path: Path, work: Path) -> None:
    """Write what has been judged so far."""
    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)
    pipe.set_progress_bar_config(disable=True)
    real = clip.features(pb.training_images())
    data = {
        "guidance": GUIDANCE,
        "n": N,
        "budgets": BUDGETS,
        "rows": {**ROWS, **EXTRA},
        "methods": list(ROWS),
        "shown": shown(),
        "search": {"prompts": search_prompts(), "first_seed": 1000, "images": IMAGES, "per_schedule": SEARCHED},
        "prompts": held_out(),
        "unpruned": {},
        "cells": [],
        "strip": [],
    }
    sheet: list[Tensor] = []
    kept: dict[str, Tensor] = {}
    for steps in STEPS:
        file = work / "quality" / f"{steps}-unpruned.safetensors"
        if not file.is_file():
            continue
        unpruned = load_file(file)
        distances = Distances(real, unpruned["features"])
        data["unpruned"][str(steps)] = {
            "clip_score": bootstrap_interval(unpruned["clip_score"]).to_dict(),
            "frechet_real": _around(*distances(unpruned["features"])["frechet_real"]),
            "sheet_row": len(sheet),
        }
        sheet.append(unpruned["tiles"])
        for budget in BUDGETS:
            _budget(pipe, work, steps, budget, distances, data["cells"], sheet, kept)
    data |= {"sheet_rows": len(sheet), "sheet": path.with_suffix(".webp").name}
    for budget in STRIP:
        found = _schedule_of(work, "ours", budget, STEPS[0])
        if "rows" in found:
            data["strip"].append({"steps": STEPS[0], "budget": budget, "row": "ours", "reuse": "prediction", **found})
    contact_sheet(torch.cat(sheet), columns=len(shown())).save(path.with_suffix(".webp"), quality=85, method=6)
    save_file(kept, path.with_suffix(".safetensors"))  # per picture, in half precision
    print(pl.save_record(path, "schedule_comparison", data, pl.passport(seeds=[0, 1000], n=N, device="cpu")))


def _budget(
    pipe, work: Path, steps: int, budget: float, distances: Distances, cells: list, sheet: list, kept: dict
) -> None:
    """Add all rows of one budget, each with its differences from ours."""
    per_picture, spread = {}, {}
    for row in {**ROWS, **EXTRA}:
        name = cell_name(steps, budget, row)
        file = work / "quality" / f"{name}.safetensors"
        if not file.is_file():
            continue
        found = load_file(file)
        per_picture[row] = {key: found[key] for key in FIGURES}
        spread[row] = distances(found["features"])
        with safe_open(file, "pt") as opened:
            made = json.loads(opened.metadata()["made"])
        cell = {"steps": steps, "budget": budget, "row": row, "macs_ratio": made, "sheet_row": len(sheet)}
        cell |= _schedule_of(work, row, budget, steps) | {"reuse": reuse_of(row)}
        cell |= {key: bootstrap_interval(found[key]).to_dict() for key in FIGURES}
        cell |= {key: _around(*spread[row][key]) for key in DISTANCES}
        if row == "deepcache":
            cell["package_difference"] = package_difference(pipe, steps, cell)
        cells.append(cell)
        sheet.append(found["tiles"])
        kept |= {f"{name}.{key}": found[key].half() for key in FIGURES}
    if "ours" not in per_picture:
        return
    for cell in cells:
        row = cell["row"]
        if (cell["steps"], cell["budget"]) == (steps, budget) and row != "ours":
            cell["ours_minus"] = {
                key: bootstrap_interval(per_picture["ours"][key] - per_picture[row][key]).to_dict() for key in FIGURES
            } | {
                key: _around(spread["ours"][key][0] - spread[row][key][0], spread["ours"][key][1] - spread[row][key][1])
                for key in DISTANCES
            }


def package_difference(pipe, steps: int, schedule: dict) -> float | None:
    """Return the largest difference between latents of DeepCache's own package and of our pattern, in [0, inf).

    Args:
        pipe: emoji-sd.
        steps: denoising steps.
        schedule: the cell, with its table and the interval and branch it was made with.

    Returns:
        None where the package is not installed.
    """
    try:
        from DeepCache import DeepCacheSDHelper
    except ImportError:
        return None
    told, prompts = schedule["provenance"], shown()

    def latents() -> Tensor:
        noise = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        return pipe(
            prompts, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=noise, output_type="latent"
        ).images

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=told["interval"], cache_branch_id=told["branch"])
    helper.enable()
    try:
        theirs = latents()
    finally:
        helper.disable()
    with deepcache(grid_of(pipe, steps), told["interval"], told["branch"]).applied(pipe):
        return (latents() - theirs).abs().max().item()


def _schedule_of(work: Path, row: str, budget: float, steps: int) -> dict:
    """Return a cell's table as texts, and where it comes from."""
    file = schedule_file(work, steps, budget, row)
    if not file.is_file():  # fewer steps
        return {"num_inference_steps": int(steps * budget + 1e-9)}
    schedule = json.loads(file.read_text("utf-8"))
    return {"num_inference_steps": steps, "rows": schedule["rows"], "provenance": schedule["provenance"]}
