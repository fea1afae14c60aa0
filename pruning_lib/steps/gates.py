"""The pruner of DiP-GO (arXiv 2410.16942, Section 3.3): logits, the gates they open and shut, and what open gates cost.

The pruner has no input: its weights are a way of writing down T x N numbers that share what they learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_device, check_number, check_whole, nearest
from .budget import evenly, within_budget
from .schedule import Grid, encode_table
from .supernet import check_loss
from .wiring import paper_cascade

_HEADS = 8  # of the attention
_KEEP = (0.0, 1.0)  # first logits, "reuse" and "keep": the probability to keep begins at 0.73


class PrunerNetwork(nn.Module):
    """T x N learned queries of some width, attention within each call, and an MLP that makes two logits of each."""

    def __init__(self, calls: int, units: int, *, width: int = 512):
        super().__init__()
        if check_whole("width", width, 1) % _HEADS:
            raise ValueError(f"width={width} must be a multiple of {_HEADS}, the heads of the attention.")
        self.queries = nn.Parameter(torch.randn(calls, units, width))
        self.encoder = nn.TransformerEncoderLayer(width, _HEADS, 2 * width, dropout=0.0, batch_first=True)
        hidden = width // 4
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )
        # Zero weights and this bias: at first every gate is open, and all of them alike.
        nn.init.zeros_(self.head[-1].weight)
        self.head[-1].bias.data = torch.tensor(_KEEP)

    def forward(self) -> Tensor:
        """Return logits `[T, N, 2]`: reuse, keep."""
        return self.head(self.encoder(self.queries))  # the calls are the batch


class GateTable(nn.Module):
    """The same T x N x 2 logits without a network: each learns for itself."""

    def __init__(self, calls: int, units: int):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(_KEEP).repeat(calls, units, 1))

    def forward(self) -> Tensor:
        """Return logits `[T, N, 2]`: reuse, keep."""
        return self.logits


def keep_probability(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the probability to keep, `[...]` in [0, 1], of logits `[..., 2]`; nearer to 0 and 1 at low temperature."""
    return F.softmax(logits.float() / temperature, dim=-1)[..., 1]


def straight_through(probability: Tensor, on: Tensor | None = None, leak: float = 0.0) -> Tensor:
    """Return hard gates `[T, N]` that pass gradients on as if they were the probabilities (Bengio et al. 2013).

    Open are those `on`, bool `[T, N]`, by default probabilities of at least one half; row 0 always is. A shut gate lets
    the `leak` through, in [0, 1): at 0 nothing behind it has a gradient.
    """
    on = (probability >= 0.5) if on is None else on
    hard = torch.where(on, 1.0, leak).to(probability)
    hard[0] = 1.0
    return hard + probability - probability.detach()


def own_shares(grid: Grid) -> Tensor:
    """Return each unit's share of the MACs of all units in one call, float32 `[N]`; they add up to 1."""
    macs = torch.tensor(grid.macs, dtype=torch.float64)
    return (macs / macs.sum()).float()


def cell_shares(on: Tensor, grid: Grid) -> Tensor:
    """Return what each cell costs with its cascade, as shares of one call's units (Section 3.3), float32 `[T, N]`.

    That is what would fall with an open cell if it were shut, and what would run if a shut one were opened, in [0, 1],
    while all others stay as they are; 0 behind a shut gate. Cascades end with the call, as in the published code.
    """
    own, eye = own_shares(grid), torch.eye(len(grid.names), dtype=torch.bool)
    rows, place = on.unique(dim=0, return_inverse=True)
    cascades = [(paper_cascade(row | eye, grid.wiring), paper_cascade(row & ~eye, grid.wiring)) for row in rows]
    return torch.stack([(opened.float() - shut.float()) @ own for opened, shut in cascades])[place]


