"""Records of chapter 11: reuse at equal distances, DeepCache's pattern and fewer steps; and the `deepcache` package.

    python -m benchmarks deepcache
    python -m benchmarks deepcache --what speed

First it draws with the package and with the library's schedule of the same pattern, and compares the latents; then it
judges pictures at several distances, for four ways to leave calls out. Six minutes on one CPU core. `--what speed`
times all of them in turn, on one thread of a quiet machine (ten minutes), for the record deepcache_speed.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import pruning_book as pb
import pruning_lib as pl
from pruning_book.rivals.fewer_steps import FewerSteps
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.latency import measure_latency, ratio
from pruning_lib.steps.budget import deepcache, every
from pruning_lib.steps.schedule import grid_of
from zoo.data import contact_sheet

from .common import Record, judge, once, tiles_of
from .gpu.ways import by_the_package
from .step_similarity import held_out

MODEL, GUIDANCE, SEED = "emoji-sd", 3.0, 0
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


def load():
    """Load the model, without a progress bar."""
    pipe = pl.load(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(count: int) -> list[str]:
    """Return captions that no pruner is trained with, those of the explorer first."""
    rest = [caption for caption in held_out(count + len(THINGS)) if caption not in THINGS]
    return [*THINGS, *rest][:count]


def latents(pipe, asked: list[str], steps: int) -> torch.Tensor:
    """Draw latents, always from the same noise."""
    noise = [torch.Generator().manual_seed(SEED + i) for i in range(len(asked))]
    options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "latent"}
    return pipe(asked, generator=noise, **options).images


def equal(work: Path) -> None:
    """Run the first stage."""
    pipe, asked, rows = load(), prompts(N_COMPARED), []
    config = pipe.scheduler.config
    for kind, steps, interval, branch in COMPARED:
        pipe.scheduler = kind.from_config(config)
        schedule = deepcache(grid_of(pipe, steps), interval, branch)
        with schedule.applied(pipe):
            ours = latents(pipe, asked, steps)
        with by_the_package(pipe, interval, branch):
            theirs = latents(pipe, asked, steps)
        rows.append(
            {
                "sampler": kind.__name__,
                "steps": steps,
                "interval": interval,
                "branch": branch,
                "macs_ratio": schedule.macs_ratio(),
                "equal": bool(torch.equal(ours, theirs)),
                "largest_difference": (ours - theirs).abs().max().item(),
                "n": len(asked),
            }
        )
        print(rows[-1], flush=True)
    once(work / "equal.json", lambda: {"rows": rows})


def rival(pipe, way: str, steps: int, interval: int):
    """Return what leaves calls out in one way: something with `.steps`, `.macs_ratio()` and `.applied(pipe)`."""
    grid = grid_of(pipe, steps)
    if way == "steps":
        calls = -(-steps // interval)
        return FewerSteps(grid, calls, calls)
    if way == "deepcache":
        return deepcache(grid, interval)
    return every(grid, interval).holding("prediction" if way == "prediction" else "value")


def quality(work: Path) -> None:
    """Run the second stage."""
    pipe, clip = load(), pb.load_clip(MODEL)
    for steps, (count, intervals) in SWEEPS.items():
        look = functools.partial(_look, pipe, clip, prompts(count), work)
        look("steps", steps, 1, None)
        wanted = tiles_of(work / f"{steps}-steps-1.png")
        for interval in intervals[1:]:
            for way in WAYS:
                look(way, steps, interval, wanted)


def _look(pipe, clip, asked: list[str], work: Path, way: str, steps: int, interval: int, wanted) -> None:
    """Draw in one way and judge the pictures against `wanted`; done once."""
    name = f"{steps}-{way}-{interval}"

    def work_it() -> dict:
        print(name, flush=True)
        found = rival(pipe, way, steps, interval)
        with found.applied(pipe):
            judged = judge(
                pipe, clip, asked, pb.captions(MODEL), wanted, steps=found.steps, guidance=GUIDANCE, seed=SEED
            )
        contact_sheet(judged.pictures, columns=len(asked)).save(work / f"{name}.png")
        return {"macs_ratio": found.macs_ratio(), "figures": judged.intervals()}

    once(work / f"{name}.json", work_it)


def measure(work: Path, what: Literal["quality", "speed"] = "quality", repeats: int = 10) -> Record:
    """Compare, judge and put together; or time."""
    if what == "speed":
        return speed(repeats)
    work.mkdir(parents=True, exist_ok=True)
    equal(work)
    quality(work)

    def read(steps: int, way: str, interval: int) -> dict:
        name = f"{steps}-{way}-{interval}" if interval > 1 else f"{steps}-steps-1"
        return {
            "steps": steps,
            "way": way,
            "interval": interval,
            **json.loads((work / f"{name}.json").read_text("utf-8")),
        }

    rows = [read(s, w, n) for s, (_, intervals) in SWEEPS.items() for w in WAYS for n in intervals]
    steps, (count, intervals) = next(iter(SWEEPS.items()))
    tiles, each = [], []
    for column in range(len(THINGS)):
        for way in WAYS:
            for interval in intervals:
                name = f"{steps}-{way}-{interval}" if interval > 1 else f"{steps}-steps-1"
                tiles.append(tiles_of(work / f"{name}.png")[column])
                each.append(read(steps, way, interval))
    ssim = [row["figures"]["ssim"] for row in each]
    ends = {end: [found[end] for found in ssim] for end in ("value", "low", "high")}
    metrics = [
        Metric("macs", [100 * row["macs_ratio"] for row in each], label="MACs kept", unit="%", digits=1),
        Metric(
            "ssim",
            ends["value"],
            label=f"SSIM to the unpruned, {count} pictures",
            low=ends["low"],
            high=ends["high"],
            interval="95 % interval",
            n=count,
            digits=3,
        ),
    ]
    axes = [
        Axis("thing", THINGS, label="prompt"),
        Axis("way", list(WAYS), label="in between", labels=list(WAYS.values())),
        Axis("every", intervals, label="compute every n-th call, n ="),
    ]
    explorer = SweepExplorer("reuse", axes, torch.stack(tiles), metrics, title="Reuse", chart=("macs", "ssim"))
    compared = json.loads((work / "equal.json").read_text("utf-8"))["rows"]
    data = {"model": MODEL, "guidance_scale": GUIDANCE, "ways": WAYS, "rows": rows, "compared": compared}
    return Record(data, seeds=[SEED], n=count, explorer=explorer)


def speed(repeats: int) -> Record:
    """Time everything in turn: latents only, a batch of pictures with guidance."""
    pipe, asked, steps = load(), prompts(BATCH), 20
    grid = grid_of(pipe, steps)
    calls = {"unpruned": lambda: latents(pipe, asked, steps)}
    kept = {"unpruned": 1.0}

    def add(name: str, context, share: float, count: int = steps) -> None:
        def call() -> None:
            with context():
                latents(pipe, asked, count)

        calls[name], kept[name] = call, share

    add("all on", lambda: grid.full().applied(pipe), 1.0)
    for n in TIMED:
        pattern, whole, fewer = deepcache(grid, n), every(grid, n), rival(pipe, "steps", steps, n)
        add(f"package, {n}", lambda n=n: by_the_package(pipe, n), pattern.macs_ratio())
        add(f"deepcache, {n}", lambda s=pattern: s.applied(pipe), pattern.macs_ratio())
        add(f"output, {n}", lambda s=whole: s.applied(pipe), whole.macs_ratio())
        add(f"steps, {n}", lambda s=fewer: s.applied(pipe), fewer.macs_ratio(), fewer.steps)
    times = measure_latency(calls, repeats=repeats, warmup=1)
    data = {
        "model": MODEL,
        "steps": steps,
        "batch": BATCH,
        "guidance_scale": GUIDANCE,
        "threads": 1,
        "repeats": repeats,
        "rows": {
            name: {
                "macs_ratio": kept[name],
                "latency": latency.to_dict(),
                "times_as_fast": ratio(times["unpruned"], latency).to_dict(),
            }
            for name, latency in times.items()
        },
    }
    return Record(data, seeds=[SEED], n=repeats, name="deepcache_speed")
