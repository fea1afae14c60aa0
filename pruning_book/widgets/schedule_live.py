"""What the schedule painter shows: emoji-sd at ten steps, schedules to compare, and pictures drawn by any of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning_lib.quality import ssim
from pruning_lib.steps.budget import deepcache, every
from pruning_lib.steps.schedule import Grid, Schedule, decode_table

from .schedule_editor import SchedulePainter
from .sheet import to_pil
from .sparsity import FIRST_SEED, MODEL, STEPS, draw, quiet

# None of them is among every fourth caption, with which pruners are trained and schedules searched.
PROMPTS = ("lion", "rocket", "sunflower", "octopus")


def scheduled_pictures(pipe: Any, schedule: Schedule | None, prompts: Sequence[str], *, first: int = 0) -> Tensor:
    """Draw by a schedule; picture i starts from the noise of seed `first` + i.

    Args:
        pipe: the pipeline; the same afterwards.
        schedule: of `STEPS` steps, or None for everything.
        prompts: n captions.
        first: place of the first prompt.

    Returns:
        Floats in [0, 1], `[n, 3, h, w]`.
    """
    at = first - FIRST_SEED
    if schedule is None:
        return draw(pipe, prompts, first=at, steps=STEPS)[0]
    with schedule.applied(pipe):
        return draw(pipe, prompts, first=at, steps=schedule.steps)[0]


def presets(grid: Grid) -> dict[str, tuple[str, Tensor, str]]:
    """Return name -> (group, table `[T, N]`, what to see) of the schedules that are recorded.

    The first computes everything. Besides the patterns there is one for every unit that is computed at the first step
    only, and one for every step that is left out.

    Args:
        grid: of a UNet at grain "layers".
    """
    steps, units = grid.shape
    names, half = grid.names, steps // 2
    full = torch.ones(grid.shape, dtype=torch.bool)
    found: dict[str, tuple[str, Tensor, str]] = {"everything": ("whole steps", full, "The unpruned model.")}

    def add(group: str, name: str, table: Tensor, note: str) -> None:
        found[name] = (group, table, note)

    def without(rows: slice | int, columns: Sequence[int] | slice = slice(None)) -> Tensor:
        table = full.clone()
        table[rows, columns] = False
        return table

    for k, word in ((2, "2nd"), (3, "3rd"), (5, "5th")):
        note = f"The output of the whole denoiser is used again; it is called at every {word} step only."
        add("whole steps", f"every {word} step", every(grid, k).on, note)
    note = "Either half of the steps costs the same, and both are not worth the same."
    add("whole steps", "the first half", without(slice(half, None)), note)
    # The step in the middle goes too: as many calls as the other one.
    add("whole steps", "the second half", without(slice(1, half + 1)), note)
    for k, word in ((2, "2nd"), (3, "3rd"), (5, "5th")):
        note = f"The deep layers run at every {word} step, the last layer at all steps: DeepCache's pattern."
        add("some layers", f"DeepCache, every {word}", deepcache(grid, k).on, note)
    odd = slice(1, None, 2)
    down = [i for i, name in enumerate(names) if name.startswith("down_blocks")]
    note = "The way up runs at every step. In its skip connections old values meet new ones."
    add("some layers", "the way down, every 2nd", without(odd, down), note)
    top = max(int(name.split(".")[1]) for name in names if name.startswith("up_blocks"))
    deep = [i for i, name in enumerate(names) if not re.match(rf"(down_blocks\.0|up_blocks\.{top})\.layers", name)]
    note = "At the other steps only the layers at full resolution run."
    once = without(slice(1, None), deep)
    twice = once.clone()
    twice[half, deep] = True
    add("some layers", "the deep levels once", once, note)
    add("some layers", "the deep levels twice", twice, note)
    note = "All others were computed once, at the first step, and grow older from step to step."
    add("some layers", "the last three layers", without(slice(1, None), slice(units - 3)), note)
    note = "Only the last layer is off, at every 2nd step. What runs before it there is read by nobody."
    add("some layers", "a picture full of dead work", without(odd, sorted(grid.wiring.output)), note)
    for i, name in enumerate(names):
        add("one unit, once", f"{name} once", without(slice(1, None), [i]), "Computed at the first step only.")
    for t in range(1, steps):
        add("one step less", f"without step {t + 1}", without(t), "The output of the step before is used again.")
    return found


def schedule_painter(
    record: str | Path = "schedule_painter", *, load: Callable[[str], Any] | None = None
) -> SchedulePainter:
    """Return the painter of chapter 12.

    Args:
        record: name or file of the record, as `benchmarks/schedule_painter.py` writes it.
        load: `pruning_lib.load`. With it, where a kernel is there, every painted table is run and its picture shown.
    """

    @cache
    def pipeline() -> Any:
        pipe = quiet(load(MODEL))
        scheduled_pictures(pipe, None, PROMPTS[:1])  # a first run is slower
        return pipe

    def timed(schedule: Schedule | None, prompt: str) -> tuple[Tensor, float]:
        pipe, began = pipeline(), time.perf_counter()
        pictures = scheduled_pictures(pipe, schedule, [prompt], first=painter.prompts.index(prompt))
        return pictures, 1000 * (time.perf_counter() - began)

    unpruned = cache(lambda prompt: timed(None, prompt))

    def on_change(state: Mapping[str, Any]) -> dict:
        whole, whole_ms = unpruned(state["prompt"])
        image, ms = timed(painter.grid.schedule(decode_table(state["on"]), method="painted"), state["prompt"])
        return {"image": to_pil(image)[0], "ssim": ssim(whole, image).item(), "ms": ms, "whole_ms": whole_ms}

    painter = SchedulePainter.from_record(
        record,
        "schedule-painter",
        title="Which work can be left out?",
        picture="64 x 64 image from emoji-sd",
        start={"schedule": "a picture full of dead work"},
        on_change=on_change if load else None,
    )
    return painter
