"""Record of chapter 14: schedules and their rivals at equal MACs, on prompts that no search and no training has seen.

python -m benchmarks schedule_comparison [--rows ours genetic] [--budgets 0.25]     # an hour on one CPU core
python -m benchmarks schedule_comparison --what speed     # adds times to the record; a quiet machine, ten minutes
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import pruning_book as pb
import pruning_lib as pl
from pruning_book.frechet import frechet_distance
from pruning_book.widgets.comparison import rival_of
from pruning_lib.interval import quantile_pair, resamples
from pruning_lib.latency import Latency
from pruning_lib.steps.budget import deepcache

from . import schedule_rows as table
from .common import GUIDANCE, MODEL, RESULTS, Record, in_turn, interval, latents, noise, read, save_sheet
from .gpu.ways import by_the_package
from .schedule_rows import BUDGETS, ROWS, STEPS, STRIP, N, cell_name, judged, make, quality_file, shown

NOISE, TIMED = 0, 4  # seed and pictures of a timed generation
FIGURES = ("ssim", "psnr_db", "clip_score")  # one number per picture; higher is better
DISTANCES = ("frechet_real", "frechet_unpruned")  # of all pictures; lower is better
BOOT = 100
ALL_ROWS = {**ROWS, **table.EXTRA}


def cells(pipe, clip, rows: Sequence[str], budgets: Sequence[float], work: Path, scores: Path) -> None:
    """Search and judge the cells that are missing, small budgets first; rows without trained scores are left out."""
    unknown = [row for row in rows if row not in ALL_ROWS]
    if unknown:
        raise SystemExit(f"Unknown rows: {', '.join(unknown)}. Known: {', '.join(ALL_ROWS)}.")
    for steps in STEPS:
        grid = pl.grid_of(pipe, steps)
        wanted = judged(pipe, clip, grid.full(), None, table.unpruned_file(work, steps))["pictures"]
        for row, budget in ((row, budget) for row in rows for budget in sorted(budgets)):
            name, rival = cell_name(steps, budget, row), make(pipe, grid, budget, row, work, scores)
            if rival is not None:
                judged(pipe, clip, rival, wanted, quality_file(work, name))


def measure(
    out: Path,
    work: Path = Path("_build/schedule-comparison"),
    what: Literal["quality", "speed"] = "quality",
    rows: tuple[str, ...] = tuple(ROWS),
    budgets: tuple[float, ...] = BUDGETS,
    scores: Path = RESULTS,
    repeats: int = 5,
) -> Record:
    """Search, judge and put together; or time."""
    pipe = pl.load(MODEL)
    if what == "speed":
        return speed(pipe, out, repeats)
    clip = pb.load_clip(MODEL)
    cells(pipe, clip, rows, budgets, work, scores)
    return summary(pipe, clip, out, work)


def distances_to(real: Tensor, unpruned: Tensor, features: Tensor) -> dict[str, tuple[float, Tensor]]:
    """Return both Fréchet distances on mini-CLIP features `[N, d]`, each with its resamples `[BOOT]`.

    All rows have the same resamples, so that they can be subtracted; real pictures are never resampled, the unpruned
    model's together with the row's.
    """
    draws = torch.cat(list(resamples(len(unpruned), n_boot=BOOT, seed=0)))
    to_real = torch.tensor([frechet_distance(features[i], real) for i in draws])
    to_unpruned = torch.tensor([frechet_distance(features[i], unpruned[i]) for i in draws])
    return {
        "frechet_real": (frechet_distance(features, real), to_real),
        "frechet_unpruned": (frechet_distance(features, unpruned), to_unpruned),
    }


def _around(value: float, found: Tensor) -> dict:
    """Return an interval; resampled distances lie too high, and are moved down by their mean excess."""
    low, high = quantile_pair(found.double() - found.double().mean() + value, 0.95)
    return {"value": value, "low": min(low, value), "high": max(high, value), "n": N, "level": 0.95}


def summary(pipe, clip, path: Path, work: Path) -> Record:
    """Put together what has been judged so far."""
    real, target = clip.features(pb.training_images()), path.with_suffix(".webp")
    unpruned, found, sheet, kept = {}, [], [], {}
    for steps in STEPS:
        if not table.unpruned_file(work, steps).is_file():
            continue
        whole = load_file(table.unpruned_file(work, steps))
        distances = partial(distances_to, real, whole["features"])
        unpruned[str(steps)] = {
            "clip_score": interval(whole["clip_score"]),
            "frechet_real": _around(*distances(whole["features"])["frechet_real"]),
            "sheet_row": len(sheet),
        }
        sheet.append(whole["tiles"])
        for budget in BUDGETS:
            found += _budget(pipe, work, steps, budget, distances, sheet, kept)
    strip = [(budget, _schedule_of(work, "ours", budget, STEPS[0])) for budget in STRIP]
    search = {"prompts": table.search_prompts(), "first_seed": 1000}
    about = {"steps": STEPS[0], "row": "ours", "hold": "prediction"}
    data = {
        **{"guidance": GUIDANCE, "n": N, "budgets": BUDGETS, "rows": ALL_ROWS, "methods": list(ROWS), "shown": shown()},
        "search": {**search, "images": table.IMAGES, "per_schedule": table.SEARCHED},
        **{"prompts": table.prompts(), "unpruned": unpruned, "cells": found},
        "strip": [{**about, "budget": budget, **told} for budget, told in strip if "rows" in told],
        **{"sheet_rows": len(sheet), "sheet": target.name},
    }
    save_sheet(sheet, target, quality=85)
    save_file(kept, path.with_suffix(".safetensors"))  # per picture, in half precision
    return Record(data, seeds=[0, 1000], n=N)


def _budget(pipe, work: Path, steps: int, budget: float, distances: Callable, sheet: list, kept: dict) -> list[dict]:
    """Return all rows of one budget, each with its differences from ours; add their pictures and figures."""
    cells, per_picture, spread = [], {}, {}
    for row in ALL_ROWS:
        name = cell_name(steps, budget, row)
        file = quality_file(work, name)
        if not file.is_file():
            continue
        found = load_file(file)
        per_picture[row] = {key: found[key] for key in FIGURES}
        spread[row] = distances(found["features"])
        with safe_open(file, "pt") as opened:
            made = json.loads(opened.metadata()["made"])
        cell = {"steps": steps, "budget": budget, "row": row, "macs_ratio": made, "sheet_row": len(sheet)}
        cell |= _schedule_of(work, row, budget, steps) | {"hold": table.hold_of(row)}
        cell |= {key: interval(found[key]) for key in FIGURES}
        cell |= {key: _around(*spread[row][key]) for key in DISTANCES}
        if row == "deepcache":
            cell["package_difference"] = package_difference(pipe, steps, cell["provenance"])
        cells.append(cell)
        sheet.append(found["tiles"])
        kept |= {f"{name}.{key}": found[key].half() for key in FIGURES}
    for cell in cells if "ours" in per_picture else ():
        row = cell["row"]
        if row != "ours":
            ours, theirs = per_picture["ours"], per_picture[row]
            cell["ours_minus"] = {key: interval(ours[key] - theirs[key]) for key in FIGURES}
            for key in DISTANCES:
                (ours, ours_found), (theirs, found) = spread["ours"][key], spread[row][key]
                cell["ours_minus"][key] = _around(ours - theirs, ours_found - found)
    return cells


def package_difference(pipe, steps: int, told: dict) -> float:
    """Return the largest difference between latents of DeepCache's own package and of our pattern, in [0, inf).

    `told` is the schedule's provenance, with the interval and branch it was made with.
    """
    pattern = told["interval"], told["branch"]
    with by_the_package(pipe, *pattern):
        theirs = latents(pipe, shown(), steps)
    with deepcache(pl.grid_of(pipe, steps), *pattern).applied(pipe):
        return (latents(pipe, shown(), steps) - theirs).abs().max().item()


def _schedule_of(work: Path, row: str, budget: float, steps: int) -> dict:
    """Return a cell's table as texts, and where it comes from."""
    file = table.schedule_file(work, steps, budget, row)
    if not file.is_file():  # fewer steps
        return {"num_inference_steps": int(steps * budget + 1e-9)}
    schedule = read(file)
    return {"num_inference_steps": steps, "rows": schedule["rows"], "provenance": schedule["provenance"]}


