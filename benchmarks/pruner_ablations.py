"""What makes gate training work: our recipe with one thing changed at a time, and the published one over alpha.

    python benchmarks/pruner_ablations.py --stage train
    python benchmarks/pruner_ablations.py --stage record

Ten steps of the sampler, one budget, few iterations: small enough to train many pruners.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pruner_training import GUIDANCE, JUDGED, MODEL, RESULTS, Judge, pruner_prompts

import pruning_lib as pl
from pruning_lib.records import check_writable
from pruning_lib.steps.budget import evenly, within_budget
from pruning_lib.steps.training import TrainedPruner

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
            "network": "attention",
            "width": 128,
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.0,
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


def settings(group: str, name: str) -> dict[str, object]:
    """Return the settings of a run."""
    return {**(THEIRS if group in PUBLISHED else OURS), **GROUPS[group][name]}


def file_of(work: Path, group: str, name: str) -> Path:
    """Return where a run's scores are kept."""
    return work / f"{group}-{name}.safetensors".replace(" ", "-")


def train(work: Path) -> None:
    """Do the runs that are missing."""
    pipe = pl.load(MODEL)
    for group, names in GROUPS.items():
        for name in names:
            target = file_of(work, group, name)
            if target.is_file():
                continue
            how = settings(group, name)
            found = pl.train_pruner(
                pipe, pruner_prompts(), steps=STEPS, guidance_scale=GUIDANCE, folder=target.with_suffix(""), **how
            )
            found.save(target)
            print(target.stem, found.history[-1]["seconds"], flush=True)


def record(path: Path, work: Path) -> None:
    """Judge every run's schedule on held-out prompts."""
    check_writable(path)
    judge, rows = Judge(pl.load(MODEL), STEPS), []
    for group, names in GROUPS.items():
        for name in names:
            if not file_of(work, group, name).is_file():
                continue
            trained = TrainedPruner.load(file_of(work, group, name))
            figures = judge(trained.schedule(BUDGET))
            last = trained.history[-1]
            told = {"collapsed": last["collapsed"], "kept_at_last": last["macs_ratio"], "seconds": last["seconds"]}
            used = settings(group, name)
            count = trained.settings["iterations"] * trained.settings["batch"] * trained.settings["accumulation"]
            rows.append({"group": group, "name": name, "settings": used, "generations": count, **told, **figures})
            print(name, figures["ssim"]["value"], figures["latent_mse"]["value"], flush=True)
    for name, run in REFRESHES.items():
        if file_of(work, *run).is_file():
            trained = TrainedPruner.load(file_of(work, *run))
            scores = trained.scores_for(BUDGET).clone()
            scores[::REFRESHED] = scores.max() + 1
            figures = judge(trained.grid.schedule(within_budget(scores, trained.grid, BUDGET)))
            rows.append({"group": "refreshed", "name": name, "every": REFRESHED, **figures})
            print("refreshed", name, figures["ssim"]["value"], flush=True)
    even = judge(judge.net.grid.schedule(evenly(judge.net.grid, BUDGET), method="uniform"))
    data = {"steps": STEPS, "budget": BUDGET, "judged": JUDGED[STEPS], "prompts": len(pruner_prompts()), "rows": rows}
    stamp = pl.passport(seeds=[0, 1000], n=JUDGED[STEPS], device="cpu")
    print(pl.save_record(path, "pruner_ablations", {**data, "evenly": even}, stamp))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("train", "record"), required=True)
    parser.add_argument("--work", type=Path, default=Path("_build/pruner-ablations"), help="folder of single runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "train":
        train(arguments.work)
    else:
        record(arguments.out / "pruner_ablations.json", arguments.work)
