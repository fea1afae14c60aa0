"""Schedules bred from schedules: a plain genetic search, the rival that DiP-GO's paper compares with."""

from __future__ import annotations

import torch
from torch import Tensor

from .evaluate import Evaluator, Spent, Tally
from .grid import Grid
from .random_search import random_schedule
from .schedule import Schedule
from .search import from_scores

__all__ = ["genetic_search"]

_TRIES = 10  # generations in a row that bring nothing new


def genetic_search(
    grid: Grid, keep_macs: float, evaluator: Evaluator, *, images: int = 1000, seed: int = 0, population: int = 16,
    elite: int = 4, mutations: float = 2.0,
) -> Schedule:  # fmt: skip
    """Breed schedules until the images are used up; return the best.

    The first generation is drawn by chance. A child takes each row from one of two parents, each the better of two
    drawn by chance. Then it mutates: a row changes places with another, or a few cells of a row are flipped. What is
    over the budget is switched off again, and what is left of it goes to cells by chance.

    Args:
        grid, keep_macs: the budget, a share of MACs that no schedule exceeds.
        evaluator: compares them with the unpruned generation.
        images: that may be drawn in all.
        seed: of all chance.
        population: schedules in a generation, >= 2.
        elite: that live on unchanged, from 1 to population - 1.
        mutations: of a child, on average, >= 0.

    Raises:
        ValueError: numbers out of range, too few images for one schedule, or a budget below the first call.
    """
    if population < 2 or not 1 <= elite < population or mutations < 0:
        raise ValueError(
            f"population={population}, elite={elite}, mutations={mutations}; needed: population >= 2, elite from 1 "
            "to population - 1, mutations >= 0."
        )
    tally, generator = Tally(grid, keep_macs, evaluator, images), torch.Generator().manual_seed(seed)
    idle = 0
    try:
        alive = []
        for _ in range(population):
            on = random_schedule(grid, keep_macs, generator)
            alive.append((tally.ask(on), on))
        while idle < _TRIES:
            alive = sorted(alive, key=lambda pair: pair[0])[:elite]
            parents, before = list(alive), tally.spent
            while len(alive) < population:
                child = _cross(_pick(parents, generator), _pick(parents, generator), generator)
                child = _within(_mutate(child, mutations, generator), grid, keep_macs, generator)
                alive.append((tally.ask(child), child))
            idle = idle + 1 if tally.spent == before else 0
    except Spent:
        pass
    return tally.schedule("genetic search", seed)


def _pick(alive: list[tuple[float, Tensor]], generator: torch.Generator) -> Tensor:
    pair = torch.randint(len(alive), (2,), generator=generator).tolist()
    return min((alive[i] for i in pair), key=lambda found: found[0])[1]


def _cross(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    from_a = torch.rand(len(a), 1, generator=generator) < 0.5
    return torch.where(from_a, a, b)


def _mutate(on: Tensor, mutations: float, generator: torch.Generator) -> Tensor:
    on = on.clone()
    calls, units = on.shape
    if calls < 2:
        return on
    for _ in range(int(torch.poisson(torch.tensor(float(mutations)), generator=generator))):
        i, j = torch.randint(1, calls, (2,), generator=generator).tolist()
        if torch.rand((), generator=generator) < 0.5:
            on[[i, j]] = on[[j, i]]
        else:
            flipped = torch.rand(units, generator=generator) < 0.2
            on[i] ^= flipped
    return on


def _within(on: Tensor, grid: Grid, keep_macs: float, generator: torch.Generator) -> Tensor:
    """Bring a table to the budget: cells go and come in an order by chance, whole rows mostly together."""
    rows = torch.rand(len(on), 1, generator=generator)
    cells = torch.rand(on.shape, generator=generator)
    return from_scores(2.0 * on + 0.9 * rows + 0.1 * cells, grid, keep_macs).on
