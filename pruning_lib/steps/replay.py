"""Running a pipeline by a schedule: the control that computes the live cells and passes on kept values elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..denoisers import denoiser_of
from .hooks import Control, attach
from .units import list_units, structure_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from .schedule import Schedule

__all__ = ["Replay", "applied", "sample_and_timestep"]


@dataclass
class _Kept:
    """What one stream of calls keeps: a pipeline that calls the denoiser twice a step has two such streams."""

    row: int | None = None
    batch: int | None = None
    values: dict[int, list[Tensor]] = field(default_factory=dict)
    output: object = None
    asked: tuple[Tensor, float] | None = None  # sample and timestep of the call that gave the output


class Replay(Control):
    """Follows a schedule.

    Args:
        schedule: which cells are computed.
        turn: of a skipped call; makes the output to return out of the last call's sample, timestep and output, and the
            present timestep (see `reuse`). Default: the last output again.

    Attributes:
        computed: number of (call, unit) cells computed since the last run began, for checks.
        called: number of calls in which the denoiser ran since the last run began.
    """

    def __init__(self, schedule: Schedule, turn: Callable[..., object] | None = None):
        self.schedule, self.turn, grid = schedule, turn, schedule.grid
        self.timesteps = grid.timesteps
        live = schedule.live()
        self.live, self.calls = live.tolist(), grid.calls(schedule.on).tolist()
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new run begins."""
        self._streams: dict[str | None, _Kept] = {}
        self._now, self._off = _Kept(), [False] * len(self.schedule.grid.names)
        self.computed = self.called = 0

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        """Run, or skip, one call."""
        sample, timestep = sample_and_timestep(args, kwargs)
        kept = self._streams.setdefault(context, _Kept())
        row = self._row(kept.row, timestep)
        begins = kept.row is None or row != kept.row + 1
        kept.row = row
        if begins or kept.batch != len(sample):  # nothing kept fits: compute all, as at a first call
            kept.values, kept.output, kept.batch = {}, None, len(sample)
        if not self.calls[kept.row] and kept.output is not None:
            if self.turn is None:
                return kept.output
            return self.turn(*kept.asked, kept.output, self.timesteps[row])
        self._now = kept
        self._off = [not is_live and unit in kept.values for unit, is_live in enumerate(self.live[kept.row])]
        self.called += 1
        kept.output = forward()
        if self.turn is not None:
            # The number, not the tensor: reading that would make an accelerator wait.
            kept.asked = sample, self.timesteps[row]
        return kept.output

    def skips(self, index: int) -> bool:
        """A unit is passed over where the schedule says so and something is kept to pass on."""
        return self._off[index]

    def unit(self, index: int, compute: Callable[[], list[Tensor]] | None) -> list[Tensor]:
        """Return what is kept, or compute it and keep it."""
        if self._off[index]:
            return self._now.values[index]
        self.computed += 1
        self._now.values[index] = compute()
        return self._now.values[index]

    def _row(self, last: int | None, timestep: object) -> int:
        """Tell which row this call is: the next one, or, at a run's first call, where its timestep stands."""
        following = 0 if last is None else last + 1
        on_cpu = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        if last is not None and following < len(self.timesteps) and not on_cpu:
            return following  # reading a number from an accelerator would make it wait
        t = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        nearest = [self._nearest(t * unit) for unit in (1, 1000)]  # some transformers want fractions of 1000
        if any(following in rows for rows in nearest):
            return following
        for rows in nearest:
            if rows:  # image to image begins in the middle; a loop written by hand may start over
                return rows[0]
        raise ValueError(
            f"The denoiser is called at timestep {t:g}, which this schedule does not have. It was made for "
            f"{self.schedule.steps} steps of {self.schedule.grid.scheduler}, at timesteps "
            f"{', '.join(f'{t:g}' for t in self.timesteps[:4])}, ..."
        )

    def _nearest(self, t: float) -> list[int]:
        distances = [abs(t - other) for other in self.timesteps]
        least = min(distances)
        if least > max(0.01 * t, 1e-3):  # room for timesteps rounded to half precision
            return []
        return [row for row, distance in enumerate(distances) if distance == least]


