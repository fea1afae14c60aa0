"""What operator_removal.py writes: rows with intervals, what training gave back, and the explorer of chapter 8."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from judged import tiles_of
from operator_runs import (
    BK_LEVEL,
    BK_SDM,
    FINETUNE,
    LEVELS,
    MODEL,
    RANKINGS,
    RATIOS,
    SAMPLER,
    SEEDS,
    SHOWN,
    Bench,
    N,
    against,
    interval,
    summary,
    trained,
)

import pruning_lib as pl
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.records import check_writable

THINGS = ("lion", "pizza", "rocket", "house")
PIECE, PIECE_OF = 16, 0.3  # pictures kept one by one, and the share of MACs that was removed
EXPLORED = ("score", "output", "params", "random-0")


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
    """Return the figure that opens the chapter: a thing, a ranking, a share of MACs, and the picture without it.

    Args:
        rows: of the sweep.
        whole: the row of the unpruned model.
        folder: where the sweep keeps its pictures.
    """
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


def record(path: Path, work: Path) -> Path:
    """Write the record from what has been done."""
    check_writable(path)
    bench, folder = Bench.load(), work / "sweep"
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
    passport = pl.passport(seeds=list(SEEDS), n=N)
    whole = {"macs_ratio": 0.0, "count": 0, "figures": summary([look])}
    return explorer(rows, whole, folder).save(path, "operator_removal", passport, **data)
