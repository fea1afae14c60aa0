"""Record of chapter 12: pictures and their likeness to the unpruned ones for many schedules of ten steps.

Three more are found by a local search, which sees a few of every fourth caption only; none of those is drawn for the
record. About ten minutes on one CPU core.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

import pruning_lib as pl
from pruning_book.widgets.schedule_editor import PROMPTS, PaintedStop, SchedulePainter, presets, scheduled_pictures
from pruning_book.widgets.sparsity import GUIDANCE, MODEL, STEPS, spread_captions
from pruning_lib.quality import ssim
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.schedule import Grid, Schedule, encode_table, grid_of
from pruning_lib.steps.search import local_search

from .common import Record, held_out, likeness, pictures_once, pruner_prompts, unit

BUDGETS = (0.5, 0.35, 0.2)
SEARCH_PROMPTS = 8
QUALITY = 92  # of the sheet: its pictures are looked at, and every figure was computed before


def measure(work: Path, pictures: int = 32, images: int = 1600, device: str = "cpu") -> Record:
    """Search, draw and judge: so many captions by each schedule, so many images by each search."""
    return painted(captions_of(pictures), images, work, device)


def painted(captions: Sequence[str], images: int, work: Path, device: str = "cpu") -> Record:
    """Return the record of these captions, at least two, the first ones those of the painter."""
    pipe = pl.load(MODEL, device=device)
    grid = grid_of(pipe, STEPS)
    tables = presets(grid)
    starts = [grid.schedule(on) for _, on, _ in tables.values()]
    for keep_macs in BUDGETS:
        found = searched(pipe, grid, keep_macs, starts, images, work)
        note = f"Found by a local search that drew {found.provenance['images']} images of other captions."
        tables[f"local search, within {100 * keep_macs:.0f} %"] = ("searched", found.on, note)
    drawn, stops = {}, []
    for name, (_, on, _) in tqdm(tables.items()):
        schedule = grid.schedule(on)
        told = repr([encode_table(schedule.live()), list(captions)])  # dead work makes no other picture
        drawn[name] = pictures_once(work, told, partial(scheduled_pictures, pipe, schedule, captions))
    whole = unit(drawn["everything"])
    for name, (group, on, note) in tables.items():
        shown, mean = likeness(ssim(whole, unit(drawn[name])), len(PROMPTS))
        stops.append(PaintedStop(name, group, encode_table(on), shown, mean, note))
    images = torch.cat([torch.stack([found[i] for found in drawn.values()]) for i in range(len(PROMPTS))])
    about = {"model": MODEL, "n": len(captions), "title": "as recorded"}
    painter = SchedulePainter("schedule-painter", grid, stops, PROMPTS, images, **about)
    more = {"quality": QUALITY, "steps": STEPS, "guidance": GUIDANCE, "captions": list(captions)}
    return Record(more, seeds=list(range(len(captions))), n=len(captions), device=device, explorer=painter)


def searched(pipe, grid: Grid, keep_macs: float, starts: Sequence[Schedule], images: int, work: Path) -> Schedule:
    """Return the best schedule within a budget that a local search finds, searched once."""
    file = work / f"{grid.steps}-{keep_macs}-{images}.json"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        prompts = spread_captions(pruner_prompts(), SEARCH_PROMPTS)
        evaluator = Evaluator(pipe, prompts, grid, guidance_scale=GUIDANCE)
        best = local_search(grid, keep_macs, evaluator, images=images, starts=starts)
        told = {**best.provenance, "images": evaluator.images, "prompts": prompts}
        grid.schedule(grid.live(best.on), **told).save(file)
    return Schedule.load(file)


def captions_of(n: int) -> list[str]:
    """Return n captions: the painter's prompts, then others spread over all that no pruner is trained with."""
    known = held_out()
    if missing := set(PROMPTS) - set(known):
        raise ValueError(f"{sorted(missing)} are prompts that pruners are trained with; show others.")
    return [*PROMPTS, *(c for c in spread_captions(known, len(known)) if c not in PROMPTS)][:n]
