"""Running a pipeline by a schedule: live cells are computed, and everything else answers with what was kept.

Where a whole call is skipped, a *hold* answers in place of the denoiser; a new one is a class with the two methods of
`LastValue`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

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


@dataclass
class _Stream:
    """What one stream of calls keeps; a pipeline that calls the denoiser twice a step has two."""

    row: int | None = None
    batch: int | None = None
    values: dict[int, Values] = field(default_factory=dict)
    hold: LastValue | None = None  # None until a call was made


class Replay(Control):
    """Follows a schedule: computes the `live` cells, bool `[T, N]`, and calls the denoiser at the rows `calls` `[T]`.

    What `hold` makes, one for each stream, answers the other calls. Since the last run began, `computed` counts the
    (call, unit) cells computed, `called` the calls of the denoiser.
    """

    def __init__(self, live: Tensor, calls: Tensor, timesteps: Sequence[float], hold: Callable = LastValue):
        self.live, self.calls = live.tolist(), calls.tolist()
        self.timesteps, self.hold = timesteps, hold
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new run begins."""
        self._streams: dict[str | None, _Stream] = {}
        self._now, self._off = _Stream(), [False] * len(self.live[0])
        self.computed = self.called = 0

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        sample, timestep = sample_and_timestep(args, kwargs)
        stream = self._streams.setdefault(context, _Stream())
        row = self._row(stream.row, timestep)
        if stream.row is None or row != stream.row + 1 or stream.batch != len(sample):
            # Nothing that is kept fits: compute all, as at a first call.
            self._streams[context] = stream = _Stream(batch=len(sample))
        stream.row, at = row, self.timesteps[row]  # the number: reading the tensor would make an accelerator wait
        if not self.calls[row] and stream.hold is not None:
            return stream.hold.predict(at)
        self._now = stream
        # A unit is passed over where the schedule says so and something is kept to pass on.
        self._off = [not live and unit in stream.values for unit, live in enumerate(self.live[row])]
        self.called += 1
        output = forward()
        stream.hold = stream.hold or self.hold()
        stream.hold.update(sample, at, output)
        return output

    def skips(self, index: int) -> bool:
        return self._off[index]

    def unit(self, index: int, compute: Callable[[], Values] | None) -> Values:
        if not self._off[index]:
            self.computed += 1
            self._now.values[index] = compute()
        return self._now.values[index]

    def _row(self, last: int | None, timestep: object) -> int:
        """Tell which row this call is: the next one, or, at a run's first call, where its timestep stands."""
        following = 0 if last is None else last + 1
        on_cpu = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        if last is not None and following < len(self.timesteps) and not on_cpu:
            return following  # reading a number from an accelerator would make it wait
        t = _number(timestep)
        rows = [row for unit in (1, 1000) for row in self._nearest(t * unit)]  # some want fractions of 1000
        if rows:  # image to image begins in the middle; a loop written by hand may start over
            return following if following in rows else rows[0]
        raise ValueError(
            f"The denoiser is called at timestep {t:g}, which this schedule does not have: its {len(self.timesteps)} "
            f"calls are at timesteps {_few(self.timesteps)}. Sample with the scheduler and steps that it was made for."
        )

    def _nearest(self, t: float) -> list[int]:
        distances = [abs(t - other) for other in self.timesteps]
        least, room = min(distances), max(0.01 * t, 1e-3)  # for timesteps rounded to half precision
        return [row for row, distance in enumerate(distances) if distance == least <= room]


@contextmanager
def following(pipe: DiffusionPipeline, units: Sequence[Unit], control: Replay, steps: int) -> Iterator[Replay]:
    """Let a control decide what a pipeline's denoiser does, inside a `with` block; see `Schedule.applied`.

    A run of other timesteps than the control's, those of so many `steps`, is refused when it begins.
    """
    scheduler, denoiser = pipe.scheduler, denoiser_of(pipe)[1]
    set_timesteps = scheduler.set_timesteps
    _check_alone(denoiser)

    @functools.wraps(set_timesteps)  # pipelines read its signature
    def begin(*args, **kwargs):
        _check_alone(denoiser)
        result = set_timesteps(*args, **kwargs)
        control.reset()
        asked, told = [float(t) for t in scheduler.timesteps.tolist()], control.timesteps
        pairs = zip(asked, told, strict=False)
        if len(asked) != len(told) or not all(abs(a - b) <= 1e-3 * max(1.0, abs(b)) for a, b in pairs):
            raise ValueError(
                f"This schedule is for {steps} steps of {type(scheduler).__name__} ({len(told)} calls at timesteps "
                f"{_few(told)}), but the run asks for {scheduler.num_inference_steps} ({len(asked)} calls at "
                f"{_few(asked)}). Use num_inference_steps={steps} and the scheduler's settings as they were."
            )
        return result

    with attach(denoiser, units, control):
        scheduler.set_timesteps = begin
        try:
            yield control
        finally:
            del scheduler.set_timesteps
            control.reset()


def _check_alone(denoiser: nn.Module) -> None:
    if str(getattr(vars(denoiser).get("forward"), "__module__", "")).startswith("DeepCache"):
        told = "DeepCache is enabled on this pipeline, and it would skip what a schedule computes"
        raise RuntimeError(f"{told}. Call disable() of its helper first, or use the schedule budget.deepcache instead.")


def _few(timesteps: Sequence[float]) -> str:
    return ", ".join(f"{t:g}" for t in timesteps[:3]) + (", ..." if len(timesteps) > 3 else "")


def sample_and_timestep(args: tuple, kwargs: dict) -> tuple[Tensor, object]:
    """Return what a denoiser was called with."""
    sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    return sample, args[1] if len(args) > 1 else kwargs.get("timestep")


def _number(timestep: object) -> float:
    return float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
