"""Record of chapter 14: what searching by gradients costs and gives, beside searching by chance and by breeding.

    python -m benchmarks schedule_search

The ratios are those of the paper's table, 0.80, 0.85 and 0.90 removed, on emoji-sd with 20 steps of DDIM. Searches and
judged pictures are shared with schedule_comparison through the folder of --work: only what is missing is
done. Rows whose scores have not been trained yet are left out.
"""

from __future__ import annotations

from pathlib import Path

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.interval import bootstrap_interval
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.schedule import grid_of
from pruning_lib.steps.training import TrainedPruner

from .common import RESULTS, Record
from .schedule_rows import GUIDANCE, IMAGES, MODEL, ROWS, SCORES, SEARCHED, N, cell_name, judged, make, search_prompts

STEPS = 20
BUDGETS = (0.2, 0.15, 0.1)
METHODS = ("random", "genetic", "dip-go", "dip-go-best", "ours")


def measure(
    work: Path = Path("_build/schedule-comparison"), scores: Path = RESULTS, budgets: tuple[float, ...] = BUDGETS
) -> Record:
    """Search and judge what is missing."""
    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)
    pipe.set_progress_bar_config(disable=True)
    grid = grid_of(pipe, STEPS)
    unpruned = judged(pipe, clip, grid.full(), None, work / "quality" / f"{STEPS}-unpruned.safetensors")
    clip_unpruned = bootstrap_interval(unpruned["clip_score"]).to_dict()
    evaluator = Evaluator(pipe, search_prompts(), grid, guidance_scale=GUIDANCE)
    rows = []
    for budget in budgets:
        for row in METHODS:
            made = make(pipe, grid, budget, row, work, scores)
            if made is None:
                continue
            name = cell_name(STEPS, budget, row)
            found = judged(pipe, clip, made.rival, unpruned["pictures"], work / "quality" / f"{name}.safetensors")
            told = made.note["schedule"]["provenance"]
            cost = (
                _training(scores, row)
                if row in SCORES
                else {
                    "images": told["images"],
                    "cpu_seconds": told["cpu_seconds"],
                    "trace": told["trace"],
                    "moves": told.get("moves"),
                }
            )
            loss = told["loss"] if "loss" in told and row not in SCORES else evaluator(made.rival)
            rows.append(
                {
                    "budget": budget,
                    "method": row,
                    "macs_ratio": made.rival.macs_ratio(),
                    "latent_mse": loss,
                    **cost,
                    "ssim": bootstrap_interval(found["ssim"]).to_dict(),
                    "clip_score": bootstrap_interval(found["clip_score"]).to_dict(),
                    "rows": made.note["schedule"]["rows"],
                }
            )
            print(name, {k: rows[-1][k] for k in ("images", "cpu_seconds", "latent_mse")}, flush=True)
    names = {**ROWS, "dip-go-best": "DiP-GO's scores, our recipe", "ours": "local search with gradients"}
    data = {
        "steps": STEPS,
        "guidance": GUIDANCE,
        "budgets": budgets,
        "names": {m: names[m] for m in METHODS},
        "n": N,
        "images": IMAGES[STEPS],
        "prompts": SEARCHED,
        "unpruned_clip_score": clip_unpruned,
        "rows": rows,
    }
    return Record(data, seeds=[0, 1000], n=N)


def _training(scores: Path, row: str) -> dict:
    """Return what training the scores took: images that went through the model and back, and seconds."""
    trained = TrainedPruner.load(scores / f"pruner_scores_{SCORES[row]}-{STEPS}.safetensors")
    told = trained.settings
    images = len(trained.history) * told.get("batch", 1) * told.get("accumulation", 1)
    return {"images_with_gradient": images, "images": None, "cpu_seconds": trained.history[-1]["seconds"]}
