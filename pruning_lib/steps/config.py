"""How to train a pruner: two recipes, and every setting by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch

from ..checks import check_device, nearest
from .losses import check_loss
from .schedule import Grid

__all__ = ["RECIPES", "PrunerConfig", "config_of", "lr_factor", "within_reach"]

_CHOICES = {
    "network": ("attention", "table"),
    "gates": ("probability", "budget"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "constant"),
    "start": ("evenly", "chance"),
    "on_collapse": ("raise", "go on"),
}


@dataclass(frozen=True)
class PrunerConfig:
    """Settings of a run. The defaults are those of the recipe "published".

    Attributes:
        num_inference_steps: steps of the sampler, >= 1.
        iterations: optimiser steps in all, >= 1.
        batch: prompts at a time in each process, >= 1.
        accumulation: batches per optimiser step, >= 1.
        loss: consistency loss, one of `losses.LOSSES`.
        alpha: weight of the sparsity loss, >= 0; not used by gates of kind "budget".
        floor: once the kept share of MACs is below, the sparsity loss is switched off; in [0, 1).
        network: "attention" for a `PrunerNetwork`, "table" for a `GateTable`.
        width: of the network's queries.
        gates: "probability", open from one half up; or "budget", as many of the best as `keep_macs` allows.
        keep_macs: shares of MACs to train for, falling, one after the other; for gates of kind "budget".
        start: open gates of the first iteration: "evenly", whole calls at equal distances, or "chance", any cells; for
            gates of kind "budget".
        leak: what a shut gate lets through while training, in [0, 1).
        per_mac: divide each gate's gradient by its unit's MACs, so that gates compete for MACs.
        temperature: of the softmax, > 0.
        optimizer, lr, weight_decay: "sgd" or "adamw", its peak rate > 0 and its decay >= 0.
        schedule, warmup: "cosine" or "constant", after so many iterations of linear warm-up.
        same_noise: every prompt starts from the noise of `seed`; else prompt i from that of `seed` + i.
        checkpointing: compute activations again in the backward pass.
        bf16: run the denoiser under bfloat16 autocast.
        patience: iterations in a row with nothing but the first call left before this counts as collapse, >= 1.
        on_collapse: "raise" an error that explains it, or "go on" and note it.
        seed: of the network, the order of prompts and the noise.
        device: where the pipeline is.
    """

    num_inference_steps: int
    iterations: int = 500
    batch: int = 1
    accumulation: int = 2
    loss: str = "ssim"
    alpha: float = 1.0
    floor: float = 0.2
    network: str = "attention"
    width: int = 512
    gates: str = "probability"
    keep_macs: tuple[float, ...] = ()
    start: str = "evenly"
    leak: float = 0.0
    per_mac: bool = False
    temperature: float = 1.0
    optimizer: str = "sgd"
    lr: float = 0.2
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: int = 10
    same_noise: bool = True
    checkpointing: bool = True
    bf16: bool = False
    patience: int = 3
    on_collapse: str = "raise"
    seed: int = 1000
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_device(self.device)
        check_loss(self.loss)
        for name in ("num_inference_steps", "iterations", "batch", "accumulation", "width", "patience"):
            _whole(name, getattr(self, name), 1)
        for name in ("warmup", "seed"):
            _whole(name, getattr(self, name), 0)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"There is no {name}={value!r}. {nearest(str(value), allowed)}")
        for name, low, high in (("floor", 0, 1), ("leak", 0, 1)):
            value = getattr(self, name)
            if not _number(value) or not low <= value < high:
                raise ValueError(f"{name}={value!r}; it must lie in [{low}, {high}).")
        for name in ("lr", "temperature"):
            if not _number(getattr(self, name)) or not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}; it must be a number greater than 0.")
        for name in ("alpha", "weight_decay"):
            if not _number(getattr(self, name)) or not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}; it must be a number of at least 0.")
        self._check_budgets()

    def _check_budgets(self) -> None:
        if (self.gates == "budget") != bool(self.keep_macs):
            raise ValueError(
                f"gates={self.gates!r} with keep_macs={self.keep_macs!r}: gates of kind 'budget' need at least one "
                "share of MACs, such as keep_macs=0.35, and gates of kind 'probability' take none."
            )
        if any(not _number(b) or not 0 < b < 1 for b in self.keep_macs):
            raise ValueError(f"keep_macs={self.keep_macs!r}; shares of MACs lie between 0 and 1.")
        if list(self.keep_macs) != sorted(set(self.keep_macs), reverse=True):
            raise ValueError(f"keep_macs={self.keep_macs!r}; give every budget once, the largest first.")
        if self.keep_macs and self.iterations < len(self.keep_macs):
            raise ValueError(
                f"iterations={self.iterations} for {len(self.keep_macs)} budgets; each needs at least one."
            )

    def budget(self, iteration: int) -> float | None:
        """Return the share of MACs that an iteration, from 0, trains for: the run is cut into equal parts."""
        if not self.keep_macs:
            return None
        return self.keep_macs[iteration * len(self.keep_macs) // self.iterations]


RECIPES: dict[str, dict[str, object]] = {
    # What the paper and the authors' public code say; see the docstring of `train_pruner`.
    "published": {},
    "best": {
        "iterations": 20,
        "batch": 4,
        "accumulation": 1,
        "loss": "latent",
        "network": "table",
        "gates": "budget",
        "keep_macs": (0.5, 0.35, 0.25, 0.2, 0.15),
        "leak": 0.25,
        "per_mac": True,
        "lr": 0.2,
        "weight_decay": 1.0,
        "schedule": "constant",
        "warmup": 0,
        "same_noise": False,
    },
}


def config_of(recipe: str, steps: int, settings: dict[str, object]) -> PrunerConfig:
    """Return a recipe's settings with some of them replaced.

    Raises:
        ValueError: an unknown recipe, or numbers out of range.
        TypeError: an unknown setting.
    """
    if recipe not in RECIPES:
        raise ValueError(f"There is no recipe {recipe!r}. {nearest(str(recipe), list(RECIPES))}")
    known = [f.name for f in fields(PrunerConfig)]
    for name in settings:
        if name not in known:
            raise TypeError(f"train_pruner() does not know {name!r}. {nearest(name, known)}")
    merged = {**RECIPES[recipe], **settings}
    budgets = merged.get("keep_macs", ())
    if merged.get("gates") != "budget" and "keep_macs" not in settings:
        budgets = ()
    try:
        merged["keep_macs"] = (budgets,) if isinstance(budgets, (int, float)) else tuple(budgets)
    except TypeError as error:
        raise ValueError(f"keep_macs={budgets!r}; give a share of MACs, or several.") from error
    config = PrunerConfig(num_inference_steps=steps, **merged)
    if "iterations" not in settings and len(config.keep_macs) == 1:
        config = replace(config, iterations=min(8, config.iterations))  # fewer than for five in a row
    return config


def within_reach(config: PrunerConfig, grid: Grid) -> PrunerConfig:
    """Return the settings with those budgets alone that the first call, which always runs, leaves room for."""
    floor = grid.macs_ratio(torch.arange(grid.shape[0])[:, None].expand(grid.shape) == 0)
    budgets = tuple(b for b in config.keep_macs if b > floor * 1.05) or ((1 + floor) / 2,)
    return replace(config, keep_macs=budgets)


def lr_factor(iteration: int, config: PrunerConfig) -> float:
    """Return what the peak rate is multiplied by: linear warm-up, then half a cosine wave down to 0, or constant."""
    if iteration < config.warmup:
        return (iteration + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = (iteration - config.warmup) / max(1, config.iterations - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}; it must be a whole number >= {least}.")
