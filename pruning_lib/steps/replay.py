"""Running a pipeline by a schedule: live cells are computed, and everything else answers with what was kept.

Where a whole call is skipped, a *hold* answers in place of the denoiser; a new one is a class with the two methods of
`LastValue`.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..capture import place_in, same_time, stepping
from ..denoisers import denoiser_of
from .units import Control, Unit, Values, attach

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

HOLDS = ("value", "prediction")


class LastValue:
    """Answers skipped calls of one stream with the output of the last call.

    That suits a network that predicts the noise: while DDIM walks on with it, the clean sample stays the same, too.
    """

    def update(self, sample: Tensor, timestep: object, output: object) -> None:
        """Take note of a call: what the denoiser was given, and what it returned."""
        self._output = output

    def predict(self, timestep: object) -> object:
        """Return what the denoiser is taken to answer at a timestep."""
        return self._output


class LastPrediction(LastValue):
    """Answers skipped calls with the velocity of the same clean sample x0 and the same noise e.

    A velocity alpha e - sigma x0 turns with the noise level even while both stand still. With alpha = cos f and
    sigma = sin f (Salimans and Ho, arXiv 2202.00512, Appendix D), the sample x_f and output v_f of the last call give,
    at a later angle g, v_g = sin(f - g) x_f + cos(f - g) v_f. The `levels` are alpha-bar of every training timestep.
    """

    def __init__(self, levels: Sequence[float]):
        self.levels = levels

    def angle(self, timestep: object) -> float:
        """Return the angle of a timestep, in radians: 0 without noise, pi/2 without signal."""
        last = len(self.levels) - 1
        t = min(max(_number(timestep), 0.0), last)
        below = self.levels[int(t)]
        level = below + (self.levels[min(int(t) + 1, last)] - below) * (t - int(t))
        return math.atan2(math.sqrt(1 - level), math.sqrt(level))

    def update(self, sample: Tensor, timestep: object, output: object) -> None:
        self._sample, self._angle, self._output = sample, self.angle(timestep), output

    def predict(self, timestep: object) -> object:
        by = self._angle - self.angle(timestep)
        velocity = math.sin(by) * self._sample + math.cos(by) * self._output[0]
        if isinstance(self._output, tuple):
            return (velocity, *self._output[1:])
        return type(self._output)(velocity)


def check_hold(name: str) -> str:
    """Return `name` if it is one of `HOLDS`."""
    if name not in HOLDS:
        raise ValueError(f"hold={name!r}; allowed: {', '.join(map(repr, HOLDS))}.")
    return name


def hold_of(name: str, scheduler: SchedulerMixin) -> Callable[[], LastValue]:
    """Return what makes a hold, for each stream of calls a new one.

    By name: "value", the last output again; or "prediction", the clean sample and the noise of the last call, which
    differs for networks that predict velocities of a diffusion. What the network predicts, and the noise levels, the
    scheduler tells; where it does not, a ValueError.
    """
    if check_hold(name) == "value":
        return LastValue
    kind, scheduler_name = scheduler.config.get("prediction_type"), type(scheduler).__name__
    scaled = "sigma_data" in scheduler.config  # EDM predicts mixtures that change with the noise level
    if scheduler_name.startswith("FlowMatch") or (kind in ("epsilon", "sample", "flow_prediction") and not scaled):
        return LastValue  # the same x0 and noise give the same output at every noise level
    levels = getattr(scheduler, "alphas_cumprod", None)
    if kind != "v_prediction" or scaled or levels is None:
        raise ValueError(
            "hold='prediction' turns velocities with the noise level, and no rule here covers "
            f"{scheduler_name} with prediction_type={kind!r}{', whose noise levels are not known' * (levels is None)}. "
            "Use hold='value', or a scheduler such as DDIMScheduler."
        )
    return functools.partial(LastPrediction, levels.tolist())


Key = tuple[str | None, int]  # of a stream of calls: its context, and its place among those of one step


class ByStep(Control):
    """Knows of every call its row and its stream: rows are counted by the scheduler's steps, not by timesteps.

    Pipelines that call the denoiser several times a step have a stream for each: by the name that they give it, else by
    its place in the row.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Begin a run."""
        self.row, self._places, self._calls = 0, Counter(), None

    def stream(self, context: str | None) -> Key:
        """Return the stream of a call that begins now."""
        key = context, self._places[context]
        if context is None and self._calls is not None and key[1] >= self._calls:
            raise self._unlike(key[1] + 1)
        self._places[context] += 1
        return key

    def stepped(self, timestep: object) -> None:
        """Take note of a step of the scheduler: a row ends."""
        calls = self._places[None]
        if set(self._places) <= {None} and calls != (self._calls or calls):
            raise self._unlike(calls)
        self._calls = self._calls or calls
        self.row += 1
        self._places.clear()

    def _unlike(self, calls: int) -> ValueError:
        return ValueError(
            f"The pipeline calls its denoiser {self._calls} times a step, but {calls} times in step {self.row + 1}, "
            "and does not say which call is which. Switch off what changes between steps."
        )


@dataclass
class _Stream:
    """What one stream of calls keeps."""

    row: int
    batch: int
    values: dict[tuple[int, int], Values] = field(default_factory=dict)  # by unit and by which of its runs in a call
    hold: LastValue | None = None  # None until a call was made
    last: tuple | None = None  # sample and output of the first row, whose timestep may turn out later


class Replay(ByStep):
    """Follows a schedule: computes the `live` cells, bool `[T, N]`, and calls the denoiser at the rows `calls` `[T]`.

    What `hold` makes, one for each stream, answers the other calls. Since the last run began, `computed` counts the
    (call, unit) cells computed, `called` the calls of the denoiser.
    """

    def __init__(self, live: Tensor, calls: Tensor, timesteps: Sequence[float], hold: Callable = LastValue):
        self.live, self.calls = live.tolist(), calls.tolist()
        self.timesteps, self.hold = timesteps, hold
        self.begins: Callable[[], int | None] = lambda: None  # the row that the scheduler is set to begin at
        super().__init__()

    def restart(self) -> None:
        """Forget everything: a new run begins."""
        super().restart()
        self.row, self._first = None, True
        self._streams: dict[Key, _Stream] = {}
        self._now, self._off = _Stream(0, 0), [False] * len(self.live[0])
        self.computed = self.called = 0

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        sample, timestep = sample_and_timestep(args, kwargs)
        if self.row is None or self.row >= len(self.timesteps):  # a loop written by hand may start over
            self.restart()
            self.row = self._begin(timestep)
        row, key = self.row, self.stream(context)
        stream = self._streams.get(key)
        if stream is None or stream.row != row - 1 or stream.batch != len(sample):
            # Nothing that is kept fits: compute all, as at a first call.
            self._streams[key] = stream = _Stream(row, len(sample))
        stream.row, at = row, self.timesteps[row]
        if not self.calls[row] and stream.hold is not None:
            return stream.hold.predict(at)
        self._now = stream
        # A unit is passed over where the schedule says so and something is kept to pass on.
        self._off = [not live and (unit, 1) in stream.values for unit, live in enumerate(self.live[row])]
        self.called += 1
        output = forward()
        stream.hold = stream.hold or self.hold()
        stream.hold.update(sample, at, output)
        stream.last = (sample, output) if self._first else None
        return output

    def skips(self, index: int) -> bool:
        return self._off[index] and (index, self.times[index] or 1) in self._now.values

    def keeps(self, index: int) -> bool:
        following = self._now.row + 1
        if self._first:  # which row that is may turn out later
            return True
        return following < len(self.live) and not self.live[following][index]

    def unit(self, index: int, compute: Callable[[], Values] | None) -> Values:
        key = index, self.times[index]
        if compute is None:
            return self._now.values[key]
        self.computed += self.times[index] == 1
        values = compute()
        if self.keeps(index):
            self._now.values[key] = values
        else:
            self._now.values.pop(key, None)
        return values

    def _begin(self, timestep: object) -> int:
        """Tell at which row a run begins: image to image begins in the middle."""
        begins = self.begins()
        if begins is not None:
            return begins
        if timestep is None:
            return 0
        t = _number(timestep)
        distances = [abs(t - other) for other in self.timesteps]
        return distances.index(min(distances)) if min(distances) <= max(0.01 * t, 1e-3) else 0

    def stepped(self, timestep: object) -> None:
        if self.row is None or self.row >= len(self.timesteps):
            return  # steps of somebody else's loop
        on_cpu = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        if on_cpu and not same_time(told := _number(timestep), self.timesteps[self.row]):
            rows = [row for row, other in enumerate(self.timesteps) if same_time(told, other)]
            if not self._first or not rows:
                raise ValueError(
                    f"The scheduler steps at timestep {told:g}, where this schedule's row {self.row + 1} of "
                    f"{len(self.timesteps)} is at {self.timesteps[self.row]:g}. A schedule needs one step for each "
                    "row, with the scheduler, steps and settings that it was made for."
                )
            self.row = rows[0]
            for stream in self._streams.values():
                stream.row = self.row
                if stream.last is not None:
                    stream.hold.update(stream.last[0], self.timesteps[self.row], stream.last[1])
        self._first = False
        super().stepped(timestep)


@contextmanager
def following(pipe: DiffusionPipeline, units: Sequence[Unit], control: Replay, steps: int) -> Iterator[Replay]:
    """Let a control decide what a pipeline's denoiser does, inside a `with` block; see `Schedule.applied`.

    A run of other timesteps than the control's, those of so many `steps`, is refused when it begins.
    """
    scheduler, denoiser = pipe.scheduler, denoiser_of(pipe)[1]
    set_timesteps, ahead = scheduler.set_timesteps, 0
    _check_alone(denoiser)

    @functools.wraps(set_timesteps)  # pipelines read its signature
    def begin(*args, **kwargs):
        nonlocal ahead
        _check_alone(denoiser)
        result = set_timesteps(*args, **kwargs)
        control.restart()
        asked, told = [float(t) for t in scheduler.timesteps.tolist()], control.timesteps
        place = place_in(asked, told)  # image to image leaves out the first
        ahead = place or 0
        if place is None:
            raise ValueError(
                f"This schedule is for {steps} steps of {type(scheduler).__name__} ({len(told)} calls at timesteps "
                f"{_few(told)}), but the run asks for {len(asked)} calls at {_few(asked)}. "
                f"Use num_inference_steps={steps} and the scheduler's settings as they were."
            )
        return result

    def begins() -> int | None:
        if not hasattr(scheduler, "set_begin_index"):
            return None
        return max(0, (scheduler.begin_index or 0) - ahead)

    control.begins = begins
    with attach(denoiser, units, control), stepping(scheduler, control.stepped):
        scheduler.set_timesteps = begin
        try:
            yield control
        finally:
            del scheduler.set_timesteps
            control.restart()


def _check_alone(denoiser: nn.Module) -> None:
    if str(getattr(vars(denoiser).get("forward"), "__module__", "")).startswith("DeepCache"):
        told = "DeepCache is enabled on this pipeline, and it would skip what a schedule computes"
        raise RuntimeError(f"{told}. Call disable() of its helper first, or use the schedule budget.deepcache instead.")
    registry = getattr(denoiser, "_diffusers_hook", None)
    if registry is not None and any("faster_cache" in name for name in registry.hooks):
        raise RuntimeError(
            "FasterCache is enabled on this denoiser, and it changes the batch below what a schedule keeps. Call "
            "disable_cache() of the denoiser first."
        )


def _few(timesteps: Sequence[float]) -> str:
    return ", ".join(f"{t:g}" for t in timesteps[:3]) + (", ..." if len(timesteps) > 3 else "")


def sample_and_timestep(args: tuple, kwargs: dict) -> tuple[Tensor, object]:
    """Return what a denoiser was called with."""
    sample = (*args, *kwargs.values())[0]
    for name in ("sample", "hidden_states"):
        sample = kwargs.get(name, sample)
    times = (kwargs.get(name) for name in ("timestep", "timesteps", "t", "timestep_ratio"))
    return sample, next((t for t in times if t is not None), args[1] if len(args) > 1 else None)


def _number(timestep: object) -> float:
    return float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