def sparsity_loss(gates: Tensor, shares: Tensor) -> Tensor:
    """Return the mean over calls of the sum of gate `[T, N]` times share `[T, N]` or `[N]`: 1 if all of N are open."""
    return (gates * shares.to(gates.device)).sum(dim=1).mean()


_WHOLE = {1: ("num_inference_steps", "iterations", "batch", "accumulation", "width", "patience"), 0: ("warmup", "seed")}
_RANGES = {"[0, 1)": ("floor", "leak"), "(0, inf)": ("lr", "temperature"), "[0, inf)": ("alpha", "weight_decay")}


@dataclass(frozen=True)
class PrunerConfig:
    """Settings of a training, each one's meaning beside it. The defaults are those of the recipe "published"."""

    num_inference_steps: int  # of the sampler, >= 1
    iterations: int = 500  # optimiser steps in all, >= 1
    batch: int = 1  # prompts at a time in each process, >= 1
    accumulation: int = 2  # batches per optimiser step, >= 1
    loss: str = "ssim"  # consistency loss, one of `supernet.LOSSES`
    alpha: float = 1.0  # weight of the sparsity loss, >= 0; not used by gates of kind "budget"
    floor: float = 0.2  # share of MACs, in [0, 1), below which the sparsity loss is switched off
    network: Literal["attention", "table"] = "attention"  # a `PrunerNetwork`, or a `GateTable`
    width: int = 512  # of the network's queries
    gates: Literal["probability", "budget"] = "probability"  # open from one half up; as many as `keep_macs` allows
    keep_macs: tuple[float, ...] = ()  # shares of MACs to train for, falling, in turn; for gates of kind "budget"
    start: Literal["evenly", "chance"] = "evenly"  # of gates of kind "budget": whole calls, or any cells
    leak: float = 0.0  # what a shut gate lets through while training, in [0, 1)
    per_mac: bool = False  # divide each gate's gradient by its unit's MACs, so that gates compete for MACs
    temperature: float = 1.0  # of the softmax, > 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.2  # peak rate, > 0
    weight_decay: float = 1e-4  # >= 0
    schedule: Literal["cosine", "constant"] = "cosine"  # of the rate
    warmup: int = 10  # iterations, >= 0, in which the rate rises to its peak
    same_noise: bool = True  # every prompt starts from the noise of `seed`; else prompt i from that of `seed` + i
    checkpointing: bool = True  # compute activations again in the backward pass
    bf16: bool = False  # run the denoiser under bfloat16 autocast
    patience: int = 3  # iterations in a row, >= 1, with only the first call left, that count as collapse
    on_collapse: Literal["raise", "go on"] = "raise"  # an error that explains it, or only a note
    seed: int = 1000  # of the network, the order of prompts and the noise
    device: str = "cpu"  # where the pipeline is

    def __post_init__(self) -> None:
        check_device(self.device)
        check_loss(self.loss)
        for least, names in _WHOLE.items():
            for name in names:
                check_whole(name, getattr(self, name), least)
        for interval, names in _RANGES.items():
            for name in names:
                check_number(name, getattr(self, name), interval)
        for name, kind in get_type_hints(PrunerConfig).items():
            if get_origin(kind) is Literal and (value := getattr(self, name)) not in get_args(kind):
                raise ValueError(f"There is no {name}={value!r}. {nearest(str(value), get_args(kind))}")
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
        return self.keep_macs[iteration * len(self.keep_macs) // self.iterations] if self.keep_macs else None

    def rate(self, iteration: int) -> float:
        """Return the learning rate: linear warm-up, then half a cosine wave down to 0, or constant."""
        if iteration < self.warmup:
            return self.lr * ((iteration + 1) / self.warmup)
        if self.schedule == "constant":
            return self.lr
        done = (iteration - self.warmup) / max(1, self.iterations - self.warmup)
        return self.lr * (0.5 * (1 + math.cos(math.pi * done)))


RECIPES: dict[str, dict[str, object]] = {
    # What the paper and the authors' public code say; see the docstring of `train_pruner`.
    "published": {},
    "best": {
        **{"network": "table", "gates": "budget", "keep_macs": (0.5, 0.35, 0.25, 0.2, 0.15), "leak": 0.25},
        **{"iterations": 20, "batch": 4, "accumulation": 1, "same_noise": False, "loss": "latent", "per_mac": True},
        **{"lr": 0.2, "weight_decay": 1.0, "schedule": "constant", "warmup": 0},
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


class GatePruner(nn.Module):
    """A pruner with its budget: from logits to gates, and from the gates' gradient back to logits."""

    def __init__(self, grid: Grid, config: PrunerConfig):
        super().__init__()
        self.grid, self.config = grid, config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            attention = config.network == "attention"
            self.pruner = PrunerNetwork(*grid.shape, width=config.width) if attention else GateTable(*grid.shape)
        count = max(1, len(config.keep_macs))
        self.register_buffer("kept_tables", torch.zeros(count, *grid.shape, dtype=torch.float64))

    def open(self, iteration: int) -> tuple[Tensor, Tensor, Tensor | None, dict[str, object]]:
        """Say which gates are open at an iteration, from 0.

        Returns:
            The gates `[T, N]`, differentiable in the logits; which are open, bool `[T, N]`; the sparsity loss, or None
            where it is switched off or not used; and figures for the history.
        """
        config, logits = self.config, self.pruner()
        if not torch.isfinite(logits).all():
            raise ValueError(f"The pruner's logits are not finite after iteration {iteration}. Lower lr ({config.lr}).")
        budget = config.budget(iteration)
        if budget is None:
            worth = keep_probability(logits, config.temperature)
            on = worth.detach() >= 0.5
            on[0] = True
        else:
            worth, chance = self._margin(logits), torch.Generator().manual_seed(config.seed)
            scores = torch.rand(self.grid.shape, generator=chance) if iteration == 0 else worth.detach()
            even = iteration == 0 and config.start == "evenly"
            on = evenly(self.grid, budget) if even else within_budget(scores, self.grid, budget)
        gates = straight_through(worth, on, config.leak)
        macs_ratio, cost = self.grid.macs_ratio(on), None
        if budget is None and config.alpha and macs_ratio >= config.floor:
            cost = config.alpha * sparsity_loss(gates, cell_shares(on, self.grid))
        figures = {"macs_ratio": macs_ratio, "open": on[1:].float().mean().item(), "budget": budget}
        figures |= {"collapsed": not bool(self.grid.live(on)[1:].any()), "rows": encode_table(on)}
        return gates, on, cost, figures

    def _margin(self, logits: Tensor) -> Tensor:
        """Return what a budget ranks: unlike the probability's, its slope does not vanish for clearly good or bad."""
        return (logits[..., 1] - logits[..., 0]) / self.config.temperature

    def backward(self, gates: Tensor, gradient: Tensor, sparsity: Tensor | None) -> None:
        """Hand the gradient of the consistency loss at the gates, `[T, N]`, and that of the sparsity loss on."""
        if self.config.per_mac:
            # What a cell gains per MAC decides which cells a budget should buy; the mean size sets the unit.
            gradient = gradient / own_shares(self.grid).clamp_min(1e-9)
            gradient = gradient / gradient.abs().mean().clamp_min(1e-30)
        if sparsity is not None:
            gradient = gradient + torch.autograd.grad(sparsity, gates, retain_graph=True)[0]
        gates.backward(gradient)

    @torch.no_grad()
    def keep_table(self, iteration: int) -> None:
        """Keep the scores, in [0, 1], as they are after an iteration, as those of its budget."""
        config, logits = self.config, self.pruner().double()
        if config.keep_macs:
            at = config.keep_macs.index(config.budget(iteration))
            self.kept_tables[at] = 0.5 + self._margin(logits).atan() / math.pi  # in the same order
        else:
            self.kept_tables[0] = (logits / config.temperature).softmax(-1)[..., 1]