def speed(pipe, path: Path, repeats: int) -> Record:
    """Time every row of the record against the unpruned generation, in turn, and add the times to the record."""
    record, times = pl.load_record(path), {}
    found = record["data"]
    for steps in STEPS:
        grid = pl.grid_of(pipe, steps)
        for row in ROWS:  # variations of a row cost what the row costs
            cells = [cell for cell in found["cells"] if (cell["steps"], cell["row"]) == (steps, row)]
            if not cells:
                continue
            # A shared machine is faster now and slower then: each row has the unpruned generation beside it.
            rivals = {f"{steps}-unpruned": grid.full()}
            rivals |= {cell_name(steps, cell["budget"], row): rival_of(cell, grid) for cell in cells}
            for what in ("denoising", "generation"):
                for name, timed in _timed(pipe, rivals, found["shown"][:TIMED], what, repeats).items():
                    times.setdefault(name, {})[what] = timed
    stamp = pl.passport(seeds=[NOISE], n=repeats, device="cpu")
    took = {"times": times, "pictures": TIMED, "threads": 1, "passport": stamp}
    return Record({**found, "speed": took}, seeds=record["passport"]["seeds"], n=record["passport"]["n"])


def _timed(pipe, rivals: dict, asked: list[str], what: str, repeats: int) -> dict[str, dict]:
    """Return each rival's latency, and how many times as fast as the first it is."""
    calls = {name: _call(pipe, rival, asked, what) for name, rival in rivals.items()}
    first = next(iter(calls))
    calls[first]()
    return in_turn(calls, Latency.to_dict, repeats=repeats, warmup=0, device="cpu")


def _call(pipe, rival, asked: list[str], what: str):
    """Return a generation; of kind "denoising", without reading the prompts and without decoding."""
    given: dict[str, object] = {"prompt": asked, "output_type": "pil"}
    if what == "denoising":
        wanted, unwanted = pipe.encode_prompt(asked, pipe.device, 1, True)
        given = {"prompt_embeds": wanted, "negative_prompt_embeds": unwanted, "output_type": "latent"}

    def call() -> object:
        options = {"num_inference_steps": rival.steps, "guidance_scale": GUIDANCE}
        with rival.applied(pipe):
            return pipe(**given, **options, generator=noise(len(asked), NOISE)).images

    return call
