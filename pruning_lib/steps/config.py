"""How to train a pruner: two recipes, and every setting by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch

from ..checks import check_device, check_number, check_whole, nearest
from .schedule import Grid
from .supernet import check_loss

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
    """Settings of a run, each one's meaning beside it. The defaults are those of the recipe "published"."""

    num_inference_steps: int  # of the sampler, >= 1
    iterations: int = 500  # optimiser steps in all, >= 1
    batch: int = 1  # prompts at a time in each process, >= 1
    accumulation: int = 2  # batches per optimiser step, >= 1
    loss: str = "ssim"  # consistency loss, one of `supernet.LOSSES`
    alpha: float = 1.0  # weight of the sparsity loss, >= 0; not used by gates of kind "budget"
    floor: float = 0.2  # share of MACs, in [0, 1), below which the sparsity loss is switched off
    network: str = "attention"  # a `PrunerNetwork`; or "table", a `GateTable`
    width: int = 512  # of the network's queries
    gates: str = "probability"  # open from one half up; or "budget", as many of the best as `keep_macs` allows
    keep_macs: tuple[float, ...] = ()  # shares of MACs to train for, falling, in turn; for gates of kind "budget"
    start: str = "evenly"  # such gates open whole calls at equal distances at first; or "chance", any cells
    leak: float = 0.0  # what a shut gate lets through while training, in [0, 1)
    per_mac: bool = False  # divide each gate's gradient by its unit's MACs, so that gates compete for MACs
    temperature: float = 1.0  # of the softmax, > 0
    optimizer: str = "sgd"  # or "adamw"
    lr: float = 0.2  # peak rate, > 0
    weight_decay: float = 1e-4  # >= 0
    schedule: str = "cosine"  # of the rate; or "constant"
    warmup: int = 10  # iterations, >= 0, in which the rate rises to its peak
    same_noise: bool = True  # every prompt starts from the noise of `seed`; else prompt i from that of `seed` + i
    checkpointing: bool = True  # compute activations again in the backward pass
    bf16: bool = False  # run the denoiser under bfloat16 autocast
    patience: int = 3  # iterations in a row, >= 1, with only the first call left, that count as collapse
    on_collapse: str = "raise"  # an error that explains it; or "go on", and note it
    seed: int = 1000  # of the network, the order of prompts and the noise
    device: str = "cpu"  # where the pipeline is

    def __post_init__(self) -> None:
        check_device(self.device)
        check_loss(self.loss)
        for name in ("num_inference_steps", "iterations", "batch", "accumulation", "width", "patience"):
            check_whole(name, getattr(self, name), 1)
        for name in ("warmup", "seed"):
            check_whole(name, getattr(self, name), 0)
        for name in ("floor", "leak"):
            check_number(name, getattr(self, name), "[0, 1)")
        for name in ("lr", "temperature"):
            check_number(name, getattr(self, name), "(0, inf)")
        for name in ("alpha", "weight_decay"):
            check_number(name, getattr(self, name), "[0, inf)")
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"There is no {name}={value!r}. {nearest(str(value), allowed)}")
        budgets = self.keep_macs
        for budget in budgets:
            check_number("keep_macs", budget, "(0, 1)")
        if (self.gates == "budget") != bool(budgets):
            raise ValueError(
                f"gates={self.gates!r} with keep_macs={budgets!r}: gates of kind 'budget' need at least one share of "
                "MACs, such as keep_macs=0.35, and gates of kind 'probability' take none."
            )
        if list(budgets) != sorted(set(budgets), reverse=True):
            raise ValueError(f"keep_macs={budgets!r}; give every budget once, the largest first.")
        if self.iterations < len(budgets):
            raise ValueError(f"iterations={self.iterations} for {len(budgets)} budgets; each needs at least one.")

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
    """Return a recipe's settings with some of them replaced; an unknown one is a TypeError, else ValueError."""
    if recipe not in RECIPES:
        raise ValueError(f"There is no recipe {recipe!r}. {nearest(str(recipe), RECIPES)}")
    known = [field.name for field in fields(PrunerConfig)]
    for name in settings:
        if name not in known:
            raise TypeError(f"train_pruner() does not know {name!r}. {nearest(name, known)}")
    merged = {"keep_macs": (), **RECIPES[recipe], **settings}
    if merged.get("gates") != "budget" and "keep_macs" not in settings:
        merged["keep_macs"] = ()
    budgets = merged["keep_macs"]
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
