"""Record the schedule painter of chapter 12: pictures and their likeness to the unpruned ones for many schedules.

    python benchmarks/schedule_painter.py

writes book/results/schedule_painter.json and, beside it, one sheet of all pictures, schedule_painter.webp. Each
schedule draws the same captions from the same noise, ten steps each; no caption is among every fourth one, which
pruners are trained with. With --found, schedules that a search or a training has found join the others: JSON files of
Schedule.save, for ten steps of the same units. Nothing here depends on how fast the machine is. Pictures are kept in
--work as they are made, so an interrupted run goes on where it stopped; about five minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import pruning_lib as pl
from pruning_lib.measure import bootstrap_interval, ssim
from pruning_lib.measure.record import check_writable
from pruning_lib.show.painter import to_rows
from pruning_lib.show.painter_live import MODEL, PROMPTS, STEPS, presets, scheduled_pictures
from pruning_lib.show.sparsity import GUIDANCE, spread_captions
from pruning_lib.show.widgets import PaintedStop, SchedulePainter
from pruning_lib.steps import Schedule, grid_of

RESULTS = Path(__file__).resolve().parents[1] / "book" / "results"
QUALITY = 92  # of the sheet: its pictures are looked at, and every figure was computed before


def record(path: Path, captions: Sequence[str], found: Sequence[Schedule], work: Path, device: str) -> Path:
    """Draw, judge and write.

    Args:
        path: the record's file.
        captions: of the pictures, at least two; the first ones are those of the painter.
        found: schedules besides the presets; their `provenance["note"]` is shown.
        work: folder for finished pictures.
        device: where to run, as in "cpu".
    """
    check_writable(path)
    work.mkdir(parents=True, exist_ok=True)
    pipe = pl.load(MODEL, device=device)
    pipe.set_progress_bar_config(disable=True)
    grid = grid_of(pipe, STEPS)
    tables = presets(grid)
    for schedule in found:
        if schedule.grid != grid:
            raise ValueError(f"{schedule!r} is for another grid: {schedule.grid.difference(grid)}.")
        name = f"{schedule.label}, {schedule.macs_ratio():.0%} of the MACs"
        tables[name] = ("found", schedule.on, str(schedule.provenance.get("note", "Found by a search.")))
    drawn = {name: kept(pipe, grid.schedule(on), captions, work) for name, (_, on, _) in tqdm(tables.items())}
    whole = drawn["everything"].float() / 255
    stops = []
    for name, (group, on, note) in tables.items():
        values = ssim(whole, drawn[name].float() / 255)
        ends = bootstrap_interval(values)
        mean = {key: round(getattr(ends, key), 6) for key in ("value", "low", "high")}
        shown = [round(value, 6) for value in values[: len(PROMPTS)].tolist()]
        stops.append(PaintedStop(name, group, to_rows(on), shown, mean, note))
    images = torch.cat([torch.stack([found[i] for found in drawn.values()]) for i in range(len(PROMPTS))])
    painter = SchedulePainter(
        "schedule-painter", grid, stops, PROMPTS, images, model=MODEL, n=len(captions), title="as recorded"
    )
    passport = pl.passport(seeds=list(range(len(captions))), n=len(captions), device=device)
    more = {"steps": STEPS, "guidance": GUIDANCE, "captions": list(captions)}
    return painter.save(path, "schedule_painter", passport, quality=QUALITY, **more)


def kept(pipe: Any, schedule: Schedule, captions: Sequence[str], work: Path) -> Tensor:
    """Return the pictures of one schedule, uint8 `[n, 3, h, w]`, drawn once; dead work makes no other picture."""
    name = hashlib.sha256(repr([to_rows(schedule.live()), list(captions)]).encode()).hexdigest()[:24]
    file = work / f"{name}.pt"
    if not file.is_file():
        pictures = (scheduled_pictures(pipe, schedule, captions) * 255).round().to(torch.uint8)
        torch.save(pictures, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    return torch.load(file, weights_only=True)


def captions_of(n: int) -> list[str]:
    """Return n captions: the painter's prompts, then others spread over all that no pruner is trained with."""
    every = pl.captions(MODEL)
    held_out = [caption for i, caption in enumerate(every) if i % 4]
    if missing := set(PROMPTS) - set(held_out):
        raise ValueError(f"{sorted(missing)} are prompts that pruners are trained with; show others.")
    return [*PROMPTS, *(c for c in spread_captions(held_out, len(held_out)) if c not in PROMPTS)][:n]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pictures", type=int, default=32, help="captions drawn by each schedule (default 32)"
    )
    parser.add_argument("--found", type=Path, nargs="*", default=[], help="schedules that were found")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "pruning-lib-schedule-painter"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the record and the sheet")
    options = parser.parse_args()
    extra = [Schedule.load(file) for file in options.found]
    place = options.out / "schedule_painter.json"
    print(record(place, captions_of(options.pictures), extra, options.work, options.device))
