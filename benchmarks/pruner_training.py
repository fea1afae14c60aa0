"""Train pruners for emoji-sd in full, as published and by our recipe, and record how it went.

Training is resumable: the same command goes on. The trained scores lie beside the record, one file per run.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch

import pruning_lib as pl
from pruning_lib.quality import ssim
from pruning_lib.steps.budget import evenly
from pruning_lib.steps.schedule import decode_table, grid_of
from pruning_lib.steps.supernet import SuperNet
from pruning_lib.steps.training import TrainedPruner

from .common import GUIDANCE, MODEL, Record, every_nth, held_out, interval, once, pruner_prompts, save_sheet

# The denoiser costs the same in every run, so iterations are what a run may spend; the paper's has 500.
RUNS = {
    "best-20": {"steps": 20, "recipe": "best", "iterations": 40},
    "best-50": {"steps": 50, "recipe": "best", "iterations": 20},
    "published-20": {"steps": 20, "recipe": "published", "iterations": 60, "on_collapse": "go on"},
    "published-50": {"steps": 50, "recipe": "published", "iterations": 14, "on_collapse": "go on"},
}
BUDGETS = (0.5, 0.35, 0.25, 0.2, 0.15)
JUDGED, SHOWN = {10: 24, 20: 24, 50: 12}, 6  # held-out prompts for a figure, by steps, and how many are shown
STRIP, STRIP_STEPS = 6, 20  # moments at which pictures are drawn, of the runs with so many steps


def trained_pruner(pipe, name: str, work: Path) -> TrainedPruner:
    """Train a run, or load what it gave."""
    target = work / f"pruner_scores_{name}.safetensors"
    if not target.is_file():
        options = {"guidance_scale": GUIDANCE, "folder": work / name, **RUNS[name]}
        pl.train_pruner(pipe, pruner_prompts(), **options).save(target)
    return TrainedPruner.load(target)


class Judge:
    """Draws held-out prompts with a schedule and compares with the unpruned pictures."""

    def __init__(self, pipe, steps: int):
        self.net = SuperNet(pipe, grid_of(pipe, steps), guidance_scale=GUIDANCE)
        self.prompts = every_nth(held_out(), JUDGED[steps])
        self.latents, self.wanted = self.draw()

    @torch.no_grad()
    def draw(self, schedule=None, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents and pictures of the first `count` prompts; prompt i starts from noise of seed i."""
        prompts = self.prompts[:count]
        with schedule.applied(self.net.pipe) if schedule else nullcontext():
            latents = self.net.unroll.latents(prompts, range(len(prompts)))
        return latents, self.net.pictures(latents)

    def __call__(self, schedule) -> dict:
        """Return figures with intervals."""
        latents, pictures = self.draw(schedule)
        error = (latents - self.latents).square().flatten(1).mean(1)
        figures = {"ssim": interval(ssim(pictures, self.wanted)), "latent_mse": interval(error)}
        return {"macs_ratio": schedule.macs_ratio(), **figures}


def _tiles(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures[:SHOWN] * 255).round().to(torch.uint8)


def measure(out: Path, work: Path) -> Record:
    """Train what is missing, draw with the schedules of every run, and judge."""
    pipe, runs, evenly_kept, sheet, judges = pl.load(MODEL), {}, {}, [], {}

    def judged(key: str, judge: Judge, schedule) -> dict:
        return once(work / f"judged-{key}.json", judge, schedule)

    for name, what in RUNS.items():
        trained, steps = trained_pruner(pipe, name, work), what["steps"]
        grid = trained.grid
        if steps not in judges:
            judges[steps] = Judge(pipe, steps)
        judge, moments = judges[steps], []
        even = {b: grid.schedule(evenly(grid, b), method="uniform") for b in BUDGETS}
        evenly_kept[str(steps)] = [judged(f"evenly-{steps}-{b}", judge, s) for b, s in even.items()]
        if steps == STRIP_STEPS:
            if not sheet:
                sheet.append(_tiles(judge.wanted))
            last = len(trained.history) - 1
            for at in sorted({round(i * last / (STRIP - 1)) for i in range(STRIP)}):
                on = decode_table(trained.history[at]["rows"])
                moments.append({"step": at + 1, "row": len(sheet), "macs_ratio": grid.macs_ratio(on)})
                sheet.append(_tiles(judge.draw(grid.schedule(on, method="gates"), SHOWN)[1]))
        by_budget = [judged(f"{name}-{b}", judge, trained.schedule(b)) for b in BUDGETS]
        found = {"settings": trained.settings, "history": trained.history, "moments": moments, "by_budget": by_budget}
        runs[name] = {**what, **found}
        trained.save(out.parent / f"pruner_scores_{name}.safetensors")
    save_sheet(sheet, out.with_suffix(".webp"), quality=85)
    shown = every_nth(held_out(), JUDGED[20])[:SHOWN]
    data = {
        **{"guidance": GUIDANCE, "prompts": len(pruner_prompts()), "runs": runs, "evenly": evenly_kept},
        **{"judged": JUDGED, "budgets": BUDGETS, "shown": shown, "sheet": out.with_suffix(".webp").name},
    }
    return Record(data, seeds=[0, 1000], n=min(JUDGED.values()))
