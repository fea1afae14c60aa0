"""The simplest rival: the same model, computed whole, with fewer steps of the sampler; or with another sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pruning_lib.steps.budget import check_budget
from pruning_lib.steps.schedule import Grid, timesteps_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin


@dataclass(frozen=True)
class FewerSteps:
    """A sampler with fewer calls of the denoiser, with the interface of a `Schedule`.

    `grid` is of the unpruned generation, whose MACs are the whole; `steps` the `num_inference_steps` to call the
    pipeline with, `calls` those of the denoiser; `scheduler` the class of the sampler, built from the pipeline's
    configuration, or None: its own.
    """

    grid: Grid
    steps: int
    calls: int
    scheduler: type[SchedulerMixin] | None = None

    @property
    def label(self) -> str:
        """What it is, as "7 steps of DDIM"."""
        name = self.grid.scheduler if self.scheduler is None else self.scheduler.__name__
        return f"{self.steps} steps of {name.removesuffix('Scheduler')}"

    def macs(self, *, attention: bool = True) -> int:
        """Return the MACs of one sample over all calls."""
        return self.calls * self.grid.full().macs(attention=attention) // self.grid.shape[0]

    def macs_ratio(self, *, attention: bool = True) -> float:
        """Return the share of the unpruned generation's MACs."""
        return self.calls / self.grid.shape[0]  # every call costs the same in either convention

    @contextmanager
    def applied(self, pipe: DiffusionPipeline) -> Iterator[FewerSteps]:
        """Let a pipeline sample so inside a `with` block; the number of steps is the caller's to pass on."""
        before = pipe.scheduler
        if self.scheduler is not None:
            pipe.scheduler = self.scheduler.from_config(before.config)
        try:
            yield self
        finally:
            pipe.scheduler = before


def fewer_steps(
    pipe: DiffusionPipeline, grid: Grid, keep_macs: float, scheduler: type[SchedulerMixin] | None = None
) -> FewerSteps:
    """Take as many steps as the budget pays for, a share of the MACs of `grid`; arguments as of `FewerSteps`.

    A budget below one call of this sampler is a ValueError.
    """
    allowed = grid.shape[0] * check_budget(grid, keep_macs) // grid.total_macs
    for steps in range(allowed, 0, -1):
        rival = FewerSteps(grid, steps, allowed, scheduler)
        try:
            with rival.applied(pipe):
                calls = len(timesteps_of(pipe, steps))
        except ValueError:  # some samplers cannot do so few steps
            continue
        if calls <= allowed:  # some call the denoiser more often than they have steps
            return replace(rival, calls=calls)
    with FewerSteps(grid, grid.steps, allowed, scheduler).applied(pipe):
        timesteps_of(pipe, grid.steps)  # where nothing can be asked, that is what is wrong
    raise ValueError(f"keep_macs={keep_macs:g} pays for {allowed} calls; this sampler needs more.")