@contextmanager
def applied(
    schedule: Schedule, pipe: DiffusionPipeline, *, turn: Callable[..., object] | None = None
) -> Iterator[Replay]:
    """Let a pipeline follow a schedule inside a `with` block; see `Schedule.applied`, and `Replay` for `turn`."""
    _, denoiser = denoiser_of(pipe)
    grid = schedule.grid
    if (type(denoiser).__name__, structure_of(denoiser)) != (grid.class_name, grid.structure):
        raise ValueError(
            f"This schedule was made for another denoiser: a {grid.class_name} of structure {grid.structure}, while "
            f"the pipeline holds a {type(denoiser).__name__} of structure {structure_of(denoiser)}. Make a schedule "
            "for this one; weights may differ (fine-tuned, LoRA), the configuration may not."
        )
    _check_scheduler(schedule, pipe)
    _check_alone(denoiser)
    units = list_units(denoiser, grid.grain)
    if tuple(unit.name for unit in units) != grid.names:
        raise ValueError(
            f"This schedule has {len(grid.names)} units, the denoiser has {len(units)} at grain {grid.grain!r}, and "
            "their names differ. Make the schedule anew for this denoiser."
        )
    control = Replay(schedule, turn)
    with attach(denoiser, units, control), _announced(schedule, pipe, control):
        try:
            yield control
        finally:
            control.reset()


def _check_scheduler(schedule: Schedule, pipe: DiffusionPipeline) -> None:
    name = type(pipe.scheduler).__name__
    if name != schedule.grid.scheduler:
        raise ValueError(
            f"This schedule was made for {schedule.grid.scheduler}, while the pipeline samples with {name}. Other "
            f"samplers stop at other noise levels: set pipe.scheduler to a {schedule.grid.scheduler}, or make a "
            "schedule for this one."
        )


def _check_alone(denoiser: nn.Module) -> None:
    if str(getattr(vars(denoiser).get("forward"), "__module__", "")).startswith("DeepCache"):
        raise RuntimeError(
            "DeepCache is enabled on this pipeline, and it would skip what a schedule computes. Call disable() of its "
            "helper first. Its pattern is a schedule too: pruning_lib.steps.deepcache."
        )


@contextmanager
def _announced(schedule: Schedule, pipe: DiffusionPipeline, control: Replay) -> Iterator[None]:
    """Notice the begin of every run, and refuse one of other timesteps before any work is done."""
    scheduler = pipe.scheduler
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)  # pipelines read its signature
    def begin(*args, **kwargs):
        _check_alone(denoiser_of(pipe)[1])
        result = set_timesteps(*args, **kwargs)
        control.reset()
        asked = [float(t) for t in scheduler.timesteps.tolist()]
        if not _close(asked, schedule.grid.timesteps):
            raise ValueError(
                f"This schedule is for {schedule.steps} steps of {schedule.grid.scheduler} "
                f"({len(schedule.grid.timesteps)} calls at timesteps {_few(schedule.grid.timesteps)}), but the run "
                f"asks for {scheduler.num_inference_steps} ({len(asked)} calls at {_few(asked)}). Call the pipeline "
                f"with num_inference_steps={schedule.steps} and the scheduler's settings as they were, or make a "
                "schedule for this run."
            )
        return result

    scheduler.set_timesteps = begin
    try:
        yield
    finally:
        del scheduler.set_timesteps


def _close(mine: list[float], theirs: tuple[float, ...]) -> bool:
    return len(mine) == len(theirs) and all(
        abs(a - b) <= 1e-3 * max(1.0, abs(b)) for a, b in zip(mine, theirs, strict=True)
    )


def _few(timesteps) -> str:
    return ", ".join(f"{t:g}" for t in list(timesteps)[:3]) + (", ..." if len(timesteps) > 3 else "")


def sample_and_timestep(args: tuple, kwargs: dict) -> tuple[Tensor, object]:
    """Return what a denoiser was called with."""
    sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    return sample, args[1] if len(args) > 1 else kwargs.get("timestep")
