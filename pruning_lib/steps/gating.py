"""From logits to gates, and from the gates' gradient back to logits: the part of training that differs by recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .budget import evenly
from .grid import Grid
from .pruner import GateTable, PrunerNetwork, keep_probability, straight_through
from .rows import to_rows
from .sparsity import cell_shares, own_shares, sparsity_loss, within_budget
from .train_config import PrunerConfig

__all__ = ["Gating", "Open"]


@dataclass(frozen=True)
class Open:
    """The gates of one iteration.

    Attributes:
        gates: `[T, N]`, hard (or leaking) in value, differentiable in the pruner's parameters.
        on: bool `[T, N]`, which are open.
        sparsity: the sparsity loss, or None where it is switched off or not used.
        figures: for the history.
    """

    gates: Tensor
    on: Tensor
    sparsity: Tensor | None
    figures: dict[str, object]


class Gating(nn.Module):
    """A pruner with its budget.

    Args:
        grid: of calls and units.
        config: of the run.
    """

    def __init__(self, grid: Grid, config: PrunerConfig):
        super().__init__()
        self.grid, self.config = grid, config
        calls, units = grid.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.pruner = (
                PrunerNetwork(calls, units, width=config.width)
                if config.network == "attention"
                else GateTable(calls, units)
            )
        count = max(1, len(config.keep_macs))
        self.register_buffer("kept_tables", torch.zeros(count, calls, units, dtype=torch.float64))

    def open(self, iteration: int) -> Open:
        """Say which gates are open at an iteration, from 0."""
        config, logits = self.config, self.pruner()
        if not torch.isfinite(logits).all():
            raise ValueError(
                f"The pruner's logits are not finite after iteration {iteration}. Lower lr ({config.lr})."
            )
        budget = config.budget(iteration)
        if budget is None:
            worth = keep_probability(logits, config.temperature)
            on = worth.detach() >= 0.5
            on[0] = True
        else:
            # The margin, not the probability: its slope does not vanish for cells that are clearly good or bad.
            worth = (logits[..., 1] - logits[..., 0]) / config.temperature
            on = self._first(budget) if iteration == 0 else within_budget(worth.detach(), self.grid, budget)
        gates = straight_through(worth, on, config.leak)
        macs_ratio, cost = self.grid.macs_ratio(on), None
        if budget is None and config.alpha and macs_ratio >= config.floor:
            cost = config.alpha * sparsity_loss(gates, cell_shares(on, self.grid))
        figures = {
            "macs_ratio": macs_ratio, "open": on[1:].float().mean().item(), "budget": budget,
            "collapsed": not bool(self.grid.live(on)[1:].any()),
            "rows": to_rows(on),
        }  # fmt: skip
        return Open(gates, on, cost, figures)

    def _first(self, budget: float) -> Tensor:
        if self.config.start == "evenly":
            return evenly(self.grid, budget)
        drawn = torch.Generator().manual_seed(self.config.seed)
        return within_budget(torch.rand(self.grid.shape, generator=drawn), self.grid, budget)

    def backward(self, open_: Open, gradient: Tensor) -> float | None:
        """Hand the gradient of the consistency loss, `[T, N]`, and that of the sparsity loss on to the parameters.

        Returns:
            The sparsity loss, or None.
        """
        if self.config.per_mac:
            # What a cell gains per MAC decides which cells a budget should buy; the mean size sets the unit.
            gradient = gradient / own_shares(self.grid).clamp_min(1e-9)
            gradient = gradient / gradient.abs().mean().clamp_min(1e-30)
        if open_.sparsity is not None:
            gradient = gradient + torch.autograd.grad(open_.sparsity, open_.gates, retain_graph=True)[0]
        open_.gates.backward(gradient)
        return None if open_.sparsity is None else open_.sparsity.item()

    @torch.no_grad()
    def keep_table(self, iteration: int) -> None:
        """Keep the scores as they are after an iteration, as those of its budget."""
        config, logits = self.config, self.pruner().double()
        if config.keep_macs:
            margin = (logits[..., 1] - logits[..., 0]) / config.temperature
            at = config.keep_macs.index(config.budget(iteration))
            self.kept_tables[at] = 0.5 + margin.atan() / math.pi  # into [0, 1], in the same order
        else:
            self.kept_tables[0] = (logits / config.temperature).softmax(-1)[..., 1]

    def tables(self) -> Tensor:
        """Return the scores that were kept, float64 `[K, T, N]`; the first call counts as 1."""
        tables = self.kept_tables.clone()
        tables[:, 0] = 1.0
        return tables
