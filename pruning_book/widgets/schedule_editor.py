"""The schedule painter: switch units off at single steps, and see dead work, MACs and the picture follow.

The static side of the schedule painter: the table at the start, its pictures, and all recorded schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from pruning_lib.checks import place
from pruning_lib.records import RecordError, record_path
from pruning_lib.steps.schedule import decode_table

from .axes import number
from .base import TwinWidget, passport_line
from .editor_grid import grid_data
from .html import MAX_ALT
from .recorded import load_pictured, save_pictured
from .sheet import Sheet, data_url

if TYPE_CHECKING:
    from pruning_lib.steps.schedule import Grid

__all__ = ["PaintedStop", "SchedulePainter", "painter_fallback"]

DATA_VERSION = 1
_FIELDS = ("model", "grid", "stops", "prompts", "n")


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
        on_change: called with `{"prompt", "on"}`, `on` being live cells as `encode_table` writes them, where a kernel is
            there; returns `{"image": picture of the same size, "ssim", "ms", "whole_ms": time with this schedule and
            without any}`.

    Raises:
        ValueError: lists that do not fit together, a stop that is no table of the grid, or an unknown start.
    """

    module: ClassVar[str] = "schedule_painter"

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
        title: str,
        picture: str = "generated image",
        start: Mapping[str, Any] | None = None,
        passport: Mapping | str | None = None,
        on_change: Callable[[dict], Mapping] | None = None,
    ) -> None:
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
            "prompt": place(given["prompt"], self.prompts, "prompt"),
            "stop": place(given["schedule"], names, "schedule"),
        }

    def _check_lists(self) -> list[Tensor]:
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(f"prompts are {self.prompts}; give at least one, none twice.")
        names = [stop.name for stop in self.stops]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"schedules are called {names}; give at least one, each with its own name.")
        tables = [decode_table(stop.on) for stop in self.stops]
        for stop, table in zip(self.stops, tables, strict=True):
            try:
                self.grid.check(table)
            except ValueError as error:
                raise ValueError(f"{stop.name!r}: {error}") from error
            if len(stop.ssim) != len(self.prompts):
                raise ValueError(f"{stop.name!r} has {len(stop.ssim)} values of ssim for {len(self.prompts)} prompts.")
        if not tables[0].all():
            raise ValueError(f"the first schedule, {names[0]!r}, must compute everything.")
        return tables

    @classmethod
    def from_record(cls, record: str | Path, name: str, **options: Any) -> SchedulePainter:
        """Make a painter from a record that `save` wrote; `options` as for the class.

        Raises:
            RecordError: the record cannot be read or is of another kind, or its sheet is missing or another one.
        """
        from pruning_lib.steps.schedule import Grid

        data, sheet, passport = load_pictured(
            record, "a schedule painter", _FIELDS, lambda data: len(data["prompts"]) * len(data["stops"])
        )
        options.setdefault("passport", passport)
        try:
            grid = Grid.from_dict(data["grid"])
        except (KeyError, TypeError, ValueError) as error:
            found = f"{record_path(record)} holds a damaged grid: {error!r}."
            raise RecordError(f"{found} Record it anew.") from error
        return cls(name, grid, data["stops"], data["prompts"], sheet, model=data["model"], n=data["n"], **options)

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
        data = {
            "model": self.model,
            "n": self.n,
            "prompts": self.prompts,
            "grid": self.grid.to_dict(),
            "stops": [asdict(stop) for stop in self.stops],
            **more,
        }
        return save_pictured(path, experiment, data, self.sheet, passport, quality=quality)

    def data(self) -> dict:
        """Return what the module draws."""
        sheet = {"columns": self.sheet.columns, "width": self.sheet.width, "height": self.sheet.height}
        return {
            "version": DATA_VERSION,
            "name": self.name,
            "title": self.title,
            "picture": self.picture,
            "model": self.model,
            "passport": self.passport,
            "prompts": self.prompts,
            "n": self.n,
            "start": self.start,
            "grid": grid_data(self.grid),
            "stops": [asdict(stop) for stop in self.stops],
            "sheet": {"src": self.sheet.url(), **sheet},
        }

    def stop(self, name: str) -> PaintedStop:
        """Return the recorded schedule called `name`.

        Raises:
            ValueError: there is none.
        """
        return self.stops[place(name, [stop.name for stop in self.stops], "schedule")]

    def tile(self, prompt: str, schedule: str) -> Any:
        """Return a recorded picture."""
        stop = place(schedule, [stop.name for stop in self.stops], "schedule")
        return self.sheet.tile(place(prompt, self.prompts, "prompt") * len(self.stops) + stop)

    def answer(self, state: dict) -> dict:
        """Return what `on_change` computed for `state`, checked and ready for the page."""
        given = dict(self.on_change(state))
        numbers = {key: float(given[key]) for key in ("ssim", "ms", "whole_ms")}
        return {"image": self.sheet.url_of(given["image"]), **numbers}

    def fallback_html(self) -> str:
        """Return the table at the start, its pictures, and all recorded schedules."""
        return painter_fallback(self)

    def __repr__(self) -> str:
        steps, units = self.grid.shape
        return f"SchedulePainter({self.name!r}: {steps} steps x {units} units of {self.model}, {len(self.stops)} stops)"


