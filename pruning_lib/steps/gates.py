"""The pruner of DiP-GO (arXiv 2410.16942, Section 3.3): logits, the gates they open and shut, and what open gates cost.

One learned query for each call and unit; self-attention among the queries of a call; then an MLP per query, whose two
logits say "reuse" and "keep".  The network has no input: its weights are a way of writing down T x N numbers that
share what they learn.  After training only the numbers are kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_whole
from .budget import evenly, within_budget
from .config import PrunerConfig
from .schedule import Grid, encode_table
from .wiring import paper_cascade

_HEADS = 8  # of the attention
_KEEP = (0.0, 1.0)  # first logits, "reuse" and "keep": the probability to keep begins at 0.73


class PrunerNetwork(nn.Module):
    """T x N learned queries of some width, the published code's is 512 -> self-attention -> MLP -> two logits each."""

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
    """Return the probability to keep, `[...]` in [0, 1]: the second softmax value of logits `[..., 2]`.

    The lower the temperature, > 0, the nearer it is to 0 and 1.
    """
    return F.softmax(logits.float() / temperature, dim=-1)[..., 1]


def straight_through(probability: Tensor, on: Tensor | None = None, leak: float = 0.0) -> Tensor:
    """Return hard gates `[T, N]` that pass gradients on as if they were the probabilities (Bengio et al. 2013).

    Args:
        probability: `[T, N]`.
        on: bool `[T, N]`, the gates to open; row 0 always is. Default: probabilities of at least one half.
        leak: what a shut gate lets through, in [0, 1). At 0 nothing behind a shut gate has a gradient.
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
    """Return what each cell costs together with its cascade, as shares of one call's units (Section 3.3).

    A unit costs its own MACs and those of the units that only work for it: what would fall with an open cell if it were
    shut, and what would run if a shut one were opened, while all others stay as they are. Cascades end with the call,
    as in the published code. So float32 `[T, N]`, in [0, 1]; 0 where nothing changes, as behind a shut gate.
    """
    own, eye = own_shares(grid), torch.eye(len(grid.names), dtype=torch.bool)
    known: dict[tuple, Tensor] = {}
    for row in on:
        key = tuple(row.tolist())
        if key not in known:
            opened, shut = paper_cascade(row | eye, grid.wiring), paper_cascade(row & ~eye, grid.wiring)
            known[key] = (opened.float() - shut.float()) @ own
    return torch.stack([known[tuple(row.tolist())] for row in on])


def sparsity_loss(gates: Tensor, shares: Tensor) -> Tensor:
    """Return the sparsity loss: the mean over calls of the sum of gate `[T, N]` times share `[T, N]` or `[N]`.

    With `own_shares` and all gates open it is 1; with `cell_shares` more, for a unit's MACs count for all units they
    fall with.
    """
    return (gates * shares.to(gates.device)).sum(dim=1).mean()


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
            worth = self._margin(logits)
            on = self._first(budget) if iteration == 0 else within_budget(worth.detach(), self.grid, budget)
        gates = straight_through(worth, on, config.leak)
        macs_ratio, cost = self.grid.macs_ratio(on), None
        if budget is None and config.alpha and macs_ratio >= config.floor:
            cost = config.alpha * sparsity_loss(gates, cell_shares(on, self.grid))
        figures = {
            "macs_ratio": macs_ratio,
            "open": on[1:].float().mean().item(),
            "budget": budget,
            "collapsed": not bool(self.grid.live(on)[1:].any()),
            "rows": encode_table(on),
        }
        return gates, on, cost, figures

    def _margin(self, logits: Tensor) -> Tensor:
        """Return what a budget ranks: unlike the probability's, its slope does not vanish for clearly good or bad."""
        return (logits[..., 1] - logits[..., 0]) / self.config.temperature

    def _first(self, budget: float) -> Tensor:
        if self.config.start == "evenly":
            return evenly(self.grid, budget)
        drawn = torch.Generator().manual_seed(self.config.seed)
        return within_budget(torch.rand(self.grid.shape, generator=drawn), self.grid, budget)

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
        """Keep the scores as they are after an iteration, as those of its budget."""
        config, logits = self.config, self.pruner().double()
        if config.keep_macs:
            at = config.keep_macs.index(config.budget(iteration))
            self.kept_tables[at] = 0.5 + self._margin(logits).atan() / math.pi  # into [0, 1], in the same order
        else:
            self.kept_tables[0] = (logits / config.temperature).softmax(-1)[..., 1]

    def tables(self) -> Tensor:
        """Return the scores that were kept, float64 `[K, T, N]`; the first call counts as 1."""
        tables = self.kept_tables.clone()
        tables[:, 0] = 1.0
        return tables
