"""The schedule painter: switch units off at single steps, and see dead work, MACs and the picture follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._text import nearest
from ..measure.record import RecordError, check_writable, load_record, record_path, save_record
from .painter_fallback import painter_fallback
from .recorded import load_sheet, save_sheet
from .sprites import Sheet, data_url, to_pil
from .twin import TwinWidget, passport_line

if TYPE_CHECKING:
    from ..steps.grid import Grid

__all__ = ["PaintedStop", "SchedulePainter", "short_name", "to_rows", "to_table"]

DATA_VERSION = 1
_FIELDS = ("model", "grid", "stops", "prompts", "n", "tile", "sheet")
_SAMPLER = {"downsamplers": "\u2193", "upsamplers": "\u2191"}


@dataclass(frozen=True)
class PaintedStop:
    """A schedule whose pictures were recorded.

    Attributes:
        name: as it is chosen from the list; no two alike.
        group: heading under which it stands there.
        on: one string per step, one digit per unit: "1" computed, "0" used again.
        ssim: of each shown picture to the unpruned one.
        mean: mean SSIM over more pictures: "value", "low", "high".
        note: one sentence on what to see.
    """

    name: str
    group: str
    on: Sequence[str]
    ssim: Sequence[float]
    mean: Mapping[str, float]
    note: str = ""


def to_rows(on: Tensor) -> list[str]:
    """Return a boolean table `[T, N]` as strings of "1" and "0", one per step."""
    return ["".join("1" if cell else "0" for cell in row) for row in on.tolist()]


def to_table(rows: Sequence[str]) -> Tensor:
    """Return the boolean table `[T, N]` of `to_rows`.

    Raises:
        ValueError: rows of different lengths, or other characters than "0" and "1".
    """
    if not rows or len({len(row) for row in rows}) > 1 or not all(re.fullmatch("[01]+", row) for row in rows):
        raise ValueError(f"A table is strings of 0 and 1, all equally long; these are {list(rows)[:3]!r} …")
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


def short_name(name: str) -> str:
    """Return a unit's name for a narrow row: "down 0.1" for `down_blocks.0.layers.1`, "up 2 ↑" for an upsampler."""
    parts = name.split(".")
    side = {"down_blocks": "down", "up_blocks": "up", "mid_block": "mid", "transformer_blocks": "block"}
    if parts[0] not in side:
        return name
    words = [side[parts[0]], ".".join(parts[1:])]
    if len(parts) == 4:
        last = _SAMPLER.get(parts[2])
        first = {"resnets": "r", "attentions": "a"}.get(parts[2], "")
        words[1] = f"{parts[1]} {last}" if last else f"{parts[1]}.{first}{parts[3]}"
    return " ".join(filter(None, words))


