"""The grid of DiP-GO: the calls of the denoiser in one generation, times its units.

A grid is plain data.  It knows what every cell costs and which cells depend on which, so schedules can be made, counted
and checked without the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..measure.denoiser import denoiser_of
from .live import live_cells
from .units import GRAINS, Units, units_of
from .wiring import Wiring

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from .schedule import Schedule

__all__ = ["Grid", "grid_of", "timesteps_of"]


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
        from .schedule import Schedule  # a schedule holds its grid

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
                "grain": self.grain, "names": list(self.names), "macs": list(self.macs),
                "macs_without_attention": list(self.macs_without_attention),
            },
            "base_macs": self.base_macs, "base_macs_without_attention": self.base_macs_without_attention,
            "wiring": self.wiring.to_dict(),
            "denoiser": {"class": self.class_name, "structure": self.structure},
            "scheduler": self.scheduler, "steps": self.steps, "timesteps": list(self.timesteps),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict) -> Grid:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: something is missing or does not fit together.
        """
        units = data["units"]
        grid = cls(
            names=tuple(_checked(name, str) for name in units["names"]), grain=_checked(units["grain"], str),
            macs=tuple(_checked(macs, int) for macs in units["macs"]),
            macs_without_attention=tuple(_checked(macs, int) for macs in units["macs_without_attention"]),
            base_macs=_checked(data["base_macs"], int),
            base_macs_without_attention=_checked(data["base_macs_without_attention"], int),
            wiring=Wiring.from_dict(data["wiring"]),
            class_name=_checked(data["denoiser"]["class"], str), structure=_checked(data["denoiser"]["structure"], str),
            scheduler=_checked(data["scheduler"], str), steps=_checked(data["steps"], int),
            timesteps=tuple(map(float, data["timesteps"])),
        )  # fmt: skip
        if grid.grain not in GRAINS:
            raise ValueError(f"there is no grain {grid.grain!r}")
        numbers = (*grid.macs, *grid.macs_without_attention, grid.base_macs, grid.base_macs_without_attention)
        if grid.steps < 1 or min(numbers) < 0:
            raise ValueError("MACs below zero, or less than one step")
        lengths = {len(grid.names), len(grid.macs), len(grid.macs_without_attention), len(grid.wiring.inputs)}
        if len(lengths) != 1 or not grid.timesteps or not grid.names:
            raise ValueError(
                f"Names, MACs and wiring are of {sorted(lengths)} units; they must be of the same."
            )
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
    pipe: DiffusionPipeline, steps: int, grain: str | Units = "layers", *,
    timesteps: Sequence[float] | None = None, sample_size: int | tuple[int, int] | None = None,
) -> Grid:  # fmt: skip
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
        names=units.names, macs=units.macs, macs_without_attention=units.macs_without_attention,
        base_macs=units.base_macs, base_macs_without_attention=units.base_macs_without_attention,
        wiring=units.wiring, grain=units.grain, class_name=units.class_name, structure=units.structure,
        scheduler=type(pipe.scheduler).__name__, steps=steps, timesteps=found,
    )  # fmt: skip


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