CELL, GAP, LABEL, HEAD = 16, 2, 70, 18


def painter_fallback(painter: SchedulePainter) -> str:
    """Return the drawn table, two pictures, and a table of the recorded schedules."""
    place = painter.start["stop"]
    stop, prompt = painter.stops[place], painter.prompts[painter.start["prompt"]]
    figures = "".join(
        f'<figure><img src="{data_url(tile)}" width="{tile.width}" height="{tile.height}" '
        f'alt="{escape(f"{painter.picture}, {prompt}, {what}"[:MAX_ALT])}">'
        f"<figcaption>{escape(what)}</figcaption></figure>"
        for what, tile in (
            ("unpruned", painter.tile(prompt, painter.stops[0].name)),
            (stop.name, painter.tile(prompt, stop.name)),
        )
    )
    rows = []
    for found, table in zip(painter.stops, painter.tables, strict=True):
        mean = found.mean
        rows.append(
            f'<tr><th scope="row">{escape(found.name)}</th>'
            f"<td>{number(100 * painter.grid.macs_ratio(table), 1)} %</td>"
            f"<td>{number(mean['value'], 3)} ({number(mean['low'], 3)} to {number(mean['high'], 3)})</td></tr>"
        )
    heads = "".join(
        f'<th scope="col">{escape(text)}</th>' for text in ("schedule", "MACs kept", f"mean SSIM, n = {painter.n}")
    )
    title = painter.title if painter.title[-1] in ".?!" else painter.title + "."
    table = (
        f'<div class="pl-scroll" tabindex="0" role="region" aria-label="Recorded schedules"><table>'
        f"<caption>{escape(title)} MACs with attention products; 95 % intervals.</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    passport = f'<p class="pl-passport">{escape(painter.passport)}</p>' if painter.passport else ""
    return f'{drawn_table(painter)}<div class="pl-pair">{figures}</div>{table}{passport}'


def drawn_table(painter: SchedulePainter) -> str:
    """Return the table shown first as a picture: filled where computed, crossed where dead work, empty where reused."""
    from .editor_grid import short_name

    on = painter.tables[painter.start["stop"]]
    live, stop = painter.grid.live(on).numpy(), painter.stops[painter.start["stop"]]
    steps, units = on.shape
    step, parts = CELL + GAP, []
    for t in range(steps):
        x = LABEL + t * step
        parts.append(f'<text x="{x + CELL / 2}" y="{HEAD - 5}" text-anchor="middle">{t + 1}</text>')
        for n in range(units):
            y = HEAD + n * step
            fill = "var(--pl-accent)" if live[t, n] else "var(--pl-line)" if on[t, n] else "none"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="2" fill="{fill}" stroke="var(--pl-edge)"/>'
            )
            if on[t, n] and not live[t, n]:
                parts.append(f'<path d="M{x} {y + CELL}L{x + CELL} {y}" stroke="var(--pl-edge)" stroke-width="2"/>')
    labels = "".join(
        f'<text x="0" y="{HEAD + n * step + CELL - 4}">{escape(short_name(name))}</text>'
        for n, name in enumerate(painter.grid.names)
    )
    kept = int(live.sum())
    words = f"The schedule {stop.name}: {kept} of {steps * units} cells are computed and used, "
    words += f"{int(on.sum()) - kept} are dead work, the others are used again from an earlier step."
    width, height = LABEL + steps * step, HEAD + units * step
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}" '
        f'style="width:100%;max-width:{width * 1.3:.0f}px;font-size:10.5px;fill:var(--pl-ink)">'
        f"{labels}{''.join(parts)}</svg>"
        '<p class="pl-passport">One row a unit, one column a step. Filled: computed. Crossed: dead work. '
        "Empty: used again from an earlier step.</p>"
    )
