"""Schedules by chance, and bred from schedules: a plain genetic search, the rival that DiP-GO's paper compares with."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from pruning_lib.steps.budget import threshold_scores
from pruning_lib.steps.evaluate import BudgetExhausted, Evaluator, SearchBudget
from pruning_lib.steps.schedule import Grid, Schedule

# In a row that bring nothing new, for a small grid may hold no other schedule: draws, and generations.
_DRAWS, _GENERATIONS = 200, 10


def random_schedule(grid: Grid, keep_macs: float, generator: torch.Generator) -> Tensor:
    """Draw a table within a budget, bool `[T, N]`.

    Every cell gets a random score, and so does every row; what counts is a mixture of the two, in random parts. So some
    draws keep whole calls, others single cells here and there, and most are in between.
    """
    calls, units = grid.shape
    cells = torch.rand(calls, units, generator=generator)
    rows = torch.rand(calls, 1, generator=generator)
    part = torch.rand((), generator=generator)
    return threshold_scores(part * rows + (1 - part) * cells, grid, keep_macs).on


def random_search(grid: Grid, keep_macs: float, evaluator: Evaluator, *, images: int = 1000, seed: int = 0) -> Schedule:
    """Draw schedules until the images are used up; arguments and result as in `search.local_search`."""
    budget, generator = SearchBudget(grid, keep_macs, evaluator, images), torch.Generator().manual_seed(seed)
    idle = 0
    with suppress(BudgetExhausted):
        while idle < _DRAWS:
            before = budget.spent
            budget.ask(random_schedule(grid, keep_macs, generator))
            idle = idle + 1 if budget.spent == before else 0
    return budget.schedule("random search", seed)


def genetic_search(
    grid: Grid,
    keep_macs: float,
    evaluator: Evaluator,
    *,
    images: int = 1000,
    seed: int = 0,
    population: int = 16,
    elite: int = 4,
    mutations: float = 2.0,
) -> Schedule:
    """Breed schedules until the images are used up; arguments and result as in `search.local_search`.

    The first generation is drawn by chance. A child takes each row from one of two parents, each the better of two
    drawn by chance. Then it mutates: a row changes places with another, or a few cells of a row are flipped. What is
    over the budget is switched off again, and what is left of it goes to cells by chance. Each generation has
    `population` schedules, of which `elite` live on unchanged; a child has `mutations` on average.
    """
    if population < 2 or not 1 <= elite < population or mutations < 0:
        needed = "population >= 2, elite from 1 to population - 1, mutations >= 0"
        raise ValueError(f"population={population}, elite={elite}, mutations={mutations}; needed: {needed}.")
    budget, generator = SearchBudget(grid, keep_macs, evaluator, images), torch.Generator().manual_seed(seed)
    idle = 0
    with suppress(BudgetExhausted):
        alive = []
        for _ in range(population):
            on = random_schedule(grid, keep_macs, generator)
            alive.append((budget.ask(on), on))
        while idle < _GENERATIONS:
            alive = sorted(alive, key=lambda pair: pair[0])[:elite]
            parents, before = list(alive), budget.spent
            while len(alive) < population:
                mother, father = _pick(parents, generator), _pick(parents, generator)
                from_mother = torch.rand(len(mother), 1, generator=generator) < 0.5
                child = _mutate(torch.where(from_mother, mother, father), mutations, generator)
                child = _within(child, grid, keep_macs, generator)
                alive.append((budget.ask(child), child))
            idle = idle + 1 if budget.spent == before else 0
    return budget.schedule("genetic search", seed)


def _pick(alive: list[tuple[float, Tensor]], generator: torch.Generator) -> Tensor:
    pair = torch.randint(len(alive), (2,), generator=generator).tolist()
    return min((alive[i] for i in pair), key=lambda found: found[0])[1]


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
            on[i] ^= torch.rand(units, generator=generator) < 0.2
    return on


def _within(on: Tensor, grid: Grid, keep_macs: float, generator: torch.Generator) -> Tensor:
    """Bring a table to the budget: cells go and come in an order by chance, whole rows mostly together."""
    rows = torch.rand(len(on), 1, generator=generator)
    cells = torch.rand(on.shape, generator=generator)
    return threshold_scores(2.0 * on + 0.9 * rows + 0.1 * cells, grid, keep_macs).on
