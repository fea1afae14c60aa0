"""Records of chapter 11: reuse at equal distances, DeepCache's pattern and fewer steps; and the `deepcache` package.

Compares latents with the package's, and judges pictures for four ways to leave calls out; six minutes on one CPU core.
`--what speed` times all of them in turn on a quiet machine (ten minutes), for the record deepcache_speed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import pruning_book as pb
import pruning_lib as pl
from pruning_book.rivals.fewer_steps import FewerSteps
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.steps.budget import deepcache, every

from .common import (
    GUIDANCE,
    MODEL,
    Record,
    held_out,
    in_turn,
    judge,
    latents,
    mean_metric,
    once,
    save_row,
    spread,
    tiles_of,
)
from .gpu.ways import by_the_package

SEED = 0
THINGS = ("lion", "pizza", "rocket", "house", "guitar")
WAYS = {
    "steps": "fewer steps",
    "output": "the last output again",
    "prediction": "the last prediction again",
    "deepcache": "DeepCache's pattern",
}
# steps -> (pictures, distances between whole calls)
SWEEPS = {20: (48, (1, 2, 3, 4, 5, 7, 10)), 50: (24, (1, 2, 3, 5, 10))}
# sampler, steps, interval, branch: where the package and the schedule are compared
COMPARED = [
    *((DDIMScheduler, 20, n, 0) for n in (2, 3, 5)),
    *((DDIMScheduler, 20, 3, branch) for branch in (1, 2, 3, 4, 5, 6, 9)),
    (DDIMScheduler, 50, 5, 0),
    (DPMSolverMultistepScheduler, 20, 3, 0),
]
N_COMPARED, TIMED, BATCH = 16, (2, 3, 5), 16


def prompts(count: int) -> list[str]:
    """Return captions that no pruner is trained with, those of the explorer first."""
    rest = [caption for caption in spread(held_out(), count + len(THINGS)) if caption not in THINGS]
    return [*THINGS, *rest][:count]


def equality() -> dict:
    """Draw with the package and with our schedule of its pattern, and compare the latents."""
    pipe, asked, rows = pl.load(MODEL), prompts(N_COMPARED), []
    config = pipe.scheduler.config
    for kind, steps, interval, branch in COMPARED:
        pipe.scheduler = kind.from_config(config)
        schedule = deepcache(pl.grid_of(pipe, steps), interval, branch)
        with schedule.applied(pipe):
            ours = latents(pipe, asked, steps)
        with by_the_package(pipe, interval, branch):
            theirs = latents(pipe, asked, steps)
        row = {"sampler": kind.__name__, "steps": steps, "interval": interval, "branch": branch}
        row |= {"macs_ratio": schedule.macs_ratio(), "equal": torch.equal(ours, theirs)}
        rows.append({**row, "largest_difference": (ours - theirs).abs().max().item(), "n": len(asked)})
    return {"rows": rows}


def rival(pipe, way: str, steps: int, interval: int):
    """Return what leaves calls out in one way: something with `.steps`, `.macs_ratio()` and `.applied(pipe)`."""
    grid = pl.grid_of(pipe, steps)
    if way == "steps":
        calls = -(-steps // interval)
        return FewerSteps(grid, calls, calls)
    if way == "deepcache":
        return deepcache(grid, interval)
    return every(grid, interval).holding("prediction" if way == "prediction" else "value")


def file_name(steps: int, way: str, interval: int) -> str:
    """Return the name of what is kept of a cell; all calls are whole in every way."""
    return f"{steps}-{way}-{interval}" if interval > 1 else f"{steps}-steps-1"


def quality(work: Path) -> dict[str, dict]:
    """Draw in every way; keep the pictures, and return what they are worth."""
    pipe, clip = pl.load(MODEL), pb.load_clip(MODEL)

    def look(asked: list[str], wanted: torch.Tensor | None, steps: int, way: str, interval: int) -> dict:
        name, found = file_name(steps, way, interval), rival(pipe, way, steps, interval)
        how = {"steps": found.steps, "guidance": GUIDANCE, "seed": SEED}
        with found.applied(pipe):
            judged = judge(pipe, clip, asked, pb.captions(MODEL), wanted, **how)
        save_row(judged.pictures, work / f"{name}.png")
        return {"macs_ratio": found.macs_ratio(), "figures": judged.intervals()}

    found = {}
    for steps, (count, intervals) in SWEEPS.items():
        asked, wanted = prompts(count), None
        for way, interval in [("steps", 1), *((way, interval) for interval in intervals[1:] for way in WAYS)]:
            name = file_name(steps, way, interval)
            found[name] = once(work / f"{name}.json", look, asked, wanted, steps, way, interval)
            if interval == 1:
                wanted = tiles_of(work / f"{name}.png")
    return found


def measure(work: Path, what: Literal["quality", "speed"] = "quality", repeats: int = 10) -> Record:
    """Compare, judge and put together; or time."""
    if what == "speed":
        return speed(repeats)
    compared = once(work / "equal.json", equality)["rows"]
    kept = quality(work)

    def row_of(steps: int, way: str, interval: int) -> dict:
        return {"steps": steps, "way": way, "interval": interval, **kept[file_name(steps, way, interval)]}

    rows = [row_of(steps, way, n) for steps, (_, intervals) in SWEEPS.items() for way in WAYS for n in intervals]
    steps, (count, intervals) = next(iter(SWEEPS.items()))
    shown = [(way, n) for way in WAYS for n in intervals]
    each = [row_of(steps, *cell) for cell in shown] * len(THINGS)
    sheets = [tiles_of(work / f"{file_name(steps, *cell)}.png") for cell in shown]
    tiles = torch.stack([sheet[column] for column in range(len(THINGS)) for sheet in sheets])
    label = f"SSIM to the unpruned, {count} pictures"
    metrics = [
        Metric("macs", [100 * row["macs_ratio"] for row in each], label="MACs kept", unit="%", digits=1),
        mean_metric("ssim", [row["figures"]["ssim"] for row in each], label, n=count, digits=3),
    ]
    axes = [
        Axis("thing", THINGS, label="prompt"),
        Axis("way", list(WAYS), label="in between", labels=list(WAYS.values())),
        Axis("every", intervals, label="compute every n-th call, n ="),
    ]
    explorer = SweepExplorer("reuse", axes, tiles, metrics, title="Reuse", chart=("macs", "ssim"))
    data = {"model": MODEL, "guidance_scale": GUIDANCE, "ways": WAYS, "rows": rows, "compared": compared}
    return Record(data, seeds=[SEED], n=count, explorer=explorer)


def speed(repeats: int) -> Record:
    """Time everything in turn: latents only, a batch of pictures with guidance."""
    pipe, asked, steps = pl.load(MODEL), prompts(BATCH), 20
    grid = pl.grid_of(pipe, steps)
    calls = {"unpruned": lambda: latents(pipe, asked, steps)}
    kept = {"unpruned": 1.0}

    def add(name: str, context, share: float, count: int = steps) -> None:
        def call() -> None:
            with context():
                latents(pipe, asked, count)

        calls[name], kept[name] = call, share

    add("all on", partial(grid.full().applied, pipe), 1.0)
    for n in TIMED:
        pattern, whole, fewer = deepcache(grid, n), every(grid, n), rival(pipe, "steps", steps, n)
        add(f"package, {n}", partial(by_the_package, pipe, n, 0), pattern.macs_ratio())
        add(f"deepcache, {n}", partial(pattern.applied, pipe), pattern.macs_ratio())
        add(f"output, {n}", partial(whole.applied, pipe), whole.macs_ratio())
        add(f"steps, {n}", partial(fewer.applied, pipe), fewer.macs_ratio(), fewer.steps)
    times = in_turn(calls, lambda latency: {"latency": latency.to_dict()}, repeats=repeats, warmup=1)
    rows = {name: {"macs_ratio": kept[name], **found} for name, found in times.items()}
    data = {"model": MODEL, "steps": steps, "batch": BATCH, "guidance_scale": GUIDANCE, "threads": 1}
    data |= {"repeats": repeats, "rows": rows}
    return Record(data, seeds=[SEED], n=repeats, name="deepcache_speed")