class SchedulePainter(TwinWidget):
    """A table of units by steps to paint, with exact MACs, and pictures where recorded or drawn by a kernel.

    Args:
        name: identifies the figure in its page; an address ending in `#name:schedule=every 2nd step` sets it.
        grid: of the units and steps that are painted.
        stops: recorded schedules; the first computes everything.
        prompts: of the shown pictures.
        images: for each prompt one picture per stop, as a `SweepExplorer` takes them.
        model: the pipeline's name, for readers.
        n: pictures behind each mean SSIM.
        title: one line above the controls.
        picture: what the pictures are.
        start: "prompt" and "schedule" (a stop's name) shown first; by default the first prompt and the second stop.
        passport: of the record, or a sentence.
        on_change: called with `{"prompt", "on"}`, `on` being live cells as `to_rows` writes them, where a kernel is
            there; returns `{"image": picture of the same size, "ssim", "ms", "whole_ms": time with this schedule and
            without any}`.

    Raises:
        ValueError: lists that do not fit together, a stop that is no table of the grid, or an unknown start.
    """

    module: ClassVar[str] = "schedule_painter"

    def __init__(
        self, name: str, grid: Grid, stops: Sequence[PaintedStop | Mapping], prompts: Sequence[str], images: Any, *,
        model: str, n: int, title: str, picture: str = "generated image", start: Mapping[str, Any] | None = None,
        passport: Mapping | str | None = None, on_change: Callable[[dict], Mapping] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name, on_change=on_change)
        self.grid, self.model, self.n, self.title, self.picture = grid, model, n, title, picture
        self.stops = [stop if isinstance(stop, PaintedStop) else PaintedStop(**stop) for stop in stops]
        self.prompts, self.passport = list(prompts), passport_line(passport)
        self.tables = self._check_lists()
        self.sheet = images if isinstance(images, Sheet) else Sheet.pack(images)
        wanted = len(self.stops) * len(self.prompts)
        if self.sheet.count != wanted:
            raise ValueError(
                f"there are {self.sheet.count} images; {len(self.prompts)} prompts with {len(self.stops)} schedules "
                f"make {wanted}."
            )
        names = [stop.name for stop in self.stops]
        given = {"prompt": self.prompts[0], "schedule": names[min(1, len(names) - 1)], **(start or {})}
        self.start = {
            "prompt": _place(given["prompt"], self.prompts, "prompt"),
            "stop": _place(given["schedule"], names, "schedule"),
        }

    def _check_lists(self) -> list[Tensor]:
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(f"prompts are {self.prompts}; give at least one, none twice.")
        names = [stop.name for stop in self.stops]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"schedules are called {names}; give at least one, each with its own name.")
        tables = [to_table(stop.on) for stop in self.stops]
        for stop, table in zip(self.stops, tables, strict=True):
            try:
                self.grid.check(table)
            except ValueError as error:
                raise ValueError(f"{stop.name!r}: {error}") from error
            if len(stop.ssim) != len(self.prompts):
                raise ValueError(
                    f"{stop.name!r} has {len(stop.ssim)} values of ssim for {len(self.prompts)} prompts."
                )
        if not tables[0].all():
            raise ValueError(f"the first schedule, {names[0]!r}, must compute everything.")
        return tables

    @classmethod
    def from_record(cls, record: str | Path, name: str, **options: Any) -> SchedulePainter:
        """Make a painter from a record that `save` wrote; `options` as for the class.

        Raises:
            RecordError: the record cannot be read or is of another kind, or its sheet is missing or another one.
        """
        from ..steps.grid import Grid

        found, path = load_record(record), record_path(record)
        data = found["data"]
        missing = [key for key in _FIELDS if key not in data]
        if missing:
            raise RecordError(
                f"{path} is no record of a schedule painter: its data lack {', '.join(missing)}."
            )
        sheet = load_sheet(path, data, len(data["prompts"]) * len(data["stops"]))
        options.setdefault("passport", found["passport"])
        try:
            grid = Grid.from_dict(data["grid"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{path} holds a damaged grid: {error!r}. Record it anew.") from error
        return cls(
            name, grid, data["stops"], data["prompts"], sheet, model=data["model"], n=data["n"], **options
        )

    def save(
        self, path: str | Path, experiment: str, passport: Mapping, *, quality: int | None = None, **more: Any
    ) -> Path:
        """Write everything as a record, `<path>.json`, and the pictures as a sheet beside it.

        Args:
            path: the record's file, ending in .json.
            experiment: its name.
            passport: as `measure.passport` returns it.
            quality: of the sheet, 1 to 100; None stores it without loss.
            more: further data, JSON-ready.

        Raises:
            RecordError: the place cannot be written to.
        """
        path = check_writable(path)
        data = {
            "model": self.model, "n": self.n, "prompts": self.prompts, "grid": self.grid.to_dict(),
            "stops": [asdict(stop) for stop in self.stops], **save_sheet(path, self.sheet, quality), **more,
        }  # fmt: skip
        return save_record(path, experiment, data, passport)

    def data(self) -> dict:
        """Return what the module draws."""
        sheet = {"columns": self.sheet.columns, "width": self.sheet.width, "height": self.sheet.height}
        return {
            "version": DATA_VERSION, "name": self.name, "title": self.title, "picture": self.picture,
            "model": self.model, "passport": self.passport, "prompts": self.prompts, "n": self.n,
            "start": self.start, "grid": grid_data(self.grid),
            "stops": [asdict(stop) for stop in self.stops],
            "sheet": {"src": self.sheet.url(), **sheet},
        }  # fmt: skip

    def stop(self, name: str) -> PaintedStop:
        """Return the recorded schedule called `name`.

        Raises:
            ValueError: there is none.
        """
        return self.stops[_place(name, [stop.name for stop in self.stops], "schedule")]

    def tile(self, prompt: str, schedule: str) -> Any:
        """Return a recorded picture."""
        place = _place(schedule, [stop.name for stop in self.stops], "schedule")
        return self.sheet.tile(_place(prompt, self.prompts, "prompt") * len(self.stops) + place)

    def answer(self, state: dict) -> dict:
        """Return what `on_change` computed for `state`, checked and ready for the page."""
        given = dict(self.on_change(state))
        (image,) = to_pil([given["image"]])
        if image.size != (self.sheet.width, self.sheet.height):
            raise ValueError(
                f"on_change returned an image of {image.size}; recorded: {(self.sheet.width, self.sheet.height)}"
            )
        return {"image": data_url(image), **{key: float(given[key]) for key in ("ssim", "ms", "whole_ms")}}

    def fallback_html(self) -> str:
        """Return the table at the start, its pictures, and all recorded schedules."""
        return painter_fallback(self)

    def __repr__(self) -> str:
        steps, units = self.grid.shape
        return f"SchedulePainter({self.name!r}: {steps} steps x {units} units of {self.model}, {len(self.stops)} stops)"


def grid_data(grid: Grid) -> dict:
    """Return what the module needs to know about a grid."""
    whole = sum(grid.macs) + grid.base_macs
    groups = [".".join(name.split(".")[:2]) for name in grid.names]
    return {
        "names": list(grid.names), "labels": [short_name(name) for name in grid.names],
        "blocks": [sorted(set(groups)).index(group) for group in groups], "steps": grid.shape[0],
        "macs": list(grid.macs), "macs_without_attention": list(grid.macs_without_attention),
        "base_macs": grid.base_macs, "base_macs_without_attention": grid.base_macs_without_attention,
        "shares": [macs / whole for macs in grid.macs],
        "inputs": [sorted(found) for found in grid.wiring.inputs], "output": sorted(grid.wiring.output),
        "reads": grid.wiring.output_reads_input,
    }  # fmt: skip


def _place(value: Any, among: Sequence, what: str) -> int:
    if value not in among:
        raise ValueError(f"there is no {what} {value!r}. {nearest(str(value), list(map(str, among)))}")
    return list(among).index(value)
