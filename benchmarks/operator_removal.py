"""Record of chapter 8: quality against how much is removed, for LD-Pruner's score and for rankings that know less.

    python benchmarks/operator_removal.py --stage sweep
    python benchmarks/operator_removal.py --stage train --seed 0
    python benchmarks/operator_removal.py --stage record

The first stage cuts without training: by number of operators and by share of MACs, in the whole model and outside the
blocks that are free to remove; about 30 minutes on one CPU core. The second trains what each ranking leaves at two
shares of MACs, one of them that of BK-SDM's choice, with one seed of training; about a minute a run. Without a file of
scores (`benchmarks/operator_scores.py`) both do the controls only, and go on when it is there. The third writes
the record operator_removal.json and the sheet of pictures of the chapter's explorer from what has been done.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from judged import once
from operator_runs import (
    BK_LEVEL,
    FREE_SSIM,
    LEVELS,
    RANKINGS,
    RATIOS,
    RESULTS,
    SCORES,
    SHOWN,
    Bench,
    interval,
    of_plan,
    pruned,
    rankings,
    train,
    trained,
)
from operator_summary import record
from torch import Tensor

import pruning_lib as pl
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.plan import Plan
from pruning_lib.operators.remove import remove_operators
from zoo.assemble import contact_sheet

COUNTS = (1, 4, 8, 16, 24, 32)
OUTSIDE = (0.1, 0.2, 0.3)  # shares of MACs in the scope "outside" of the free blocks
COUNTED = ("score", "output", "params", "random-0")  # rankings that are cut by count too
BLOCKS = ("down_blocks.", "mid_block", "up_blocks.")


def free_blocks(bench: Bench) -> dict:
    """Change everything in one block at a time; a block without which the pictures stay as they were is free."""
    names = [name for name in pl.count_macs(bench.pipe.unet).by_block() if name.startswith(BLOCKS)]
    found = {}
    for name in names:
        inside = [op.path for op in bench.operators if op.path.startswith(f"{name}.")]
        plan = choose(
            sorted(inside, key=lambda p: p.count(".")), bench.operators, bench.pipe.unet, count=_outer(inside)
        )
        shares = reductions(bench.pipe.unet, plan)
        look = bench.look(remove_operators(bench.pipe, plan))
        found[name] = {"ssim": interval(look, "ssim"), "macs_ratio": shares[0], "params_ratio": shares[1]}
    free = [name for name, row in found.items() if row["ssim"]["value"] >= FREE_SSIM]
    return {"blocks": found, "free": free, "threshold_ssim": FREE_SSIM}


def _outer(paths: list[str]) -> int:
    return sum(not any(path.startswith(f"{other}.") for other in paths) for path in paths)


def stops(bench: Bench, orders: dict[str, list[str]], free: list[str]) -> Iterator[tuple[str, Plan, dict]]:
    """Yield name, plan and description of every point of the sweep."""
    inside = tuple(f"{block}." for block in free)
    for ranking, order in orders.items():
        for scope, ratios in (("all", RATIOS), ("outside", () if ranking == "score-per-mac" else OUTSIDE)):
            paths = order if scope == "all" else [path for path in order if not path.startswith(inside)]
            counts = COUNTS if scope == "all" and ranking in COUNTED else ()
            budgets = [("macs_ratio", r) for r in ratios] + [("count", k) for k in counts]
            for budget, asked in budgets:
                try:
                    plan = choose(paths, bench.operators, bench.pipe.unet, **{budget: asked})
                except ValueError:  # the whole ranking does not meet it
                    continue
                row = {"ranking": ranking, "scope": scope, "budget": budget, "asked": asked}
                yield f"{ranking}-{scope}-{budget}-{asked}", plan, row


def sweep(scores: Path, work: Path, part: str) -> None:
    """Run the first stage."""
    bench, work = Bench.load(), work / "sweep"
    work.mkdir(parents=True, exist_ok=True)
    contact_sheet(shown(bench), columns=len(SHOWN)).save(work / "unpruned.png")
    free = once(work / "free.json", lambda: free_blocks(bench))["free"]
    orders = {name: order for name, order in rankings(bench, scores, work).items() if part in ("", name)}
    for name, plan, row in stops(bench, orders, free):
        print(name, flush=True)
        once(
            work / f"{name}.json",
            lambda n=name, p=plan, r=row: {
                **r,
                **of_plan(bench, p, free),
                **bench.look(remove_operators(bench.pipe, p), work / f"{n}.png"),
            },
        )
    once(work / "bk-sdm.json", lambda: {"ranking": "bk-sdm", **_hand_made(bench, work / "bk-sdm.png")})


def _hand_made(bench: Bench, sheet: Path) -> dict:
    small, sizes = pruned(bench, "bk-sdm", {}, 0)
    return {**sizes, "scope": "all", "budget": "macs_ratio", "asked": None, **bench.look(small, sheet)}


def shown(bench: Bench) -> Tensor:
    """Return the unpruned pictures of the shown captions."""
    return bench.wanted[[bench.asked.index(name) for name in SHOWN]]


def training(scores: Path, work: Path, seed: int | None, only: str = "") -> None:
    """Run the second stage."""
    bench = Bench.load()
    orders = rankings(bench, scores, work / "sweep")
    for level in (*LEVELS, 0.0):
        for ranking in [*orders, "bk-sdm", "none"]:
            own = {"bk-sdm": BK_LEVEL, "none": 0.0}.get(ranking)  # those that have one size only
            unwanted = ranking == "score-per-mac" or only not in ("", ranking)
            if unwanted or (level != own if own is not None else level == 0):
                continue
            for its in trained(ranking):
                if seed is None or its == seed:
                    small, _ = pruned(bench, ranking, orders, level)
                    train(bench, small, f"{ranking}-{level}", its, work, curve=ranking == "score")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("sweep", "train", "record"), required=True)
    parser.add_argument("--scores", type=Path, default=SCORES, help="file that Scores.save wrote")
    parser.add_argument("--ranking", default="", choices=("", *RANKINGS), help="only this one (default: all)")
    parser.add_argument("--seed", type=int, help="train: only this seed (default: all)")
    parser.add_argument("--work", type=Path, default=Path("_build/operator-runs"), help="folder of single results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    if arguments.stage == "sweep":
        sweep(arguments.scores, arguments.work, arguments.ranking)
    elif arguments.stage == "train":
        training(arguments.scores, arguments.work, arguments.seed, arguments.ranking)
    else:
        print(record(arguments.out / "operator_removal.json", arguments.work))
