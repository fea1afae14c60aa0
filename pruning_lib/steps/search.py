"""From scores to a schedule: the cells with the best scores, as many as a budget of MACs allows.

DiP-GO's post-processing (arXiv 2410.16942) lowers a threshold until the asked share of MACs is gone.  Here
the threshold is searched, dead work is never counted, and the budget is never exceeded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .budget import check_budget
from .grid import Grid
from .schedule import Schedule
from .sparsity import within_budget

__all__ = ["from_scores"]


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
