"""Tables of cells as text, one string per call: how records and histories keep them.

Dead work: cells of the grid that are switched on, but whose result nobody ever reads.

A value is read by a unit that runs in the same call, by the denoiser's output, or later: a unit that is off passes on
its last value, so a value computed now may be read many steps from now.  Walking back from the last step, through both
the wiring and the steps, finds every cell whose value matters.  Leaving the others out changes no bit of the picture.

The grid of DiP-GO: the calls of the denoiser in one generation, times its units.

A grid is plain data.  It knows what every cell costs and which cells depend on which, so schedules can be made, counted
and checked without the model.

A schedule: which unit is computed at which call, and what has to fit before a pipeline may follow it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..denoisers import denoiser_of
from ..files import check_place
from .replay import Replay, applied
from .units import GRAINS, Units, units_of
from .wiring import Wiring

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from matplotlib.figure import Figure

__all__ = ["Grid", "Schedule", "grid_of", "live_cells", "paper_cascade", "timesteps_of", "encode_table", "decode_table"]


def encode_table(on: Tensor) -> list[str]:
    """Return a boolean table `[T, N]` as strings of "1" and "0", one per step."""
    return ["".join("1" if cell else "0" for cell in row) for row in on.tolist()]


def decode_table(rows: Sequence[str]) -> Tensor:
    """Return the boolean table `[T, N]` of `encode_table`.

    Raises:
        ValueError: rows of different lengths, or other characters than "0" and "1".
    """
    if not rows or len({len(row) for row in rows}) > 1 or not all(re.fullmatch("[01]+", row) for row in rows):
        raise ValueError(f"A table is strings of 0 and 1, all equally long; these are {list(rows)[:3]!r} …")
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


def live_cells(on: Tensor, wiring: Wiring) -> Tensor:
    """Return which of the cells that are on do work that reaches the picture.

    Args:
        on: bool `[T, N]`, True where a unit is to be computed.
        wiring: who reads whom within a call.

    Returns:
        bool `[T, N]`, a subset of `on`.
    """
    readers = [_bits(units) for units in wiring.consumers()]
    output = _bits(wiring.output)
    alive = []
    needed_later = 0  # units whose value at this row some later row reads, before they are computed again
    for row in reversed(_rows(on)):
        live = needed = 0
        for unit in reversed(range(len(readers))):
            bit = 1 << unit
            if (output | needed_later) & bit or readers[unit] & live:
                needed |= bit
                live |= row & bit
        alive.append(live)
        needed_later = needed & ~live  # not computed here, so read from the row before
    return _table(alive[::-1], on)


def paper_cascade(on: Tensor, wiring: Wiring) -> Tensor:
    """Return the cells that the paper's rule keeps: within one step, a unit none of whose readers runs is switched off.

    That is the rule of the authors' public code. It forgets readers at later steps: a unit computed now for a later
    one loses its fresh value, so the picture may change.

    Args:
        on: bool `[T, N]`.
        wiring: who reads whom within a call.

    Returns:
        bool `[T, N]`, a subset of `on`.
    """
    readers = [_bits(units) for units in wiring.consumers()]
    output = _bits(wiring.output)
    kept = []
    for row in _rows(on):
        live = 0
        for unit in reversed(range(len(readers))):
            if output & (1 << unit) or readers[unit] & live:
                live |= row & (1 << unit)
        kept.append(live)
    return _table(kept, on)


# Sets of units as the bits of one whole number: searches ask for live cells thousands of times.
def _bits(units: frozenset[int]) -> int:
    return sum(1 << unit for unit in units)


def _rows(on: Tensor) -> list[int]:
    return [sum(1 << unit for unit, is_on in enumerate(row) if is_on) for row in on.tolist()]


def _table(rows: list[int], like: Tensor) -> Tensor:
    units = range(like.shape[1])
    return torch.tensor([[bool(row >> unit & 1) for unit in units] for row in rows]).reshape(like.shape)


@dataclass(frozen=True)
class Grid:
    """T calls of a denoiser, in order, times its N units.

    Attributes:
        names: of the units, in the order in which they run.
        macs, macs_without_attention: per unit, of one sample and one call.
        base_macs, base_macs_without_attention: of what runs in every call besides the units.
        wiring: which unit reads which.
        grain: of the units.
        class_name, structure: of the denoiser.
        scheduler: class name of the scheduler.
        steps: `num_inference_steps` that gives these timesteps.
        timesteps: of the T calls, as the scheduler lists them. Some schedulers call more often than `steps`.
    """

    names: tuple[str, ...]
    macs: tuple[int, ...]
    macs_without_attention: tuple[int, ...]
    base_macs: int
    base_macs_without_attention: int
    wiring: Wiring
    grain: str
    class_name: str
    structure: str
    scheduler: str
    steps: int
    timesteps: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        return len(self.timesteps), len(self.names)

    @cached_property
    def total_macs(self) -> int:
        """MACs of all T calls with everything computed, one sample, attention products included."""
        return self.macs_of(torch.ones(self.shape, dtype=torch.bool))

    def check(self, on: object) -> Tensor:
        """Return `on` as a table of this grid.

        Raises:
            ValueError: not T x N truth values, or a first row that is not all on.
        """
        if not isinstance(on, Tensor):
            on = torch.as_tensor(on)
        if on.dtype != torch.bool:
            wrong = on[(on != 0) & (on != 1)]
            if wrong.numel():
                raise ValueError(f"A schedule holds truth values (True: computed), got {wrong[0].item()}.")
            on = on != 0
        if tuple(on.shape) != self.shape:
            raise ValueError(
                f"The table has shape {tuple(on.shape)}, but this grid has {self.shape[0]} calls of {self.shape[1]} "
                "units. Give one row per call and one column per unit."
            )
        if not on[0].all():
            off = [name for name, is_on in zip(self.names, on[0].tolist(), strict=True) if not is_on]
            raise ValueError(
                f"In the first row {len(off)} of {len(self.names)} units are off, such as {off[0]}. At the first call "
                "there is nothing to reuse yet: the first row must be all on."
            )
        return on.detach().cpu().clone()

    def live(self, on: Tensor) -> Tensor:
        """Return the cells that are on and whose work reaches the picture, bool `[T, N]`; see `live_cells`."""
        return live_cells(torch.as_tensor(on), self.wiring)

    def calls(self, on: Tensor) -> Tensor:
        """Return the rows at which the denoiser is called, bool `[T]`.

        Where nothing at all is computed and the output reads units only, the output is the last one: no call.
        """
        return self._calls_of_live(self.live(on))

    def _calls_of_live(self, live: Tensor) -> Tensor:
        return live.any(dim=1) | torch.tensor(self.wiring.output_reads_input)

    def macs_of(self, on: Tensor, *, attention: bool = True) -> int:
        """Count the MACs of one sample over all rows, without dead work.

        Args:
            on: bool `[T, N]`.
            attention: count the products of attention (the default), or leave them out, as DiP-GO's tables of Stable
                Diffusion do.
        """
        live = self.live(on)
        units = self.macs if attention else self.macs_without_attention
        base = self.base_macs if attention else self.base_macs_without_attention
        cells = int((live * torch.tensor(units, dtype=torch.int64)).sum())
        return cells + base * int(self._calls_of_live(live).sum())

    def macs_ratio(self, on: Tensor, *, attention: bool = True) -> float:
        """Return the share of MACs that a table keeps, in (0, 1]."""
        everything = torch.ones(self.shape, dtype=torch.bool)
        return self.macs_of(on, attention=attention) / self.macs_of(everything, attention=attention)

    def full(self) -> Schedule:
        """Return the schedule that computes everything."""
        return self.schedule(torch.ones(self.shape, dtype=torch.bool), method="full")

    def schedule(self, on: object, **provenance: object) -> Schedule:
        """Make a schedule of a table; `provenance` says where it comes from."""

        return Schedule(self, on, provenance)

    def difference(self, other: Grid) -> str:
        """Say in words what differs between two grids, or return ""."""
        for name, what in _COMPARED.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{what}: {_short(mine)} here, {_short(theirs)} there"
        return ""

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        return {
            "units": {
                "grain": self.grain,
                "names": list(self.names),
                "macs": list(self.macs),
                "macs_without_attention": list(self.macs_without_attention),
            },
            "base_macs": self.base_macs,
            "base_macs_without_attention": self.base_macs_without_attention,
            "wiring": self.wiring.to_dict(),
            "denoiser": {"class": self.class_name, "structure": self.structure},
            "scheduler": self.scheduler,
            "steps": self.steps,
            "timesteps": list(self.timesteps),
        }

    @classmethod
    def from_dict(cls, data: dict) -> Grid:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: something is missing or does not fit together.
        """
        units = data["units"]
        grid = cls(
            names=tuple(_checked(name, str) for name in units["names"]),
            grain=_checked(units["grain"], str),
            macs=tuple(_checked(macs, int) for macs in units["macs"]),
            macs_without_attention=tuple(_checked(macs, int) for macs in units["macs_without_attention"]),
            base_macs=_checked(data["base_macs"], int),
            base_macs_without_attention=_checked(data["base_macs_without_attention"], int),
            wiring=Wiring.from_dict(data["wiring"]),
            class_name=_checked(data["denoiser"]["class"], str),
            structure=_checked(data["denoiser"]["structure"], str),
            scheduler=_checked(data["scheduler"], str),
            steps=_checked(data["steps"], int),
            timesteps=tuple(map(float, data["timesteps"])),
        )
        if grid.grain not in GRAINS:
            raise ValueError(f"there is no grain {grid.grain!r}")
        numbers = (*grid.macs, *grid.macs_without_attention, grid.base_macs, grid.base_macs_without_attention)
        if grid.steps < 1 or min(numbers) < 0:
            raise ValueError("MACs below zero, or less than one step")
        lengths = {len(grid.names), len(grid.macs), len(grid.macs_without_attention), len(grid.wiring.inputs)}
        if len(lengths) != 1 or not grid.timesteps or not grid.names:
            raise ValueError(f"Names, MACs and wiring are of {sorted(lengths)} units; they must be of the same.")
        return grid


