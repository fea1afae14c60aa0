"""What makes gate training work: our recipe with one thing changed at a time, and the published one over alpha.

Ten steps of the sampler, one budget, few iterations: small enough to train many pruners.
"""

from __future__ import annotations

from pathlib import Path

import pruning_lib as pl
from pruning_lib.steps.budget import evenly, within_budget
from pruning_lib.steps.training import TrainedPruner

from .common import GUIDANCE, MODEL, Record, pruner_prompts
from .pruner_training import JUDGED, Judge

STEPS, BUDGET = 10, 0.3
OURS = {"recipe": "best", "keep_macs": BUDGET, "iterations": 8, "batch": 2}
THEIRS = {"recipe": "published", "iterations": 12, "accumulation": 1, "on_collapse": "go on"}
# group -> name -> settings
GROUPS = {
    "one thing changed": {
        "our recipe": {},
        "shut gates leak nothing": {"leak": 0.0},
        "shut gates leak half": {"leak": 0.5},
        "gradient not per MAC": {"per_mac": False},
        "begins with cells by chance": {"start": "chance"},
        "one iteration": {"iterations": 1},
        "one prompt at a time": {"batch": 1},
        "twice the prompts": {"batch": 4},
        "the network in place of the table": {
            **{"network": "attention", "width": 128},
            **{"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        },
        "the budget falls: 0.6, 0.4, 0.3": {"keep_macs": (0.6, 0.4, BUDGET), "iterations": 9},
        "AdamW": {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.01},
    },
    "loss": {name: {"loss": name} for name in ("l1", "l2", "ssim", "ssim+l1")},
    "alpha": {f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.1, 0.5, 1.0, 2.0)},
    "temperature": {f"temperature {t:g}": {"temperature": t} for t in (0.25, 4.0)},
}
PUBLISHED = ("alpha", "temperature")  # groups that change the published recipe
REFRESHED = 5  # every 5th call is made whole, whatever the scores say, so that no kept value is older
# what is refreshed -> group and name of the run that gives the scores
REFRESHES = {"our recipe": ("one thing changed", "our recipe"), "as published": ("alpha", "alpha 1")}


def trained_pruner(pipe, work: Path, group: str, name: str) -> tuple[TrainedPruner, dict]:
    """Train a run, or load what it gave; return it with its settings."""
    how = {**(THEIRS if group in PUBLISHED else OURS), **GROUPS[group][name]}
    target = work / f"{group}-{name}.safetensors".replace(" ", "-")
    if not target.is_file():
        options = {"steps": STEPS, "guidance_scale": GUIDANCE, "folder": target.with_suffix("")}
        pl.train_pruner(pipe, pruner_prompts(), **options, **how).save(target)
    return TrainedPruner.load(target), how


def measure(work: Path) -> Record:
    """Train what is missing, and judge every run's schedule on held-out prompts."""
    pipe, rows = pl.load(MODEL), []
    judge = Judge(pipe, STEPS)
    for group, names in GROUPS.items():
        for name in names:
            trained, how = trained_pruner(pipe, work, group, name)
            figures, last = judge(trained.schedule(BUDGET)), trained.history[-1]
            told = {"collapsed": last["collapsed"], "kept_at_last": last["macs_ratio"], "seconds": last["seconds"]}
            count = trained.settings["iterations"] * trained.settings["batch"] * trained.settings["accumulation"]
            rows.append({"group": group, "name": name, "settings": how, "generations": count, **told, **figures})
    for name, run in REFRESHES.items():
        trained, _ = trained_pruner(pipe, work, *run)
        scores = trained.scores_for(BUDGET).clone()
        scores[::REFRESHED] = scores.max() + 1
        figures = judge(trained.grid.schedule(within_budget(scores, trained.grid, BUDGET)))
        rows.append({"group": "refreshed", "name": name, "every": REFRESHED, **figures})
    even = judge(judge.net.grid.schedule(evenly(judge.net.grid, BUDGET), method="uniform"))
    data = {"steps": STEPS, "budget": BUDGET, "judged": JUDGED[STEPS], "prompts": len(pruner_prompts()), "rows": rows}
    return Record({**data, "evenly": even}, seeds=[0, 1000], n=JUDGED[STEPS])
