"""What a callback sees of a training run: the figures of an iteration, and the current pictures if it asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule
from .supernet import SuperNet

__all__ = ["Look"]


@dataclass(frozen=True)
class Look:
    """One iteration of `train_pruner`.

    Attributes:
        iteration: from 1.
        figures: as in `TrainedPruner.history`.
        schedule: the open gates as a schedule.
        net: the SuperNet that is trained.

    Example:
        >>> def show(look):
        ...     print(look.iteration, look.figures["loss"], look.pictures(["lion"]).shape)
    """

    iteration: int
    figures: dict[str, object]
    schedule: Schedule
    net: SuperNet

    @torch.no_grad()
    def pictures(self, prompts: Sequence, seeds: Sequence[int] | None = None) -> Tensor:
        """Draw with the current gates, hard: costs one generation.

        Args:
            prompts: n texts or numbers of classes.
            seeds: n seeds. Default: 0, 1, ...

        Returns:
            float32 `[n, 3, h, w]` in [0, 1], on the CPU.
        """
        seeds = range(len(prompts)) if seeds is None else seeds
        gates = self.schedule.on.float()
        return self.net.pictures(self.net.latents(gates, prompts, list(seeds))).float().cpu()
