"""What to hold on to while the denoiser is not called: its output, or what that output says.

A call that a schedule skips returns the last output again.  Whether that is a good guess depends on what the network
predicts.  For the noise it is: while DDIM walks on with the same noise, the clean picture that goes with it stays the
same too, and the skipped calls join into one larger step.  A network that predicts the velocity v = alpha e - sigma x0
is another matter: v turns as the noise level falls, even while x0 and the noise e stand still.  With alpha = cos f and
sigma = sin f (the angular form of DDIM, Salimans and Ho 2022), the v of the same x0 and e at a later angle g is

    v_g = sin(f - g) x_f + cos(f - g) v_f

of the sample x_f and the output v_f of the last call.  It costs three operations per number and no MACs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .replay import Replay, applied
from .schedule import Schedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["REUSES", "HeldPrediction", "Turn", "reusing"]

REUSES = ("output", "prediction")


@dataclass(frozen=True)
class HeldPrediction:
    """A schedule whose skipped calls hold the prediction, not the output; otherwise as the schedule itself.

    Attributes:
        schedule: which cells are computed.
    """

    schedule: Schedule

    @property
    def grid(self):
        """The grid of the schedule."""
        return self.schedule.grid

    @property
    def steps(self) -> int:
        """`num_inference_steps` to call the pipeline with."""
        return self.schedule.steps

    @property
    def label(self) -> str:
        """The schedule's label."""
        return self.schedule.label

    def macs(self, *, attention: bool = True) -> int:
        """Return the MACs of one sample over all calls."""
        return self.schedule.macs(attention=attention)

    def macs_ratio(self, *, attention: bool = True) -> float:
        """Return the share of MACs kept."""
        return self.schedule.macs_ratio(attention=attention)

    @contextmanager
    def applied(self, pipe: DiffusionPipeline) -> Iterator[Replay]:
        """Let a pipeline follow the schedule inside a `with` block.

        Raises:
            TypeError: the scheduler predicts velocities and does not tell its noise levels.
            ValueError, RuntimeError: as `Schedule.applied`.
        """
        with applied(self.schedule, pipe, turn=Turn.of(pipe.scheduler)) as control:
            yield control


def reusing(schedule: Schedule, reuse: str = "output") -> Schedule | HeldPrediction:
    """Say what skipped calls hold on to.

    Args:
        schedule: which cells are computed.
        reuse: "output", as everywhere else in this package, or "prediction".

    Raises:
        ValueError: anything else.
    """
    if reuse not in REUSES:
        raise ValueError(f"reuse={reuse!r}; allowed: {', '.join(map(repr, REUSES))}.")
    return schedule if reuse == "output" else HeldPrediction(schedule)


class Turn:
    """Carries an output on to another timestep, with x0 and noise as they were.

    Args:
        levels: alpha-bar of every training timestep, `[1000]` or so; None where the output stays as it is: networks
            that predict the noise, the clean sample, or the velocity of a flow.
    """

    def __init__(self, levels: Tensor | None):
        self.levels = levels

    @classmethod
    def of(cls, scheduler: object) -> Turn:
        """Read a scheduler's configuration.

        Raises:
            TypeError: it predicts velocities, and does not tell its noise levels.
        """
        if scheduler.config.get("prediction_type") != "v_prediction":
            return cls(None)
        levels = getattr(scheduler, "alphas_cumprod", None)
        if levels is None:
            raise TypeError(
                f"{type(scheduler).__name__} predicts velocities but has no alphas_cumprod, so its noise levels are "
                "not known. Use reuse='output', or a scheduler such as DDIMScheduler."
            )
        return cls(torch.as_tensor(levels).to("cpu", torch.float64))  # where reading costs no wait

    def angle(self, timestep: object) -> float:
        """Return the angle f of a timestep, in radians: 0 without noise, pi/2 without signal."""
        t = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        below = min(max(int(t), 0), len(self.levels) - 1)
        above = min(below + 1, len(self.levels) - 1)
        level = torch.lerp(self.levels[below], self.levels[above], max(t, 0.0) - below if above > below else 0.0)
        return torch.atan2((1 - level).sqrt(), level.sqrt()).item()

    def __call__(self, sample: Tensor, timestep: object, output: object, then: object) -> object:
        """Return the output at timestep `then` that says the same as `output` for `sample` at `timestep`."""
        if self.levels is None:
            return output
        by = torch.tensor(self.angle(timestep) - self.angle(then), dtype=torch.float64)
        sin, cos = by.sin().item(), by.cos().item()
        if isinstance(output, tuple):
            return (sin * sample + cos * output[0], *output[1:])
        return type(output)(sin * sample + cos * output.sample)
