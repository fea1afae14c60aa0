"""How gate training collapses: the published recipe with stronger and weaker settings, watched gate by gate.

Ten steps of the sampler; every run is kept, so an interrupted benchmark goes on.
"""

from __future__ import annotations

from pathlib import Path

import pruning_lib as pl
from pruning_lib.steps.schedule import decode_table
from pruning_lib.steps.training import PrunerCollapseError

from .common import GUIDANCE, MODEL, Record, pruner_prompts
from .pruner_training import Judge

STEPS, BUDGET = 10, 0.3
BASE = {"recipe": "published", "iterations": 16, "accumulation": 1, "width": 128}
RUNS = {
    "AdamW, rate 0.01": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.0, "floor": 0.0},
    "SGD, rate 0.2": {"floor": 0.0},
    "SGD, rate 0.02": {"lr": 0.02, "floor": 0.0},
    "gates with a budget": {"recipe": "best", "keep_macs": BUDGET, "batch": 1},
}


def measure(work: Path) -> Record:
    """Train, and watch the gates."""
    pipe, found = pl.load(MODEL), []
    judge, given = Judge(pipe, STEPS), {"steps": STEPS, "guidance_scale": GUIDANCE}
    for name, what in RUNS.items():
        how = {**BASE, **what}
        if how["recipe"] == "best":
            how = {key: value for key, value in how.items() if key not in ("width", "accumulation")}
        options = {**given, "on_collapse": "go on", "folder": work / name.replace(" ", "-"), **how}
        trained = pl.train_pruner(pipe, pruner_prompts(), **options)
        on = decode_table(trained.history[-1]["rows"])
        figures = judge(trained.grid.schedule(on, method="gates"))
        found.append({"name": name, "settings": what, "history": trained.history, "at_last": figures})
    told = ""
    try:  # what the guard says
        pl.train_pruner(pipe, pruner_prompts(), **given, **BASE, **RUNS["AdamW, rate 0.01"])
    except PrunerCollapseError as error:
        told = str(error)
    data = {"steps": STEPS, "budget": BUDGET, "runs": found, "message": told}
    return Record(data, seeds=[0, 1000], n=len(judge.prompts))
