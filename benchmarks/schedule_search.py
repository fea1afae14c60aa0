"""Record of chapter 14: what searching by gradients costs and gives, beside searching by chance and by breeding.

At the ratios of the paper's table, on 20 steps of DDIM. Goes on from schedule_comparison, in the same --work.
"""

from __future__ import annotations

from pathlib import Path

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.training import TrainedPruner

from . import schedule_rows as cells
from .common import GUIDANCE, MODEL, RESULTS, Record, interval
from .schedule_rows import SCORES, judged

STEPS = 20
BUDGETS = (0.2, 0.15, 0.1)
METHODS = ("random", "genetic", "dip-go", "dip-go-best", "ours")


def measure(
    work: Path = Path("_build/schedule-comparison"), scores: Path = RESULTS, budgets: tuple[float, ...] = BUDGETS
) -> Record:
    """Search and judge what is missing."""
    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)
    grid, rows = pl.grid_of(pipe, STEPS), []
    unpruned = judged(pipe, clip, grid.full(), None, cells.unpruned_file(work, STEPS))
    evaluator = Evaluator(pipe, cells.search_prompts(), grid, guidance_scale=GUIDANCE)
    for budget in budgets:
        for row in METHODS:
            schedule = cells.make(pipe, grid, budget, row, work, scores)
            if schedule is None:
                continue
            name, told = cells.cell_name(STEPS, budget, row), schedule.provenance
            found = judged(pipe, clip, schedule, unpruned["pictures"], cells.quality_file(work, name))
            if row in SCORES:
                cost = _training(scores, row)
            else:
                cost = {**{key: told[key] for key in ("images", "cpu_seconds", "trace")}, "moves": told.get("moves")}
            loss = told["loss"] if "loss" in told and row not in SCORES else evaluator(schedule)
            about = {"budget": budget, "method": row, "macs_ratio": schedule.macs_ratio(), "latent_mse": loss, **cost}
            figures = {key: interval(found[key]) for key in ("ssim", "clip_score")}
            rows.append({**about, **figures, "rows": schedule.to_dict()["rows"]})
    names = {**cells.ROWS, "dip-go-best": "DiP-GO's scores, our recipe", "ours": "local search with gradients"}
    data = {
        **{"steps": STEPS, "guidance": GUIDANCE, "budgets": budgets, "names": {m: names[m] for m in METHODS}},
        **{"n": cells.N, "images": cells.IMAGES[STEPS], "prompts": cells.SEARCHED},
        **{"unpruned_clip_score": interval(unpruned["clip_score"]), "rows": rows},
    }
    return Record(data, seeds=[0, 1000], n=cells.N)


def _training(scores: Path, row: str) -> dict:
    """Return what training the scores took: images that went through the model and back, and seconds."""
    trained = TrainedPruner.load(scores / f"pruner_scores_{SCORES[row]}-{STEPS}.safetensors")
    told = trained.settings
    images = len(trained.history) * told.get("batch", 1) * told.get("accumulation", 1)
    return {"images_with_gradient": images, "images": None, "cpu_seconds": trained.history[-1]["seconds"]}
