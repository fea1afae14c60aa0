"""From scores to a schedule: the cells with the best scores, as many as a budget of MACs allows.

DiP-GO's post-processing (arXiv 2410.16942) lowers a threshold until the asked share of MACs is gone.  Here
the threshold is searched, dead work is never counted, and the budget is never exceeded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Grid
from .schedule import Schedule
from .sparsity import within_budget

__all__ = ["check_budget", "from_scores"]


def from_scores(scores: object, grid: Grid, keep_macs: float, **provenance: object) -> Schedule:
    """Keep the cells with the highest scores.

    A threshold is found by bisection; what it leaves of the budget goes to the next cells in order that still fit.
    Cells whose work would reach no picture are left off.

    Args:
        scores: `[T, N]`, higher is more important; row 0 is not looked at, because it is always computed. Equal scores
            are taken in order of rows, then units.
        grid: the calls and units that the scores are of.
        keep_macs: share of MACs to keep at most, up to 1, attention products included.
        provenance: noted in the schedule.

    Returns:
        A `Schedule` with `macs_ratio() <= keep_macs`.

    Raises:
        ValueError: scores of another shape or not finite, or a budget below the first call alone.

    Example:
        >>> from_scores(torch.rand(grid.shape), grid, 0.5).macs_ratio() <= 0.5
        True
    """
    scores = torch.as_tensor(scores).detach().double().cpu()
    allowed = check_budget(grid, keep_macs)
    on = within_budget(scores, grid, keep_macs)
    units = grid.shape[1]
    order = [units + int(i) for i in scores[1:].flatten().argsort(descending=True, stable=True)]
    on = _fill(on, [place for place in order if not on.view(-1)[place]], grid, allowed)
    provenance = {"method": "scores", "keep_macs": keep_macs, **provenance}
    return grid.schedule(grid.live(on), **provenance)


def _fill(on: Tensor, order: list[int], grid: Grid, allowed: int) -> Tensor:
    """Switch on, in order, the cells that still fit; `order` is of positions in the flattened table."""
    left = allowed - grid.macs_of(on)
    units = grid.shape[1]
    for position in order:
        if left < min(grid.macs):
            break
        if grid.macs[position % units] > left:
            continue
        on.view(-1)[position] = True
        left_then = allowed - grid.macs_of(on)
        if left_then < 0:
            on.view(-1)[position] = False
        else:
            left = left_then
    return on


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
