"""Record of chapter 14: schedules and their rivals at equal MACs, on prompts that no search and no training has seen.

    python benchmarks/schedule_comparison.py --stage search --steps 20 [--rows ours,genetic] [--budgets 0.25]
    python benchmarks/schedule_comparison.py --stage quality --steps 20
    python benchmarks/schedule_comparison.py --stage record
    python benchmarks/schedule_comparison.py --stage speed

Every row at every budget is a cell, done once and kept in the folder of --work, so that each stage goes on where it was
stopped; --minutes ends a stage early. `record` writes what is there: figures with intervals, every row's differences
from ours picture by picture, the schedules, and a sheet of pictures. `speed` needs a quiet machine and only the record,
to which it adds the measured times. On one CPU core searching takes about 8 minutes at 20 steps and 20 at 50,
judging about 7 and 20, and timing about 10 in all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from schedule_rows import (
    BUDGETS,
    EXTRA,
    GUIDANCE,
    MODEL,
    RESULTS,
    ROWS,
    SEARCHES,
    STEPS,
    Made,
    cell_name,
    grids,
    judged,
    make,
    schedule_file,
)
from schedule_summary import record

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets.comparison import rival_of
from pruning_lib.records import check_writable

NOISE, TIMED = 0, 4  # seed and pictures of a timed generation


def cells(arguments) -> Iterator[tuple[int, str, float]]:
    """Yield the cells asked for: the rows of a number of steps one after the other, small budgets first."""
    rows = arguments.rows.split(",") if arguments.rows else list(ROWS)
    unknown = [row for row in rows if row not in {**ROWS, **EXTRA}]
    if unknown:
        raise SystemExit(f"Unknown rows: {', '.join(unknown)}. Known: {', '.join({**ROWS, **EXTRA})}.")
    budgets = [float(b) for b in arguments.budgets.split(",")] if arguments.budgets else BUDGETS
    for steps in [arguments.steps] if arguments.steps else STEPS:
        for row in rows:
            for budget in sorted(budgets):
                yield steps, row, budget


def searches(arguments) -> None:
    """Make the schedules that are missing."""
    pipe, end = pl.load(MODEL), time.monotonic() + 60 * arguments.minutes
    laid = grids(pipe)
    for steps, row, budget in cells(arguments):
        if row in SEARCHES and time.monotonic() < end:
            made = make(pipe, laid[steps], budget, row, arguments.work, arguments.scores)
            told = made.note["schedule"]["provenance"]
            told = {key: told.get(key) for key in ("loss", "images", "moves", "cpu_seconds")}
            print(cell_name(steps, budget, row), told, flush=True)


def quality(arguments) -> None:
    """Judge the cells that are missing; rows whose search was not done, or whose scores are not there, are left out."""
    pipe, clip, end = pl.load(MODEL), pb.load_clip(MODEL), time.monotonic() + 60 * arguments.minutes
    pipe.set_progress_bar_config(disable=True)
    laid = grids(pipe)
    for steps, row, budget in cells(arguments):
        if time.monotonic() > end:
            break
        folder = arguments.work / "quality"
        wanted = judged(pipe, clip, laid[steps].full(), None, folder / f"{steps}-unpruned.safetensors")
        name = cell_name(steps, budget, row)
        if row in SEARCHES and not schedule_file(arguments.work, steps, budget, row).is_file():
            continue
        made: Made | None = make(pipe, laid[steps], budget, row, arguments.work, arguments.scores)
        if made is not None:
            found = judged(pipe, clip, made.rival, wanted["pictures"], folder / f"{name}.safetensors")
            told = {key: round(found[key].mean().item(), 4) for key in ("ssim", "psnr_db", "clip_score")}
            print(name, round(made.rival.macs_ratio(), 4), told, flush=True)


def speed(path: Path, repeats: int) -> None:
    """Time every row of the record against the unpruned generation, in turn, and add the times to the record."""
    found = pl.load_record(path)
    torch.set_num_threads(1)
    pipe = pl.load(MODEL)
    pipe.set_progress_bar_config(disable=True)
    laid, times = grids(pipe), {}
    prompts = found["data"]["shown"][:TIMED]
    for steps, grid in laid.items():
        judged_here = [cell for cell in found["data"]["cells"] if cell["steps"] == steps]
        for row in ROWS:  # variations of a row cost what the row costs
            cells = [cell for cell in judged_here if cell["row"] == row]
            if not cells:
                continue
            # A shared machine is faster now and slower then: each row has the unpruned generation beside it.
            rivals = {f"{steps}-unpruned": grid.full()}
            rivals |= {cell_name(steps, cell["budget"], row): rival_of(cell, grid) for cell in cells}
            for what in ("denoising", "generation"):
                for name, timed in _timed(pipe, rivals, prompts, what, repeats).items():
                    times.setdefault(name, {})[what] = timed
            print(steps, row, flush=True)
    data = {
        **found["data"],
        "speed": {
            "times": times,
            "pictures": TIMED,
            "threads": 1,
            "passport": pl.passport(seeds=[NOISE], n=repeats, device="cpu"),
        },
    }
    print(pl.save_record(path, "schedule_comparison", data, found["passport"]))


def _timed(pipe, rivals: dict, prompts: list[str], what: str, repeats: int) -> dict[str, dict]:
    """Return each rival's latency, and how many times as fast as the first it is."""
    calls = {name: _call(pipe, rival, prompts, what) for name, rival in rivals.items()}
    first = next(iter(calls))
    calls[first]()
    measured = pl.measure_latency(calls, repeats=repeats, warmup=0, device="cpu")
    return {
        name: {**latency.to_dict(), "times_as_fast": pl.measure.ratio(measured[first], latency).to_dict()}
        for name, latency in measured.items()
    }


def _call(pipe, rival, prompts: list[str], what: str):
    """Return a generation; of kind "denoising", without reading the prompts and without decoding."""
    given: dict[str, object] = {"prompt": prompts, "output_type": "pil"}
    if what == "denoising":
        wanted, unwanted = pipe.encode_prompt(prompts, pipe.device, 1, True)
        given = {"prompt_embeds": wanted, "negative_prompt_embeds": unwanted, "output_type": "latent"}

    def call() -> object:
        noise = [torch.Generator().manual_seed(NOISE + i) for i in range(len(prompts))]
        with rival.applied(pipe):
            return pipe(**given, num_inference_steps=rival.steps, guidance_scale=GUIDANCE, generator=noise).images

    return call


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("search", "quality", "record", "speed"), required=True)
    parser.add_argument("--steps", type=int, choices=STEPS, help="only these (default: both)")
    parser.add_argument("--rows", default="", help="only these, by commas (default: all but the extra ones)")
    parser.add_argument("--budgets", default="", help="only these budgets, separated by commas (default: all)")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no cell after so many minutes")
    parser.add_argument("--scores", type=Path, default=RESULTS, help="folder of the trained scores")
    parser.add_argument("--work", type=Path, default=Path("_build/schedule-comparison"), help="folder of single cells")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of --stage speed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    asked = parser.parse_args()
    target = check_writable(asked.out / "schedule_comparison.json")
    if asked.stage == "search":
        searches(asked)
    elif asked.stage == "quality":
        quality(asked)
    elif asked.stage == "record":
        record(target, asked.work)
    else:
        speed(target, asked.repeats)
