"""Record of chapter 8: quality against how much is removed, for LD-Pruner's score and for rankings that know less.

Cuts without training, by number of operators and by share of MACs (30 minutes on one CPU core), and trains what each
ranking leaves at two shares of MACs (a minute a run).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

import pruning_lib as pl
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.operators.budget import choose, reductions

from . import operator_runs as runs
from .common import MACS_CONVENTION, MODEL, Record, interval, mean_metric, once, read, save_row, tiles_of
from .operator_runs import BK_LEVEL, RANKINGS, RATIOS, SHOWN, Bench, against, summary
from .operator_scores import SCORES

COUNTS = (1, 4, 8, 16, 24, 32)
OUTSIDE = (0.1, 0.2, 0.3)  # shares of MACs in the scope "outside" of the free blocks
COUNTED = ("score", "output", "params", "random-0")  # rankings that are cut by count too, and that the figure shows
BLOCKS = ("down_blocks.", "mid_block", "up_blocks.")
FREE_SSIM = 0.99  # a block without which pictures stay this close is free to remove
THINGS = ("lion", "pizza", "rocket", "house")
PIECE, PIECE_OF = 16, 0.3  # pictures kept one by one, and the share of MACs that was removed


def free_blocks(bench: Bench) -> dict:
    """Change everything in one block at a time; a block without which the pictures stay as they were is free."""
    names, found = [name for name in pl.count_macs(bench.pipe.unet).by_block() if name.startswith(BLOCKS)], {}
    for name in names:
        inside = sorted(
            (op.path for op in bench.operators if op.path.startswith(f"{name}.")), key=lambda path: path.count(".")
        )
        outer = sum(not any(path.startswith(f"{other}.") for other in inside) for path in inside)
        plan = choose(inside, bench.operators, bench.pipe.unet, count=outer)
        macs, params = reductions(bench.pipe.unet, plan)
        figures = bench.look(pl.remove_operators(bench.pipe, plan))["figures"]
        found[name] = {"ssim": interval(figures["ssim"]), "macs_ratio": macs, "params_ratio": params}
    free = [name for name, row in found.items() if row["ssim"]["value"] >= FREE_SSIM]
    return {"blocks": found, "free": free, "threshold_ssim": FREE_SSIM}


def stops(bench: Bench, orders: dict[str, list[str]], free: list[str]) -> Iterator[tuple[str, pl.Plan, dict]]:
    """Yield name, plan and description of every point of the sweep."""
    inside = tuple(f"{block}." for block in free)
    for ranking, order in orders.items():
        for scope, ratios in (("all", RATIOS), ("outside", () if ranking == "score-per-mac" else OUTSIDE)):
            paths = order if scope == "all" else [path for path in order if not path.startswith(inside)]
            counts = COUNTS if scope == "all" and ranking in COUNTED else ()
            for budget, asked in [*(("macs_ratio", r) for r in ratios), *(("count", k) for k in counts)]:
                try:
                    plan = choose(paths, bench.operators, bench.pipe.unet, **{budget: asked})
                except ValueError:  # the whole ranking does not meet it
                    continue
                row = {"ranking": ranking, "scope": scope, "budget": budget, "asked": asked}
                yield f"{ranking}-{scope}-{budget}-{asked}", plan, row


def sweep(bench: Bench, orders: dict[str, list[str]], folder: Path) -> None:
    """Cut without training, and keep how the pictures are."""
    save_row(bench.wanted, folder / "unpruned.png", bench.asked, SHOWN)
    free = once(folder / "free.json", free_blocks, bench)["free"]

    def cut(name: str, plan: pl.Plan, row: dict) -> dict:
        look = bench.look(pl.remove_operators(bench.pipe, plan), folder / f"{name}.png")
        return {**row, **runs.of_plan(bench, plan, free), **look}

    def hand_made() -> dict:
        small, sizes = runs.pruned(bench, "bk-sdm", {}, 0)
        row = {"ranking": "bk-sdm", **sizes, "scope": "all", "budget": "macs_ratio", "asked": None}
        return {**row, **bench.look(small, folder / "bk-sdm.png")}

    for name, plan, row in stops(bench, orders, free):
        once(folder / f"{name}.json", cut, name, plan, row)
    once(folder / "bk-sdm.json", hand_made)


def training(bench: Bench, orders: dict[str, list[str]], work: Path) -> None:
    """Train what each ranking leaves."""
    for level in (*runs.LEVELS, 0.0):
        for ranking in [*orders, "bk-sdm", "none"]:
            own = {"bk-sdm": BK_LEVEL, "none": 0.0}.get(ranking)  # those that have one size only
            if ranking == "score-per-mac" or (level != own if own is not None else level == 0):
                continue
            for seed in runs.trained(ranking):
                small, _ = runs.pruned(bench, ranking, orders, level)
                runs.train(bench, small, f"{ranking}-{level}", seed, work, curve=ranking == "score")


def cut_rows(folder: Path) -> list[dict]:
    """Return the points of the sweep, each with the score's advantage at the same stop where it is there."""
    files = sorted(file for file in folder.glob("*.json") if file.stem not in ("free", "output-ranking"))
    loaded, rows = {file.stem: read(file) for file in files}, []
    for name, row in loaded.items():
        stop = name.removeprefix(row["ranking"] + "-")
        same = loaded.get(f"score-all-macs_ratio-{BK_LEVEL}" if row["ranking"] == "bk-sdm" else f"score-{stop}")
        rest = {k: v for k, v in row.items() if k not in ("figures", "frechet")}
        advantage = against([row], [same]) if same else None
        rows.append({**rest, "figures": summary([row]), "score_minus_this": advantage})
    return rows


