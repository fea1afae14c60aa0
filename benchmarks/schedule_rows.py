"""What the comparison of schedules compares: rows, budgets, prompts; and how one row is made and judged."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning_book.judge import generate
from pruning_book.rivals.fewer_steps import fewer_steps
from pruning_book.rivals.schedule_search import genetic_search, random_search
from pruning_lib.files import write_whole
from pruning_lib.steps.budget import deepcache, uniform
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.schedule import Grid, Schedule
from pruning_lib.steps.search import cell_importance, local_search
from pruning_lib.steps.training import TrainedPruner

from .common import GUIDANCE, compare, every_nth, held_out, pruner_prompts

STEPS = (20, 50)
BUDGETS = (0.5, 0.35, 0.25, 0.2, 0.15)
N = 256  # held-out prompts
SEARCHED = 8  # prompts that searches see
IMAGES = {20: 320, 50: 240}  # that a search may draw
STRIP = (0.7, 0.6, 0.4, 0.3)  # further budgets, for a strip of pictures: ours only, with fewer images
IMAGES_STRIP = 120
SHOWN = ("lion", "pizza", "rocket", "sunflower", "guitar", "house")
# row -> how the page calls it
ROWS = {
    "ddim": "fewer steps, DDIM",
    "dpm": "fewer steps, DPM-Solver++",
    "uniform": "uniform reuse",
    "deepcache": "DeepCache",
    "random": "random search",
    "genetic": "genetic search",
    "dip-go": "DiP-GO's recipe, shortened",
    "ours": "ours",
}
WITH_HELD = "-held"  # ends the name of a row with the schedule of another one, but the prediction held
# further rows: what one ingredient is worth
EXTRA = {
    "uniform-held": "uniform reuse, prediction held",
    "dip-go-held": "DiP-GO's recipe, shortened, prediction held",
    "dip-go-best": "DiP-GO's scores, our recipe",
    "dip-go-best-held": "DiP-GO's scores, our recipe, prediction held",
    "ours-output": "ours, searched and run with the output held",
}
SCORES = {"dip-go": "published", "dip-go-best": "best"}
HELD = ("random", "genetic", "ours")  # rows whose skipped calls hold the prediction, besides those that say so


def search_prompts() -> list[str]:
    """Return the prompts of searches."""
    return every_nth(pruner_prompts(), SEARCHED)


def prompts() -> list[str]:
    """Return captions that no search and no pruner saw, spread over all; the shown ones among them."""
    others = held_out()
    chosen = every_nth(others, N)
    for name in SHOWN:
        if name in others and name not in chosen:
            chosen[next(i for i, c in enumerate(chosen) if c not in SHOWN)] = name
    return chosen


def shown() -> list[str]:
    """Return the prompts whose pictures are kept."""
    asked = prompts()
    found = [name for name in SHOWN if name in asked]
    return found + [name for name in asked if name not in found][: len(SHOWN) - len(found)]


def cell_name(steps: int, budget: float, row: str) -> str:
    """Name the files of one row."""
    return f"{steps}-{budget:g}-{row}"


def hold_of(row: str) -> str:
    """Return what a row's skipped calls hold on to."""
    return "prediction" if row in HELD or row.endswith(WITH_HELD) else "value"


def schedule_file(work: Path, steps: int, budget: float, row: str) -> Path:
    """Return where a row's schedule is kept."""
    return work / "schedules" / f"{cell_name(steps, budget, row.removesuffix(WITH_HELD))}.json"


def make(pipe, grid: Grid, budget: float, row: str, work: Path, scores: Path):
    """Return a row's rival, with `.steps`, `.applied(pipe)` and `.macs_ratio()`; searches are done once and kept.

    None: its trained scores are not there.
    """
    if row in ("ddim", "dpm"):
        return fewer_steps(pipe, grid, budget, DPMSolverMultistepScheduler if row == "dpm" else None)
    file = schedule_file(work, grid.steps, budget, row)
    if not file.is_file():
        row_of = row.removesuffix(WITH_HELD)
        if row_of in SCORES:
            schedule = _trained(grid, budget, SCORES[row_of], scores)
        elif row_of in ("uniform", "deepcache"):
            schedule = uniform(grid, budget) if row_of == "uniform" else deepcache(grid, keep_macs=budget)
        else:
            schedule = _searched(pipe, grid, budget, row_of, work, scores)
        if schedule is None:
            return None
        file.parent.mkdir(parents=True, exist_ok=True)
        schedule.save(file)
    return Schedule.load(file).holding(hold_of(row))


def _trained(grid: Grid, budget: float, recipe: str, scores: Path) -> Schedule | None:
    file = scores / f"pruner_scores_{recipe}-{grid.steps}.safetensors"
    return TrainedPruner.load(file).schedule(keep_macs=budget) if file.is_file() else None


def _starts(grid: Grid, budget: float, row: str, work: Path, scores: Path) -> list[Schedule]:
    """Return what a search of ours may begin with besides simple schedules: trained scores, and its smaller budget."""
    smaller = [schedule_file(work, grid.steps, b, row) for b in sorted(BUDGETS, reverse=True) if b < budget]
    found = [Schedule.load(file) for file in smaller if file.is_file()][:1]
    trained = _trained(grid, budget, "best", scores)
    return found + ([trained] if trained is not None else [])


def _searched(pipe, grid: Grid, budget: float, row: str, work: Path, scores: Path) -> Schedule:
    hold = hold_of(row)
    evaluator = Evaluator(pipe, search_prompts(), grid, guidance_scale=GUIDANCE, hold=hold)
    evaluator(grid.full())  # the unpruned latents are drawn outside the clock: all searches need them
    evaluator.images = 0
    search = {"random": random_search, "genetic": genetic_search}.get(row, local_search)
    given, more = {"guidance_scale": GUIDANCE, "hold": hold}, {}
    if search is local_search:
        more["starts"] = _starts(grid, budget, row, work, scores)
        more["worth"] = lambda on: cell_importance(pipe, grid, on, search_prompts(), **given)
    start = time.process_time()
    images = IMAGES_STRIP if budget in STRIP else IMAGES[grid.steps]
    found = search(grid, budget, evaluator, images=images, seed=0, **more)
    seconds = time.process_time() - start
    return replace(found, provenance={**found.provenance, "cpu_seconds": round(seconds, 1)})


def unpruned_file(work: Path, steps: int) -> Path:
    """Return where the unpruned pictures are kept."""
    return quality_file(work, f"{steps}-unpruned")


def quality_file(work: Path, name: str) -> Path:
    """Return where the figures of a row are kept."""
    return work / "quality" / f"{name}.safetensors"


def judged(pipe, clip, rival, wanted: Tensor | None, file: Path) -> dict[str, Tensor]:
    """Draw the held-out prompts with a rival, and compare; done once and kept in `file`.

    Returns:
        "ssim", "psnr_db", "clip_score" `[N]`, "features" `[N, 128]`, "tiles" uint8 `[shown, 3, 64, 64]`; and, for the
        unpruned pipeline (wanted None), "pictures".
    """
    if not file.is_file():
        asked = prompts()
        with rival.applied(pipe):
            pictures = generate(pipe, asked, steps=rival.steps, guidance=GUIDANCE)
        found = compare(clip, pictures, pictures if wanted is None else wanted, asked)
        found["features"] = clip.features(pictures)
        found["tiles"] = pictures[[asked.index(name) for name in shown()]]
        if wanted is None:
            found["pictures"] = pictures
        with write_whole(file) as part:
            save_file({k: v.contiguous() for k, v in found.items()}, part, {"made": json.dumps(rival.macs_ratio())})
    return load_file(file)
