"""Schedules by chance, and the best of many of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .evaluate import Evaluator, Spent, Tally
from .grid import Grid
from .schedule import Schedule
from .search import from_scores

__all__ = ["random_schedule", "random_search"]

_TRIES = 200  # draws in a row that bring nothing new: a small grid may hold no other schedule


def random_schedule(grid: Grid, keep_macs: float, generator: torch.Generator) -> Tensor:
    """Draw a table within a budget.

    Every cell gets a random score, and so does every row; what counts is a mixture of the two, in random parts. So some
    draws keep whole calls, others single cells here and there, and most are in between.

    Returns:
        bool `[T, N]`.
    """
    calls, units = grid.shape
    cells = torch.rand(calls, units, generator=generator)
    rows = torch.rand(calls, 1, generator=generator)
    part = torch.rand((), generator=generator)
    return from_scores(part * rows + (1 - part) * cells, grid, keep_macs).on


def random_search(
    grid: Grid, keep_macs: float, evaluator: Evaluator, *, images: int = 1000, seed: int = 0
) -> Schedule:
    """Draw schedules until the images are used up; return the best.

    Args:
        grid, keep_macs: the budget, a share of MACs that no draw exceeds.
        evaluator: compares them with the unpruned generation.
        images: that may be drawn in all.
        seed: of the draws.

    Returns:
        The best, with its loss and the trace of the search in its provenance.

    Raises:
        ValueError: too few images for one schedule, or a budget below the first call.
    """
    tally, generator = Tally(grid, keep_macs, evaluator, images), torch.Generator().manual_seed(seed)
    idle = 0
    try:
        while idle < _TRIES:
            before = tally.spent
            tally.ask(random_schedule(grid, keep_macs, generator))
            idle = idle + 1 if tally.spent == before else 0
    except Spent:
        pass
    return tally.schedule("random search", seed)