def trained_rows(work: Path) -> list[dict]:
    """Return what was trained, each with the score's advantage at the same level."""
    rows, first = [], {}
    for level in (0.0, *runs.LEVELS):
        for ranking in RANKINGS:  # the score is the first
            seeds = runs.trained(ranking)
            files = [work / f"{ranking}-{level}-{seed}.json" for seed in seeds]
            done = [read(file) for file in files if file.is_file()]
            if not done:
                continue
            looks = [run["looks"][-1] for run in done]
            first.setdefault(level, looks if ranking == "score" else None)
            row = {"ranking": ranking, "level": level, "seeds": seeds[: len(done)], "after": summary(looks)}
            row["steps"], row["seconds"] = done[0]["steps"][-1], [run["seconds"] for run in done]
            row["score_minus_this"] = against(looks, first[level]) if first[level] else None
            rows.append(row)
    return rows


def explorer(rows: list[dict], whole: dict, folder: Path) -> SweepExplorer:
    """Return the figure that opens the chapter: a thing, a ranking, a share of MACs, and the picture without it."""
    cut = [row for row in rows if (row["scope"], row["budget"]) == ("all", "macs_ratio")]
    places = {(row["ranking"], row["asked"]): row for row in cut}
    unpruned, tiles, each = tiles_of(folder / "unpruned.png"), [], []
    for column in map(SHOWN.index, THINGS):
        for ranking in COUNTED:
            tiles.append(unpruned[column])
            tiles += [tiles_of(folder / f"{ranking}-all-macs_ratio-{r}.png")[column] for r in RATIOS]
            each += [whole, *(places[ranking, r] for r in RATIOS)]
    ssim, score = ([row["figures"][name] for row in each] for name in ("ssim", "clip_score"))
    metrics = [
        Metric("macs", [100 * row["macs_ratio"] for row in each], label="MACs removed", unit="%", digits=1),
        mean_metric("ssim", ssim, f"SSIM to the unpruned, {runs.N} pictures", n=runs.N, digits=3),
        mean_metric("clip_score", score, "CLIP score", n=runs.N, digits=1),
        Metric("count", [row["count"] for row in each], label="operators changed", digits=0),
    ]
    axes = [
        Axis("thing", THINGS, label="Prompt"),
        Axis("ranking", COUNTED, label="Chosen by", labels=[RANKINGS[name] for name in COUNTED]),
        Axis("removed", [round(100 * stop) for stop in (0.0, *RATIOS)], label="MACs to remove", unit="%"),
    ]
    return SweepExplorer("cutting", axes, torch.stack(tiles), metrics, title="as recorded")


def measure(work: Path = Path("_build/operator-runs"), scores: Path = SCORES) -> Record:
    """Cut, train, and put together what they gave."""
    bench, folder = Bench.load(), work / "sweep"
    orders = runs.rankings(bench, scores, folder)
    sweep(bench, orders, folder)
    training(bench, orders, work)
    rows, look = cut_rows(folder), bench.look(bench.pipe)
    unpruned = {
        "params": bench.operators.base.params,
        "macs": pl.count_macs(bench.pipe.unet).macs,
        "n_operators": len(bench.operators),
        **{name: interval(look["figures"][name]) for name in ("clip_score", "top5")},
        "frechet": look["frechet"],
    }
    # single pictures, which the chapter draws again: picture i starts from noise of seed i
    ssim = read(folder / f"score-all-macs_ratio-{PIECE_OF}.json")["figures"]["ssim"][:PIECE]
    data = {
        **{"rows": rows, "trained": trained_rows(work), "free": read(folder / "free.json"), "unpruned": unpruned},
        **{"rankings": RANKINGS, "levels": list(runs.LEVELS), "bk_sdm": runs.BK_SDM, "bk_level": BK_LEVEL},
        **{"model": MODEL, "sampler": runs.SAMPLER, "finetune": runs.FINETUNE},
        **{"interval": runs.AVERAGED, "macs_convention": MACS_CONVENTION, "features": "mini-CLIP"},
        "slice": {"asked": PIECE_OF, "captions": bench.asked[:PIECE], "ssim": ssim},
    }
    whole = {"macs_ratio": 0.0, "count": 0, "figures": summary([look])}
    return Record(data, seeds=list(runs.SEEDS), n=runs.N, explorer=explorer(rows, whole, folder))
