"""How to train: steps, rates and intervals of a run."""

from __future__ import annotations

from dataclasses import dataclass

from ..measure.device import check_device

__all__ = ["FitConfig", "lr_factor"]


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Attributes:
        steps: optimiser steps in all, > 0. May grow when a run is resumed.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        decay: share of `steps` at the end over which the rate falls to zero, in [0, 1].
        weight_decay: of AdamW.
        ema: decay of the moving average of the weights; 0 turns it off.
        clip: largest norm of the gradient.
        seed: of data order, noise and initialisation.
        device: where to train, for example "cpu" or "cuda".
        bf16: run the forward pass under bfloat16 autocast.
        checkpoint_every: steps between checkpoints; an interruption loses at most these.
        log_every: steps between lines of the log.
        validate_every: steps between validations, the first before training; 0 for none.
    """

    steps: int
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    checkpoint_every: int = 200
    log_every: int = 20
    validate_every: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.steps < 1 or self.checkpoint_every < 1 or self.log_every < 1:
            raise ValueError("steps, checkpoint_every and log_every must be at least 1.")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be greater than 0.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay} must lie in [0, 1]: it is a share of the steps.")


def lr_factor(step: int, config: FitConfig) -> float:
    """Return what the peak learning rate is multiplied by at `step` (counted from 0)."""
    up = min(1.0, (step + 1) / max(1, config.warmup))
    down = (config.steps - step) / max(1.0, config.decay * config.steps)
    return up * min(1.0, down)