def _checked(value: object, kind: type) -> object:
    """Return a value of a file if it is of this type; a truth value is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} stands where a {kind.__name__} belongs")
    return value


_COMPARED = {
    "class_name": "another kind of denoiser",
    "names": "other units",
    "structure": "another denoiser (its configuration differs)",
    "scheduler": "another scheduler",
    "steps": "another number of steps",
    "timesteps": "other timesteps",
}


def _short(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return f"{len(value)} ({', '.join(map(str, value[:3]))}, ...)"


def grid_of(
    pipe: DiffusionPipeline,
    steps: int,
    grain: str | Units = "layers",
    *,
    timesteps: Sequence[float] | None = None,
    sample_size: int | tuple[int, int] | None = None,
) -> Grid:
    """Lay out the units of a pipeline's denoiser over the steps of its scheduler.

    Args:
        pipe: a diffusers pipeline; only its denoiser's structure and its scheduler's configuration are read.
        steps: `num_inference_steps` of the generation, >= 1.
        grain: of the units, one of `GRAINS`; or units that were found before.
        timesteps: of every call of the denoiser, for pipelines that compute their own; default: the scheduler's.
        sample_size: side of the latent, or (height, width), that MACs are counted at. Default: the configuration's.

    Raises:
        TypeError: not a pipeline with a denoiser and a scheduler.
        ValueError: numbers out of range, or a scheduler that needs to be told its timesteps.
    """
    _, denoiser = denoiser_of(pipe)
    units = grain if isinstance(grain, Units) else units_of(denoiser, grain, sample_size=sample_size)
    found = timesteps_of(pipe, steps) if timesteps is None else tuple(float(t) for t in timesteps)
    return Grid(
        names=units.names,
        macs=units.macs,
        macs_without_attention=units.macs_without_attention,
        base_macs=units.base_macs,
        base_macs_without_attention=units.base_macs_without_attention,
        wiring=units.wiring,
        grain=units.grain,
        class_name=units.class_name,
        structure=units.structure,
        scheduler=type(pipe.scheduler).__name__,
        steps=steps,
        timesteps=found,
    )


def timesteps_of(pipe: DiffusionPipeline, steps: int) -> tuple[float, ...]:
    """Return the timesteps at which the denoiser is called, in order; the pipeline's scheduler is left alone.

    Raises:
        ValueError: steps out of range, or a scheduler whose timesteps depend on the picture's size.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps={steps!r}; it must be a whole number >= 1.")
    scheduler = copy.deepcopy(pipe.scheduler)
    vars(scheduler).pop("set_timesteps", None)  # what an applied schedule put around it
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:
        raise ValueError(
            f"{type(scheduler).__name__} does not tell its timesteps for {steps} steps alone: {error} Run the pipeline "
            "once as you will use it and pass timesteps=pipe.scheduler.timesteps.tolist()."
        ) from error
    return tuple(float(t) for t in scheduler.timesteps.tolist())


