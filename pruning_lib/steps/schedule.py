"""The grid of DiP-GO, calls of the denoiser times its units, and a schedule: which of its cells are computed.

A grid is plain data: it knows what every cell costs and which cells depend on which, so schedules can be made, counted
and checked without the model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..capture import captured, example_call
from ..checks import check_whole
from ..denoisers import denoiser_of
from ..files import check_format, load_json, reading, save_json
from .replay import Replay, check_hold, following, hold_of
from .units import GRAINS, Unit, structure_of, units_of
from .wiring import Wiring, live_cells, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_VERSIONS = (1, 2, 3)  # of files


def encode_table(on: Tensor) -> list[str]:
    """Return a boolean table `[T, N]` as strings of "1" and "0", one per call: how files and records keep it."""
    return ["".join("1" if cell else "0" for cell in row) for row in on.tolist()]


def decode_table(rows: Sequence[str]) -> Tensor:
    """Return the boolean table `[T, N]` of `encode_table`; other texts are a ValueError."""
    if not rows or len({len(row) for row in rows}) > 1 or not all(re.fullmatch("[01]+", row) for row in rows):
        raise ValueError(f"A table is strings of 0 and 1, all equally long; these are {list(rows)[:3]!r} …")
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


@dataclass(frozen=True)
class Grid:
    """T calls of a denoiser, in order, times its N units."""

    units: tuple[Unit, ...]  # in the order in which they run
    macs: tuple[int, ...]  # per unit, of one sample and one call
    macs_without_attention: tuple[int, ...]
    base_macs: int  # of what runs in every call besides the units
    base_macs_without_attention: int
    wiring: Wiring  # which unit reads which
    grain: str  # of the units
    class_name: str  # of the denoiser
    structure: str  # of the denoiser, as `structure_of` tells it
    scheduler: str  # its class
    steps: int  # `num_inference_steps` that gives these timesteps
    timesteps: tuple[float, ...]  # of the T calls, as the scheduler lists them; some call more often than `steps`

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the units."""
        return tuple(unit.name for unit in self.units)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        return len(self.timesteps), len(self.names)

    @cached_property
    def total_macs(self) -> int:
        """MACs of all T calls with everything computed, one sample, attention products included."""
        return self.full().macs()

    def check(self, on: object) -> Tensor:
        """Return `on` as a table of this grid: ValueError if it is not T x N truth values, the first row all on."""
        on, (calls, units) = torch.as_tensor(on), self.shape
        wrong = on[(on != 0) & (on != 1)]
        if wrong.numel():
            raise ValueError(f"A schedule holds truth values (True: computed), got {wrong[0].item()}.")
        if tuple(on.shape) != self.shape:
            given = f"The table has shape {tuple(on.shape)}"
            raise ValueError(f"{given}, but this grid has {calls} calls of {units} units: one row for each call.")
        off = (on[0] == 0).nonzero().flatten().tolist()
        if off:
            raise ValueError(
                f"In the first row {len(off)} of {units} units are off, such as {self.names[off[0]]}. At the first "
                "call there is nothing to reuse yet: the first row must be all on."
            )
        return (on != 0).detach().cpu()

    def live(self, on: Tensor) -> Tensor:
        """Return the cells that are on and whose work reaches the picture, bool `[T, N]`, as `live_cells`.

        The first row stays as it is: what nobody reads is run there, too, for nothing else could be passed on.
        """
        on = torch.as_tensor(on)
        return torch.cat([on[:1] != 0, live_cells(on, self.wiring)[1:]])

    def calls(self, on: Tensor) -> Tensor:
        """Return the rows at which the denoiser is called, bool `[T]`: where something is computed or read anew."""
        return self.live(on).any(dim=1) | torch.tensor(self.wiring.output_reads_input)

    def macs_of(self, on: Tensor, *, attention: bool = True) -> int:
        """Count the MACs of one sample over all rows of a table, without dead work.

        With attention=False the products of attention are left out, as in DiP-GO's tables of Stable Diffusion.
        """
        live = self.live(on)
        calls = len(live) if self.wiring.output_reads_input else int(live.any(dim=1).sum())
        units = self.macs if attention else self.macs_without_attention
        base = self.base_macs if attention else self.base_macs_without_attention
        return int((live * torch.tensor(units, dtype=torch.int64)).sum()) + base * calls

    def macs_ratio(self, on: Tensor, *, attention: bool = True) -> float:
        """Return the share of MACs that a table keeps, in (0, 1]."""
        everything = self.total_macs if attention else self.full().macs(attention=False)
        return self.macs_of(on, attention=attention) / everything

    def full(self) -> Schedule:
        """Return the schedule that computes everything."""
        return self.schedule(torch.ones(self.shape, dtype=torch.bool), method="full")

    def schedule(self, on: object, *, hold: str = "value", **provenance: object) -> Schedule:
        """Make a schedule of a table; `provenance` says where it comes from."""
        return Schedule(self, on, provenance, hold)

    def difference(self, other: Grid) -> str:
        """Say in words what differs between two grids, or return ""."""
        for name, what in _COMPARED.items():
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                if isinstance(here, tuple):
                    here, there = (f"{len(x)} ({', '.join(map(str, x[:3]))}, ...)" for x in (here, there))
                return f"{what}: {here} here, {there} there"
        return ""

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        units = {name: list(getattr(self, name)) for name in ("names", "macs", "macs_without_attention")}
        units |= {"modules": [list(unit.modules) for unit in self.units]}
        units |= {"streams": [list(map(list, unit.streams)) for unit in self.units]}
        return {
            "units": {"grain": self.grain, **units},
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
        """Read what `to_dict` wrote; where something is missing or does not fit, KeyError, TypeError or ValueError."""
        denoiser = {"class_name": data["denoiser"]["class"], "structure": data["denoiser"]["structure"]}
        flat = {**data, **data["units"], **denoiser, "wiring": Wiring.from_dict(data["wiring"])}
        flat["timesteps"] = map(float, flat["timesteps"])
        lists = ("units", "macs", "macs_without_attention", "timesteps")
        names, nothing = flat["names"], [()] * len(flat["names"])
        # what was written before version 3 did not tell the units' modules; a grid inside another file has no version
        old = data.get("version", 1) < 3 and "modules" not in flat
        told = zip(names, *(nothing if old else flat[key] for key in ("modules", "streams")), strict=True)
        flat["units"] = [Unit(name, tuple(paths), tuple((k, j) for k, j in streams)) for name, paths, streams in told]
        for unit in flat["units"]:
            if not all(isinstance(path, str) for path in unit.modules):
                raise TypeError(f"{unit.modules!r} stands where the modules of {unit.name} belong")
            for place in (place for pair in unit.streams for place in pair):
                check_whole("a stream", place, 0)
        grid = cls(**{f.name: tuple(flat[f.name]) if f.name in lists else flat[f.name] for f in fields(cls)})
        for text in (*grid.names, grid.class_name, grid.structure, grid.scheduler):
            if not isinstance(text, str):
                raise TypeError(f"{text!r} stands where a name belongs")
        for macs in (*grid.macs, *grid.macs_without_attention, grid.base_macs, grid.base_macs_without_attention):
            check_whole("MACs", macs, 0)
        check_whole("steps", grid.steps, 1)
        if grid.grain not in GRAINS:
            raise ValueError(f"there is no grain {grid.grain!r}")
        lengths = {len(grid.names), len(grid.macs), len(grid.macs_without_attention), len(grid.wiring.inputs)}
        if len(lengths) != 1 or not grid.timesteps or not grid.names:
            raise ValueError(f"names, MACs and wiring are of {sorted(lengths)} units; they must be of the same")
        return grid


_COMPARED = {
    "class_name": "another kind of denoiser",
    "names": "other units",
    "structure": "another denoiser (its configuration differs)",
    "scheduler": "another scheduler",
    "steps": "another number of steps",
    "timesteps": "other timesteps",
}


def grid_of(
    pipe: DiffusionPipeline,
    steps: int,
    grain: str | Grid = "layers",
    *,
    timesteps: Sequence[float] | None = None,
    sample_size: int | tuple[int, int] | None = None,
    options: Mapping[str, object] | None = None,
) -> Grid:
    """Lay out the units of a pipeline's denoiser over the steps of its scheduler: costs, wiring and timesteps.

    All three are those of a run of the pipeline, as `captured` records it.

    Args:
        pipe: a diffusers pipeline. Of one without weights the structure is read, and its scheduler asked.
        steps: `num_inference_steps` of the generation, >= 1.
        grain: of the units, one of `GRAINS`; or a grid of these steps, which is returned as it is.
        timesteps, sample_size: where either is given no run is recorded: the timesteps of every call of the denoiser,
            and the side of the latent, or (height, width), that MACs are counted at, of a known family.
        options: other arguments of the pipeline's call, such as {"height": 512} or {"image": image}.

    Raises:
        ValueError: the pipeline cannot be run so, or calls its denoiser in a way that no schedule can follow.
    """
    if isinstance(grain, Grid):
        if grain.steps != steps:
            raise ValueError(f"The grid is for {grain.steps} steps, but steps={steps}.")
        return grain
    denoiser = denoiser_of(pipe)[1]
    if sample_size is None and timesteps is None and not _without_weights(denoiser):
        call = captured(pipe, steps, options)
        timesteps = call.timesteps
    else:
        call = example_call(denoiser, sample_size=sample_size)
        timesteps = timesteps_of(pipe, steps) if timesteps is None else tuple(map(float, timesteps))
    units = units_of(denoiser, grain, call=call)
    traced = trace(denoiser, units, call=call)
    return Grid(
        units=units,
        macs=tuple(macs // call.batch for macs in traced.macs),
        macs_without_attention=tuple(macs // call.batch for macs in traced.macs_without_attention),
        base_macs=traced.base[0] // call.batch,
        base_macs_without_attention=traced.base[1] // call.batch,
        wiring=traced.wiring,
        grain=grain,
        class_name=type(denoiser).__name__,
        structure=structure_of(denoiser),
        scheduler=type(pipe.scheduler).__name__,
        steps=steps,
        timesteps=timesteps,
    )


def _without_weights(denoiser: nn.Module) -> bool:
    """Whether a denoiser is a structure alone; one whose weights wait elsewhere, offloaded, is not."""
    bare = any(weight.device.type == "meta" for weight in denoiser.parameters())
    return bare and not any(hasattr(module, "_hf_hook") for module in denoiser.modules())


def timesteps_of(pipe: DiffusionPipeline, steps: int) -> tuple[float, ...]:
    """Return the timesteps at which the denoiser is called, in order; ValueError where the steps do not tell them."""
    check_whole("steps", steps, 1)
    scheduler = copy.deepcopy(pipe.scheduler)  # the pipeline's own is left alone
    vars(scheduler).pop("set_timesteps", None)  # what an applied schedule put around it
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:
        raise ValueError(
            f"{type(scheduler).__name__} does not tell its timesteps for {steps} steps alone: {error} Run the pipeline "
            "once as you will use it and pass timesteps=pipe.scheduler.timesteps.tolist()."
        ) from error
    return tuple(float(t) for t in scheduler.timesteps.tolist())


def units_for(grid: Grid, denoiser: nn.Module) -> tuple[Unit, ...]:
    """Return the units of a denoiser, if they are those of a grid; else raise ValueError."""
    found, units = (type(denoiser).__name__, structure_of(denoiser)), grid.units
    fits = found == (grid.class_name, grid.structure)
    if fits and not all(unit.modules for unit in units):  # read from an older file
        units = units_of(denoiser, grid.grain)
    paths = dict(denoiser.named_modules())
    if not fits or grid.names != tuple(u.name for u in units) or any(p not in paths for u in units for p in u.modules):
        raise ValueError(
            f"This schedule, or grid, was made for another denoiser: a {grid.class_name} of structure "
            f"{grid.structure}, while the pipeline holds a {found[0]} of structure {found[1]}. Make one for this one; "
            "weights may differ (fine-tuned, LoRA), the configuration and the names of its units may not."
        )
    return units


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of T calls by N units, True where a unit is computed, False where its last value is used again.

    Example:
        >>> schedule = Schedule.load("lion.schedule.json")
        >>> with schedule.applied(pipe):
        ...     image = pipe("lion", num_inference_steps=schedule.steps).images[0]
    """

    grid: Grid  # what the rows and columns are
    on: Tensor  # bool `[T, N]`; the first row is all True
    provenance: dict[str, object] = field(default_factory=dict)  # method, budget, seeds; plain values
    hold: str = "value"  # what a call that is skipped altogether answers, as in `replay.hold_of`

    def __post_init__(self):
        object.__setattr__(self, "on", self.grid.check(self.on))
        check_hold(self.hold)

    @property
    def steps(self) -> int:
        """`num_inference_steps` to call the pipeline with."""
        return self.grid.steps

    @property
    def label(self) -> str:
        """A short name: the method it comes from."""
        return str(self.provenance.get("method", "schedule"))

    def holding(self, hold: str) -> Schedule:
        """Return the same schedule with another hold."""
        return replace(self, hold=hold)

    def live(self) -> Tensor:
        """Return the cells that are on and whose work reaches the picture, bool `[T, N]`."""
        return self.grid.live(self.on)

    def macs(self, *, attention: bool = True) -> int:
        """Return the MACs of one sample over all calls, without dead work, which is never run."""
        return self.grid.macs_of(self.on, attention=attention)

    def macs_ratio(self, *, attention: bool = True) -> float:
        """Return the share of MACs kept, in (0, 1]."""
        return self.grid.macs_ratio(self.on, attention=attention)

    def applied(self, pipe: DiffusionPipeline) -> AbstractContextManager[Replay]:
        """Let a pipeline follow this schedule inside a `with` block; on leaving, it is as it was.

        Only live cells are computed; a call with nothing to compute is skipped. The denoiser may be offloaded,
        compiled, or carry LoRA. Image to image, which begins at a later row, computes everything at its first call.
        Another denoiser, scheduler or number of steps is a ValueError; a schedule applied already a RuntimeError.
        """
        units, scheduler = units_for(self.grid, denoiser_of(pipe)[1]), type(pipe.scheduler).__name__
        if scheduler != self.grid.scheduler:
            raise ValueError(
                f"This schedule was made for {self.grid.scheduler}, while the pipeline samples with {scheduler}, at "
                "other noise levels. Set pipe.scheduler to that one, or make a schedule for this one."
            )
        hold = hold_of(self.hold, pipe.scheduler)
        control = Replay(self.live(), self.grid.calls(self.on), self.grid.timesteps, hold)
        return following(pipe, units, control, self.steps)

    def save(self, path: str | Path) -> Path:
        """Write the schedule as JSON, with all that is needed to check, count and apply it."""
        return save_json(path, "schedule", _VERSIONS[-1], self.to_dict())

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        own = {"rows": encode_table(self.on), "hold": self.hold, "provenance": self.provenance}
        return {"format": f"pruning_lib.schedule/{_VERSIONS[-1]}", **self.grid.to_dict(), **own}

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read a schedule; ValueError where it is none, or a damaged one, with what is wrong."""
        return cls.from_dict(load_json(path, "schedule", _VERSIONS), source=str(path))

    @classmethod
    def from_dict(cls, data: dict, *, source: str = "this") -> Schedule:
        """Read what `to_dict` wrote; errors as `load`."""
        data = check_format(data, "schedule", _VERSIONS, source=source)
        with reading("schedule", source):
            provenance = dict(data.get("provenance") or {})
            first = "prediction" if provenance.get("reuse") == "prediction" else "value"  # as version 1 noted it
            hold = data["hold"] if data["version"] > 1 else first
            return cls(Grid.from_dict(data), decode_table(data["rows"]), provenance, hold)

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Schedule) and (self.grid, self.hold) == (other.grid, other.hold)
        return same and torch.equal(self.on, other.on)

    def __repr__(self) -> str:
        calls, units = self.grid.shape
        kept = f"{self.macs_ratio():.1%} of the MACs"
        return f"<Schedule {self.label!r}: {calls} calls x {units} units, {kept}, hold={self.hold!r}>"
