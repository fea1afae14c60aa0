"""The schedule painter of chapter 12: units switched off at single steps; dead work, MACs and pictures follow."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from pruning_lib.checks import place
from pruning_lib.quality import ssim
from pruning_lib.steps.budget import deepcache, every
from pruning_lib.steps.schedule import Grid, Schedule, decode_table

from .base import mean_text, number, scrolling, sentences
from .pictured import Prompted
from .sheet import to_pil
from .sparsity import FIRST_SEED, MODEL, STEPS, draw, quiet

CELL, GAP, LABEL, HEAD = 16, 2, 70, 18
# None of them is among every fourth caption, with which pruners are trained and schedules searched.
PROMPTS = ("lion", "rocket", "sunflower", "octopus")


@dataclass(frozen=True)
class PaintedStop:
    """A schedule whose pictures were recorded.

    `name` and `group` are how and under which heading it is chosen from the list, no two names alike; `on` one string
    per step, one digit per unit: "1" computed, "0" used again; `ssim` of each shown picture to the unpruned one; `mean`
    the mean SSIM over more pictures: "value", "low", "high"; `note` one sentence on what to see.
    """

    name: str
    group: str
    on: Sequence[str]
    ssim: Sequence[float]
    mean: Mapping[str, float]
    note: str = ""


class SchedulePainter(Prompted):
    """A table of units by steps to paint, with exact MACs, and pictures where recorded or drawn by a kernel.

    Args:
        name: identifies the figure; an address ending in `#name:schedule=every 2nd step` sets it.
        grid: of the units and steps that are painted.
        stops: recorded schedules; the first computes everything.
        prompts: of the shown pictures.
        images: for each prompt one picture per stop, as `Pictured` takes them.
        model: the pipeline's name, for readers.
        n: pictures behind each mean SSIM.
        start: "prompt" and "schedule" (a stop's name) shown first; by default the first prompt and the second stop.
        options: `title`, `picture`, `passport` and `on_change`, which is called with `{"prompt", "on"}`, `on` being
            live cells as `encode_table` writes them, where a kernel is there; it returns `{"image": picture of the same
            size, "ssim", "ms", "whole_ms": time with this schedule and without any}`.
    """

    module: ClassVar[str] = "schedule_painter"
    kind: ClassVar[str] = "a schedule painter"
    fields: ClassVar[tuple[str, ...]] = ("model", "grid", "stops", "prompts", "n")
    answers: ClassVar[tuple[str, ...]] = ("ssim", "ms", "whole_ms")

    def __init__(
        self,
        name: str,
        grid: Grid,
        stops: Sequence[PaintedStop | Mapping],
        prompts: Sequence[str],
        images: Any,
        *,
        model: str,
        n: int,
        start: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.grid = grid
        self.stops = [stop if isinstance(stop, PaintedStop) else PaintedStop(**stop) for stop in stops]
        self.names = [stop.name for stop in self.stops]
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"schedules are called {self.names}; give at least one, each with its own name.")
        self.tables = [decode_table(stop.on) for stop in self.stops]
        for label, table in zip(self.names, self.tables, strict=True):
            try:
                grid.check(table)
            except ValueError as error:
                raise ValueError(f"{label!r}: {error}") from error
        if not self.tables[0].all():
            raise ValueError(f"the first schedule, {self.names[0]!r}, must compute everything.")
        changes = [(repr(stop.name), stop.ssim) for stop in self.stops]
        counted = f"{len(self.stops)} schedules"
        super().__init__(name, images, model=model, prompts=prompts, n=n, changes=changes, counted=counted, **options)
        shown = {"prompt": self.prompts[0], "schedule": self.names[min(1, len(self.names) - 1)], **(start or {})}
        prompt, stop = place(shown["prompt"], self.prompts, "prompt"), place(shown["schedule"], self.names, "schedule")
        self.start = {"prompt": prompt, "stop": stop}

    @staticmethod
    def count(data: Mapping[str, Any]) -> int:
        return len(data["prompts"]) * len(data["stops"])

    @classmethod
    def arguments(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().arguments(data), "grid": Grid.from_dict(data["grid"])}

    def record(self) -> dict[str, Any]:
        return {**super().record(), "grid": self.grid.to_dict(), "stops": [asdict(stop) for stop in self.stops]}

    def data(self) -> dict:
        """Return what the module draws."""
        stops = [asdict(stop) for stop in self.stops]
        return {**super().data(), "grid": grid_data(self.grid), "stops": stops, "sheet": self.tiles(self.sheet.url())}

    def stop(self, name: str) -> PaintedStop:
        """Return the recorded schedule called `name`; a ValueError says that there is none."""
        return self.stops[place(name, self.names, "schedule")]

    def tile(self, prompt: str, schedule: str) -> Image.Image:
        """Return a recorded picture."""
        return self.tile_of(prompt, place(schedule, self.names, "schedule"))

    def fallback_html(self) -> str:
        """Return the table at the start as a picture, its pictures, and a table of all recorded schedules."""
        name, prompt = self.names[self.start["stop"]], self.prompts[self.start["prompt"]]
        shown = (("unpruned", self.tile(prompt, self.names[0])), (name, self.tile(prompt, name)))
        rows = [
            [stop.name, f"{number(100 * self.grid.macs_ratio(table), 1)} %", mean_text(stop.mean)]
            for stop, table in zip(self.stops, self.tables, strict=True)
        ]
        head = ["schedule", "MACs kept", f"mean SSIM, n = {self.n}"]
        caption = sentences(self.title, "MACs with attention products; 95 % intervals.")
        table = scrolling("Recorded schedules", caption, head, rows, self.passport)
        return f"{self._drawing()}{self.pair(shown, prompt)}{table}"

    def _drawing(self) -> str:
        """Return the table shown first: filled where computed, crossed where dead work, empty where reused."""
        name, on = self.names[self.start["stop"]], self.tables[self.start["stop"]]
        live = self.grid.live(on)
        steps, units = on.shape
        step, parts = CELL + GAP, []
        for n, unit in enumerate(self.grid.names):
            parts.append(f'<text x="0" y="{HEAD + n * step + CELL - 4}">{escape(short_name(unit))}</text>')
        for t in range(steps):
            x = LABEL + t * step
            parts.append(f'<text x="{x + CELL / 2}" y="{HEAD - 5}" text-anchor="middle">{t + 1}</text>')
            for n in range(units):
                y, dead = HEAD + n * step, on[t, n] and not live[t, n]
                fill = "var(--pl-line)" if dead else "var(--pl-accent)" if live[t, n] else "none"
                box = f'x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="2"'
                parts.append(f'<rect {box} fill="{fill}" stroke="var(--pl-edge)"/>')
                if dead:
                    parts.append(f'<path d="M{x} {y + CELL}L{x + CELL} {y}" stroke="var(--pl-edge)" stroke-width="2"/>')
        kept = int(live.sum())
        words = f"The schedule {name}: {kept} of {steps * units} cells are computed and used, "
        words += f"{int(on.sum()) - kept} are dead work, the others are used again from an earlier step."
        width, height = LABEL + steps * step, HEAD + units * step
        return (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}" style="width:100%;'
            f'max-width:{width * 1.3:.0f}px;font-size:10.5px;fill:var(--pl-ink)">{"".join(parts)}</svg>'
            '<p class="pl-passport">One row a unit, one column a step. Filled: computed. Crossed: dead work. '
            "Empty: used again from an earlier step.</p>"
        )

    def __repr__(self) -> str:
        steps, units = self.grid.shape
        return f"SchedulePainter({self.name!r}: {steps} steps x {units} units of {self.model}, {len(self.stops)} stops)"


def grid_data(grid: Grid) -> dict:
    """Return what the module needs to know about a grid."""
    whole = sum(grid.macs) + grid.base_macs
    groups = [".".join(name.split(".")[:2]) for name in grid.names]
    return {
        "names": list(grid.names),
        "labels": [short_name(name) for name in grid.names],
        "blocks": [sorted(set(groups)).index(group) for group in groups],
        "steps": grid.shape[0],
        "macs": list(grid.macs),
        "macs_without_attention": list(grid.macs_without_attention),
        "base_macs": grid.base_macs,
        "base_macs_without_attention": grid.base_macs_without_attention,
        "shares": [macs / whole for macs in grid.macs],
        "inputs": [sorted(found) for found in grid.wiring.inputs],
        "output": sorted(grid.wiring.output),
        "reads": grid.wiring.output_reads_input,
    }


def short_name(name: str) -> str:
    """Return a unit's name for a narrow row: "down 0.1" for `down_blocks.0.layers.1`, "up 2 ↑" for an upsampler."""
    parts = name.split(".")
    side = {"down_blocks": "down", "up_blocks": "up", "mid_block": "mid", "transformer_blocks": "block"}
    if parts[0] not in side:
        return name
    words = [side[parts[0]], ".".join(parts[1:])]
    if len(parts) == 4:
        last = {"downsamplers": "\u2193", "upsamplers": "\u2191"}.get(parts[2])
        first = {"resnets": "r", "attentions": "a"}.get(parts[2], "")
        words[1] = f"{parts[1]} {last}" if last else f"{parts[1]}.{first}{parts[3]}"
    return " ".join(filter(None, words))


def scheduled_pictures(pipe: Any, schedule: Schedule | None, prompts: Sequence[str], *, first: int = 0) -> Tensor:
    """Draw, as `draw` does, by a schedule, None for everything; picture i is from the noise of seed `first` + i."""
    at = first - FIRST_SEED
    if schedule is None:
        return draw(pipe, prompts, first=at, steps=STEPS)[0]
    with schedule.applied(pipe):
        return draw(pipe, prompts, first=at, steps=schedule.steps)[0]


def presets(grid: Grid) -> dict[str, tuple[str, Tensor, str]]:
    """Return name -> (group, table `[T, N]`, what to see) of the recorded schedules, for a UNet's grid of layers.

    The first computes everything. Besides the patterns there is one for every unit that is computed at the first step
    only, and one for every step that is left out.
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
    """Return the painter of chapter 12, from the record that `benchmarks/schedule_painter.py` writes.

    With `load`, as `pruning_lib.load`, every painted table is run where a kernel is there and its picture shown.
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
