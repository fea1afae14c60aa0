"""Records of chapter 8 on training: LD-Pruner's Table 3 and Figure 3 in miniature.

    python -m benchmarks operator_training

Three kinds of runs with the same steps, data order, noise and learning rate: what the score leaves at two shares of
MACs with the weights preserved, the very same architectures from random weights, and the unpruned architecture from
random weights, whose curve the paper's Figure 3 compares with. All are judged every 50 steps, with averaged weights.
The first kind is shared with operator_removal, which must have run before, below the same --work. About two minutes a
run on one CPU core.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from .common import Record, once
from .operator_runs import (
    EVERY,
    FINETUNE,
    LEVELS,
    SAMPLER,
    SEEDS,
    SHOWN,
    Bench,
    N,
    against,
    from_random_weights,
    interval,
    of_plan,
    pruned,
    rankings,
    sheet_of,
    summary,
    train,
    with_unet,
)
from .operator_scores import MODEL, SCORES

STARTS = {"preserved": "weights preserved", "scratch": "random weights"}


def names() -> dict[str, dict]:
    """Return run -> what it is; the most telling ones first."""
    pruned_ones = {
        f"{'score' if start == 'preserved' else 'scratch'}-{level}": {"start": start, "level": level}
        for level in LEVELS
        for start in STARTS
    }
    return pruned_ones | {"original": {"start": "scratch", "level": 0.0}}


def training(bench: Bench, scores: Path, work: Path) -> None:
    """Do the runs that are missing."""
    orders = rankings(bench, scores, work / "sweep")
    for name, what in names().items():
        for its in SEEDS:
            if what["level"]:
                small, plan = pruned(bench, "score", orders, what["level"])
                once(work / f"plan-{what['level']}.json", lambda p=plan: of_plan(bench, p, _free(work)))
            else:
                small = with_unet(bench.pipe, copy.deepcopy(bench.pipe.unet))
            if what["start"] == "scratch":
                from_random_weights(small.unet, its)
            train(bench, small, name, its, work, curve=True)


def _free(work: Path) -> list[str]:
    return json.loads((work / "sweep" / "free.json").read_text("utf-8"))["free"]


def measure(out: Path, work: Path = Path("_build/operator-runs"), scores: Path = SCORES) -> Record:
    """Train, and put together what the runs gave."""
    bench, rows, done = Bench.load(), [], {}
    training(bench, scores, work)
    for name, what in names().items():
        done[name] = {s: json.loads((work / f"{name}-{s}.json").read_text("utf-8")) for s in SEEDS}
        runs = list(done[name].values())
        moments = list(zip(*(run["looks"] for run in runs), strict=True))
        plan = json.loads((work / f"plan-{what['level']}.json").read_text("utf-8")) if what["level"] else None
        rows.append(
            {
                "name": name,
                **what,
                "plan": plan,
                "seeds": list(done[name]),
                "steps": runs[0]["steps"],
                "judged": [summary(list(looks)) for looks in moments],
                "loss": [run["loss"] for run in runs],
                "seconds": [run["seconds"] for run in runs],
            }
        )
    gains = {}
    for level in LEVELS:
        kept, fresh = done[f"score-{level}"], done[f"scratch-{level}"]
        both = [seed for seed in kept if seed in fresh]
        if both:
            pairs = [[run[s]["looks"][-1] for s in both] for run in (kept, fresh)]
            gains[str(level)] = against(pairs[1], pairs[0])
    look, shown = bench.look(bench.pipe), _sheet(out.with_suffix(".webp"), work)
    data = {
        "shown": list(SHOWN),
        "sheet": out.with_suffix(".webp").name,
        "sheet_rows": shown,
        "runs": rows,
        "preserved_minus_scratch": gains,
        "starts": STARTS,
        "levels": list(LEVELS),
        "unpruned": {"clip_score": interval(look, "clip_score"), "frechet": look["frechet"]},
        "model": MODEL,
        "sampler": SAMPLER,
        "finetune": FINETUNE,
        "every": EVERY,
        "features": "mini-CLIP",
        "interval": "over pictures, each averaged over the seeds of training",
    }
    return Record(data, seeds=list(SEEDS), n=N)


def _sheet(to: Path, work: Path) -> list[str]:
    """Save pictures before and after training at the smaller cut, a row each; return the names of the rows."""
    level, sweep = LEVELS[0], work / "sweep"
    rows = [("unpruned", sweep / "unpruned.png")]
    for ranking in ("score", "output", "random-0", "bk-sdm"):
        before = sweep / ("bk-sdm.png" if ranking == "bk-sdm" else f"{ranking}-all-macs_ratio-{level}.png")
        rows += [(f"{ranking} before", before), (f"{ranking} after", work / f"{ranking}-{level}-0.png")]
    rows.append(("scratch after", work / f"scratch-{level}-0.png"))
    rows = [(name, file) for name, file in rows if file.is_file()]
    sheet_of([file for _, file in rows], to)
    return [name for name, _ in rows]
