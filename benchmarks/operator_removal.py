"""Record of chapter 8: quality against how much is removed, for LD-Pruner's score and for rankings that know less.

    python -m benchmarks operator_removal

First it cuts without training: by number of operators and by share of MACs, in the whole model and outside the blocks
that are free to remove; about 30 minutes on one CPU core. Then it trains what each ranking leaves at two shares of
MACs, one of them that of BK-SDM's choice; about a minute a run. Every result is kept, so an interrupted run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import pruning_lib as pl
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.plan import Plan
from pruning_lib.operators.remove import remove_operators
from zoo.data import contact_sheet

from .common import Record, once, tiles_of
from .operator_runs import (
    BK_LEVEL,
    BK_SDM,
    FINETUNE,
    FREE_SSIM,
    LEVELS,
    RANKINGS,
    RATIOS,
    SAMPLER,
    SEEDS,
    SHOWN,
    Bench,
    N,
    against,
    interval,
    of_plan,
    pruned,
    rankings,
    summary,
    train,
    trained,
)
from .operator_scores import MODEL, SCORES

COUNTS = (1, 4, 8, 16, 24, 32)
OUTSIDE = (0.1, 0.2, 0.3)  # shares of MACs in the scope "outside" of the free blocks
COUNTED = ("score", "output", "params", "random-0")  # rankings that are cut by count too
BLOCKS = ("down_blocks.", "mid_block", "up_blocks.")
THINGS = ("lion", "pizza", "rocket", "house")
PIECE, PIECE_OF = 16, 0.3  # pictures kept one by one, and the share of MACs that was removed
EXPLORED = ("score", "output", "params", "random-0")


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


def sweep(bench: Bench, scores: Path, work: Path) -> None:
    """Cut without training, and keep how the pictures are."""
    work.mkdir(parents=True, exist_ok=True)
    contact_sheet(shown(bench), columns=len(SHOWN)).save(work / "unpruned.png")
    free = once(work / "free.json", lambda: free_blocks(bench))["free"]
    for name, plan, row in stops(bench, rankings(bench, scores, work), free):
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


def training(bench: Bench, scores: Path, work: Path) -> None:
    """Train what each ranking leaves."""
    orders = rankings(bench, scores, work / "sweep")
    for level in (*LEVELS, 0.0):
        for ranking in [*orders, "bk-sdm", "none"]:
            own = {"bk-sdm": BK_LEVEL, "none": 0.0}.get(ranking)  # those that have one size only
            if ranking == "score-per-mac" or (level != own if own is not None else level == 0):
                continue
            for seed in trained(ranking):
                small, _ = pruned(bench, ranking, orders, level)
                train(bench, small, f"{ranking}-{level}", seed, work, curve=ranking == "score")


def _rows(files: list[Path]) -> list[dict]:
    """Return the points of the sweep, each with the score's advantage at the same stop where it is there."""
    loaded = {file.stem: json.loads(file.read_text("utf-8")) for file in files}
    rows = []
    for name, row in loaded.items():
        same = loaded.get("score-" + name.removeprefix(row["ranking"] + "-"))
        if row["ranking"] == "bk-sdm":
            same = loaded.get(f"score-all-macs_ratio-{BK_LEVEL}")
        rest = {k: v for k, v in row.items() if k not in ("figures", "frechet")}
        rest |= {"figures": summary([row])}
        rows.append(rest | {"score_minus_this": against([row], [same]) if same else None})
    return rows


def _trained_rows(work: Path) -> list[dict]:
    rows, first = [], {}
    for level in (0.0, *LEVELS):
        for ranking in ("score", *(r for r in RANKINGS if r != "score")):
            files = [work / f"{ranking}-{level}-{s}.json" for s in trained(ranking)]
            done = [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]
            if not done:
                continue
            looks = [run["looks"][-1] for run in done]
            first.setdefault(level, looks if ranking == "score" else None)
            row = {"ranking": ranking, "level": level, "seeds": trained(ranking)[: len(done)], "after": summary(looks)}
            row["steps"], row["seconds"] = done[0]["steps"][-1], [run["seconds"] for run in done]
            row["score_minus_this"] = against(looks, first[level]) if first[level] else None
            rows.append(row)
    return rows


