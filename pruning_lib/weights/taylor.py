"""The gradients behind Taylor importance for diffusion models: summed over the timesteps that matter.

Diff-Pruning (Fang, Ma and Wang 2023, section 4): removing a weight w changes the loss of timestep t by about
w dL_t/dw.  The gradients of the timesteps are added up before the product is taken.  Timesteps at which the model has
nearly nothing left to learn only add noise; those with L_t / L_max below a threshold are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..training.denoising import DenoisingTask

__all__ = ["TaylorPasses", "accumulate_gradients"]


@dataclass(frozen=True)
class TaylorPasses:
    """What was computed.

    Attributes:
        timesteps: all that were looked at, increasing.
        losses: mean squared error at each.
        used: True where the gradient was added.
    """

    timesteps: tuple[int, ...]
    losses: tuple[float, ...]
    used: tuple[bool, ...]


def accumulate_gradients(
    unet: nn.Module,
    task: DenoisingTask,
    *,
    threshold: float = 0.05,
    count: int = 50,
    batch: int = 16,
    seed: int = 0,
) -> TaylorPasses:
    """Fill the gradients of `unet` with the sum of those of the kept timesteps.

    Args:
        unet: the denoiser; its gradients are replaced, its weights stay.
        task: images and captions to compute the loss on.
        threshold: timesteps whose loss is below this share of the largest are left out, in [0, 1); 0 keeps all.
        count: timesteps to look at, spread evenly over the schedule, >= 1.
        batch: latents per timestep, >= 1.
        seed: of latents and noise; the same timestep sees the same ones in both passes.

    Raises:
        ValueError: numbers out of range, or a loss that is not finite.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold}; it is a share of the largest loss and must lie in [0, 1).")
    if not 1 <= count <= task.levels:
        raise ValueError(f"count={count}; allowed: 1 to {task.levels}, the timesteps of the schedule.")
    timesteps = ((torch.arange(count) + 0.5) * task.levels / count).long().tolist()

    def loss(t: int) -> torch.Tensor:
        return task.loss_at(unet, t, torch.Generator().manual_seed(seed * 1_000_003 + t), batch)

    with torch.no_grad():
        losses = [loss(t).item() for t in timesteps]
    if not all(0 <= value < float("inf") for value in losses):
        raise ValueError("A loss is not finite: the weights are damaged, or too large for their type.")
    used = [value >= threshold * max(losses) for value in losses]
    unet.zero_grad(set_to_none=True)
    with torch.enable_grad():
        for t, wanted in zip(timesteps, used, strict=True):
            if wanted:
                loss(t).backward()
    return TaylorPasses(tuple(timesteps), tuple(losses), tuple(used))
