"""Record of chapter 8: LD-Pruner's Table 3 and Figure 3 in miniature.

What the score leaves at two shares of MACs, with its weights and from random ones, and the unpruned architecture from
random weights, trained alike. Goes on from operator_removal, in the same --work; two minutes a run on one CPU core.
"""

from __future__ import annotations

from pathlib import Path

from . import operator_runs as runs
from .common import MODEL, Record, initialised, interval, once, read, save_sheet, tiles_of
from .operator_runs import LEVELS, SEEDS, Bench, against, pruned, summary
from .operator_scores import SCORES

STARTS = {"preserved": "weights preserved", "scratch": "random weights"}
NAMES = {"score": "preserved", "scratch": "scratch"}
# run -> what it is; the most telling ones first
RUNS = {
    **{f"{name}-{level}": (start, level) for level in LEVELS for name, start in NAMES.items()},
    "original": ("scratch", 0.0),
}


def training(bench: Bench, scores: Path, work: Path) -> None:
    """Do the runs that are missing."""
    orders, free = runs.rankings(bench, scores, work / "sweep"), read(work / "sweep" / "free.json")["free"]
    for name, (start, level) in RUNS.items():
        for seed in SEEDS:
            small, plan = pruned(bench, "score" if level else "none", orders, level)
            if level:
                once(work / f"plan-{level}.json", runs.of_plan, bench, plan, free)
            if start == "scratch":
                initialised(small.unet, seed)
            runs.train(bench, small, name, seed, work, curve=True)


def measure(out: Path, work: Path = Path("_build/operator-runs"), scores: Path = SCORES) -> Record:
    """Train, and put together what the runs gave."""
    bench, rows = Bench.load(), []
    training(bench, scores, work)
    done = {name: [read(work / f"{name}-{seed}.json") for seed in SEEDS] for name in RUNS}
    for name, (start, level) in RUNS.items():
        looks = zip(*(run["looks"] for run in done[name]), strict=True)
        plan = read(work / f"plan-{level}.json") if level else None
        row = {"name": name, "start": start, "level": level, "plan": plan, "seeds": list(SEEDS)}
        row |= {"steps": done[name][0]["steps"], "judged": [summary(list(moment)) for moment in looks]}
        rows.append({**row, **{key: [run[key] for run in done[name]] for key in ("loss", "seconds")}})
    last = {name: [run["looks"][-1] for run in found] for name, found in done.items()}
    gains = {str(level): against(last[f"scratch-{level}"], last[f"score-{level}"]) for level in LEVELS}
    look, target = bench.look(bench.pipe), out.with_suffix(".webp")
    data = {
        **{"shown": list(runs.SHOWN), "sheet": target.name, "sheet_rows": save_pictures(target, work), "runs": rows},
        **{"preserved_minus_scratch": gains, "starts": STARTS, "levels": list(LEVELS)},
        "unpruned": {"clip_score": interval(look["figures"]["clip_score"]), "frechet": look["frechet"]},
        **{"model": MODEL, "sampler": runs.SAMPLER, "finetune": runs.FINETUNE, "every": runs.EVERY},
        **{"features": "mini-CLIP", "interval": runs.AVERAGED},
    }
    return Record(data, seeds=list(SEEDS), n=runs.N)


def save_pictures(to: Path, work: Path) -> list[str]:
    """Save pictures before and after training at the smaller cut, a row each; return the names of the rows."""
    level, sweep = LEVELS[0], work / "sweep"
    rows = {"unpruned": sweep / "unpruned.png"}
    for ranking in ("score", "output", "random-0", "bk-sdm"):
        rows[f"{ranking} before"] = sweep / f"{ranking}{'' if ranking == 'bk-sdm' else f'-all-macs_ratio-{level}'}.png"
        rows[f"{ranking} after"] = work / f"{ranking}-{level}-0.png"
    rows["scratch after"] = work / f"scratch-{level}-0.png"
    rows = {name: file for name, file in rows.items() if file.is_file()}
    save_sheet([tiles_of(file) for file in rows.values()], to)
    return list(rows)