_FORMAT = "pruning_lib.schedule/1"


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of T calls by N units, True where a unit is computed, False where its last value is used again.

    Attributes:
        grid: what the rows and columns are.
        on: bool `[T, N]`; the first row is all True.
        provenance: where it comes from: method, budget, seeds; plain values.

    Raises:
        ValueError: a table that does not fit the grid, or a first row that is not all on.

    Example:
        >>> schedule = Schedule.load("lion.schedule.json")
        >>> with schedule.applied(pipe):
        ...     image = pipe("lion", num_inference_steps=schedule.steps).images[0]
    """

    grid: Grid
    on: Tensor
    provenance: dict[str, object] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "on", self.grid.check(self.on))

    @property
    def steps(self) -> int:
        """`num_inference_steps` to call the pipeline with."""
        return self.grid.steps

    @property
    def label(self) -> str:
        """A short name: the method it comes from."""
        return str(self.provenance.get("method", "schedule"))

    def live(self) -> Tensor:
        """Return the cells that are on and whose work reaches the picture, bool `[T, N]`."""
        return self.grid.live(self.on)

    def macs(self, *, attention: bool = True) -> int:
        """Return the MACs of one sample over all calls; dead work is never run and not counted."""
        return self.grid.macs_of(self.on, attention=attention)

    def macs_ratio(self, *, attention: bool = True) -> float:
        """Return the share of MACs kept, in (0, 1]."""
        return self.grid.macs_ratio(self.on, attention=attention)

    def applied(self, pipe: DiffusionPipeline) -> AbstractContextManager[Replay]:
        """Let a pipeline follow this schedule inside a `with` block.

        Only live cells are computed; a call with nothing to compute is skipped. On leaving, the pipeline is as it was.
        Image to image, which begins at a later row, computes everything at its first call.

        Args:
            pipe: a pipeline with the denoiser and scheduler this schedule was made for. Its denoiser may be offloaded,
                compiled, or carry LoRA.

        Raises:
            ValueError: another denoiser or scheduler; inside the block, a run with another number of steps. All of
                them before the denoiser is called.
            RuntimeError: a schedule is applied already.
        """
        return applied(self, pipe)

    def plot(self, *, title: str | None = None) -> Figure:
        """Draw the table: computed, dead and reused cells, one row per unit, time to the right."""
        from pruning_book.plots.drawing import draw_schedule

        return draw_schedule(self, title=title)

    def save(self, path: str | Path) -> Path:
        """Write the schedule as JSON, with all that is needed to check and count it.

        Raises:
            FileNotFoundError, IsADirectoryError: no such folder, or a folder of that name.
        """
        path = Path(path)
        check_place(path)
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")
        return path

    def to_dict(self) -> dict[str, object]:
        """Return plain values; rows as texts of 1 (computed) and 0 (reused)."""
        return {"format": _FORMAT, **self.grid.to_dict(), "rows": encode_table(self.on), "provenance": self.provenance}

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read a schedule.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a schedule, or a damaged one, with what is wrong.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}. Save the schedule anew.") from error
        return cls.from_dict(data, source=str(path))

    @classmethod
    def from_dict(cls, data: object, *, source: str = "this") -> Schedule:
        """Read what `to_dict` wrote; errors as `load`."""
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"{source} is not a schedule: its format is {found!r}, expected {_FORMAT!r}. "
                "Schedule.save() writes one."
            )
        try:
            grid = Grid.from_dict(data)
            rows = data["rows"]
            if any(not isinstance(row, str) or set(row) - {"0", "1"} for row in rows):
                raise ValueError("a row holds something besides 0 and 1")
            if len({len(row) for row in rows}) > 1:
                raise ValueError("its rows are of different lengths")
            on = torch.tensor([[cell == "1" for cell in row] for row in rows], dtype=torch.bool)
            return cls(grid, on, dict(data.get("provenance") or {}))
        except (KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{source} is a damaged schedule: {what}. Save it anew.") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.grid == other.grid and bool(torch.equal(self.on, other.on))

    def __repr__(self) -> str:
        calls, units = self.grid.shape
        return f"<Schedule {self.label!r}: {calls} calls x {units} units, {self.macs_ratio():.1%} of the MACs>"
