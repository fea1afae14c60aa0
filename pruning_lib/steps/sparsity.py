"""What open gates cost: the sparsity loss of DiP-GO, and a threshold that meets a budget (Section 3.3 and 3.4).

A unit costs its own multiply-accumulates and those of the units that only work for it.  Shutting one at the output end
therefore saves a whole cascade; the published code counts that inside one call, and so does `cell_shares`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .budget import check_budget
from .grid import Grid
from .live import paper_cascade

__all__ = ["cell_shares", "own_shares", "sparsity_loss", "within_budget"]


def own_shares(grid: Grid) -> Tensor:
    """Return each unit's share of the MACs of all units in one call, float32 `[N]`; they add up to 1."""
    macs = torch.tensor(grid.macs, dtype=torch.float64)
    return (macs / macs.sum()).float()


def cell_shares(on: Tensor, grid: Grid) -> Tensor:
    """Return what each cell costs together with its cascade, as shares of one call's units.

    For an open cell: what would fall with it if it were shut. For a shut one: what would run if it were opened. All
    other cells stay as they are.

    Args:
        on: bool `[T, N]`.
        grid: of the calls and units.

    Returns:
        float32 `[T, N]`, in [0, 1]; 0 where opening or shutting changes nothing, as behind a shut gate.
    """
    own, count = own_shares(grid), len(grid.names)
    known: dict[tuple, Tensor] = {}

    def row_shares(row: Tensor) -> Tensor:
        key = tuple(row.tolist())
        if key not in known:
            eye = torch.eye(count, dtype=torch.bool)
            open_, shut = paper_cascade(row | eye, grid.wiring), paper_cascade(row & ~eye, grid.wiring)
            known[key] = (open_.float() - shut.float()) @ own
        return known[key]

    return torch.stack([row_shares(row) for row in on])


def sparsity_loss(gates: Tensor, shares: Tensor) -> Tensor:
    """Return the sparsity loss: the mean over calls of the sum of gate times share.

    Args:
        gates: `[T, N]`, differentiable.
        shares: `[T, N]` or `[N]`, as `cell_shares` or `own_shares` gives them.

    Returns:
        A number >= 0: with `own_shares` and all gates open, 1; with cascades counted, more, because a unit's MACs count
        for every unit they fall with.
    """
    return (gates * shares.to(gates.device)).sum(dim=1).mean()


def within_budget(scores: Tensor, grid: Grid, keep_macs: float) -> Tensor:
    """Open the cells of the highest scores, as many as a budget allows; dead work is not counted.

    Args:
        scores: `[T, N]`; ties go to the earlier call and unit.
        grid: of the calls and units.
        keep_macs: largest share of the MACs to keep, in (0, 1].

    Returns:
        bool `[T, N]`; the first row is open.

    Raises:
        ValueError: scores of another shape, not finite, or a budget below the first row, which always runs.
    """
    calls, units = grid.shape
    allowed = check_budget(grid, keep_macs)
    if tuple(scores.shape) != grid.shape:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)}; this grid needs {calls} x {units} numbers."
        )
    if not torch.isfinite(scores).all():
        raise ValueError(
            f"scores holds {int((~torch.isfinite(scores)).sum())} values that are not finite numbers."
        )
    order = scores[1:].flatten().argsort(descending=True, stable=True)

    def highest(count: int) -> Tensor:
        on = torch.ones(calls * units, dtype=torch.bool)
        on[units:] = False
        on[units + order[:count]] = True
        return on.view(calls, units)

    # MACs grow with the count, but for the rare cell that makes an earlier one dead; what is returned is checked.
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if grid.macs_of(highest(middle)) <= allowed:
            low = middle
        else:
            high = middle - 1
    return highest(low)