def explorer(rows: list[dict], whole: dict, folder: Path) -> SweepExplorer:
    """Return the figure that opens the chapter: a thing, a ranking, a share of MACs, and the picture without it."""
    places = {
        (row["ranking"], row["asked"]): row for row in rows if row["scope"] == "all" and row["budget"] == "macs_ratio"
    }
    stops = [0.0, *RATIOS]
    unpruned = tiles_of(folder / "unpruned.png")
    tiles, each = [], []
    for thing in THINGS:
        column = SHOWN.index(thing)
        for ranking in EXPLORED:
            tiles.append(unpruned[column])
            tiles += [tiles_of(folder / f"{ranking}-all-macs_ratio-{r}.png")[column] for r in RATIOS]
            each += [whole, *(places[ranking, r] for r in RATIOS)]

    def judged(name: str, label: str, digits: int) -> Metric:
        found = [row["figures"][name] for row in each]
        ends = {end: [f[end] for f in found] for end in ("value", "low", "high")}
        return Metric(
            name,
            ends["value"],
            label=label,
            low=ends["low"],
            high=ends["high"],
            interval="95 % interval",
            n=N,
            digits=digits,
        )

    metrics = [
        Metric("macs", [100 * row["macs_ratio"] for row in each], label="MACs removed", unit="%", digits=1),
        judged("ssim", f"SSIM to the unpruned, {N} pictures", 3),
        judged("clip_score", "CLIP score", 1),
        Metric("count", [row["count"] for row in each], label="operators changed", digits=0),
    ]
    axes = [
        Axis("thing", THINGS, label="Prompt"),
        Axis("ranking", EXPLORED, label="Chosen by", labels=[RANKINGS[name] for name in EXPLORED]),
        Axis("removed", [round(100 * stop) for stop in stops], label="MACs to remove", unit="%"),
    ]
    return SweepExplorer("cutting", axes, torch.stack(tiles), metrics, title="as recorded")


def measure(work: Path = Path("_build/operator-runs"), scores: Path = SCORES) -> Record:
    """Cut, train, and put together what they gave."""
    bench, folder = Bench.load(), work / "sweep"
    sweep(bench, scores, folder)
    training(bench, scores, work)
    files = sorted(f for f in folder.glob("*.json") if f.stem not in ("free", "output-ranking"))
    rows = _rows(files)
    look = bench.look(bench.pipe)
    data = {
        "rows": rows,
        "trained": _trained_rows(work),
        "free": json.loads((folder / "free.json").read_text("utf-8")),
        "unpruned": {
            "params": bench.operators.base.params,
            "macs": pl.count_macs(bench.pipe.unet).macs,
            "n_operators": len(bench.operators),
            "clip_score": interval(look, "clip_score"),
            "top5": interval(look, "top5"),
            "frechet": look["frechet"],
        },
        "rankings": RANKINGS,
        "levels": list(LEVELS),
        "bk_sdm": BK_SDM,
        "bk_level": BK_LEVEL,
        "model": MODEL,
        "sampler": SAMPLER,
        "finetune": FINETUNE,
        "interval": "over pictures, each averaged over the seeds of training",
        "macs_convention": "with attention products, batch 1, one call",
        "features": "mini-CLIP",
    }
    first = json.loads((folder / f"score-all-macs_ratio-{PIECE_OF}.json").read_text("utf-8"))
    # single pictures, which the chapter draws again: picture i starts from noise of seed i
    ssim = first["figures"]["ssim"][:PIECE]
    data["slice"] = {"asked": PIECE_OF, "captions": bench.asked[:PIECE], "ssim": ssim}
    whole = {"macs_ratio": 0.0, "count": 0, "figures": summary([look])}
    return Record(data, seeds=list(SEEDS), n=N, explorer=explorer(rows, whole, folder))
