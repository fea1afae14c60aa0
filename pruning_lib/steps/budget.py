"""A budget of MACs: how many it allows, and whole calls that keep within it."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Grid

__all__ = ["check_budget", "evenly"]


def check_budget(grid: Grid, keep_macs: float) -> int:
    """Return the MACs that a share allows, of one sample over all calls.

    Raises:
        ValueError: not a number in (0, 1], or less than the first call needs, which is always computed whole.
    """
    if isinstance(keep_macs, bool) or not isinstance(keep_macs, (int, float)) or not 0 < keep_macs <= 1:
        raise ValueError(
            f"keep_macs={keep_macs!r}; it is the share of MACs to keep, above 0 and up to 1. To remove a share r, "
            "keep 1 - r."
        )
    allowed = int(keep_macs * grid.total_macs)
    if (allowed + 1) / grid.total_macs <= keep_macs:  # 0.15 of 20 calls are three, not 2.9999999996
        allowed += 1
    first = torch.zeros(grid.shape, dtype=torch.bool)
    first[0] = True
    least = grid.macs_of(first)
    if allowed < least:
        raise ValueError(
            f"keep_macs={keep_macs:g} is less than the first of {grid.shape[0]} calls, which is always computed "
            f"whole and takes {least / grid.total_macs:.3g} of the MACs. Keep more, or sample with more steps."
        )
    return allowed


def evenly(grid: Grid, keep_macs: float) -> Tensor:
    """Open whole calls at equal distances, as many as a budget allows.

    With k calls of T, those are floor(i T / k) for i = 0 ... k - 1.

    Args:
        grid: of the calls and units.
        keep_macs: largest share of the MACs to keep.

    Returns:
        bool `[T, N]`; the first row is open.

    Raises:
        ValueError: a budget below one call, or not a share.
    """
    calls, allowed = grid.shape[0], check_budget(grid, keep_macs)
    for count in range(calls, 0, -1):
        on = torch.zeros(grid.shape, dtype=torch.bool)
        on[[i * calls // count for i in range(count)]] = True
        if grid.macs_of(on) <= allowed:
            return on
    raise AssertionError("the budget was checked")
