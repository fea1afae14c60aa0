"""First-order scores of single cells at a hard schedule, for `local_search`: what closing a gate would cost.

As `gate_gradients`, but skipped calls stay skipped and hold on to what the schedule's run would hold on to, so the
scores are of the very function that the search improves, and idle calls cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .gradient import loss_and_gradient
from .grid import Grid
from .reuse import REUSES, Turn
from .run import sample_and_timestep
from .supernet import SoftGates, SuperNet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["cell_worth"]


class HeldGates(SoftGates):
    """Gates at the rows of a schedule that call the denoiser; at the others, what the last call said.

    Args:
        calls: bool `[T]`.
        turn: carries an output on to another timestep.
    """

    def __init__(self, calls: Sequence[bool], turn: Turn):
        super().__init__(checkpointing=True)
        self.calls, self.turn = list(calls), turn

    def begin(self, gates: Tensor | None) -> None:
        """Begin a run."""
        super().begin(gates)
        self._last: dict[str | None, tuple] = {}

    def denoiser(
        self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None
    ) -> object:
        """Run one call, or hold on to the last."""
        row = self._rows.get(context, 0)
        sample, timestep = sample_and_timestep(args, kwargs)
        if self.gates is not None and row < len(self.calls) and not self.calls[row]:
            self._rows[context] = row + 1
            return self.turn(*self._last[context], timestep)
        output = super().denoiser(forward, args, kwargs, context)
        self._last[context] = (sample, timestep, output)
        return output


def cell_worth(
    pipe: DiffusionPipeline, grid: Grid, on: object, prompts: Sequence, *, seeds: Sequence[int] | None = None,
    loss: str = "latent", reuse: str = "output", guidance_scale: float | None = None, batch: int = 8,
) -> Tensor:  # fmt: skip
    """Return what closing each cell would add to the loss, to first order.

    Args:
        pipe, grid, on, prompts, seeds, loss, guidance_scale: as in `gate_gradients`.
        reuse: what skipped calls hold on to, see `reuse.REUSES`.
        batch: prompts at a time, >= 1.

    Returns:
        float32 `[T, N]`. At an open cell, large: needed; below 0: the picture would come closer without. At a closed
        cell of a call that computes others, what opening it would gain. 0 in row 0 and in rows without a call.

    Raises:
        ValueError: another reuse, a table that does not fit the grid, or seeds that do not fit the prompts.
    """
    if reuse not in REUSES:
        raise ValueError(f"reuse={reuse!r}; allowed: {', '.join(map(repr, REUSES))}.")
    on = grid.check(on)
    turn = Turn.of(pipe.scheduler) if reuse == "prediction" else Turn(None)
    gates = HeldGates(grid.calls(on).tolist(), turn)
    net = SuperNet(pipe, grid, guidance_scale=guidance_scale, control=gates)
    prompts = net.unroll.check(prompts)
    seeds = net.unroll.seeds(prompts, seeds)
    total = torch.zeros(grid.shape)
    with net:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch], seeds[start : start + batch]
            total += loss_and_gradient(net, on.float(), *part, loss=loss)[1] * len(part[0])
    total[0] = 0
    return -total / len(prompts)
