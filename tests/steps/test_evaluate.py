"""Evaluators and their count of images."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny

from pruning_lib.steps.budget import every, uniform
from pruning_lib.steps.schedule import grid_of
from pruning_lib.steps.search import BudgetExhausted, Evaluator, SearchBudget


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def grid(pipe):
    return grid_of(pipe, 4)


PROMPTS = ["lion", "pizza", "rocket"]


def test_what_equals_the_unpruned_has_no_loss(pipe, grid) -> None:
    evaluator = Evaluator(pipe, PROMPTS, grid, guidance_scale=3)
    assert evaluator(grid.full()) == 0
    assert evaluator(uniform(grid, 0.5)) > 0


def test_images_are_counted_once_per_schedule(pipe, grid) -> None:
    evaluator = Evaluator(pipe, PROMPTS, grid, guidance_scale=3)
    first = evaluator(every(grid, 2))
    assert evaluator.images == 3
    assert evaluator(every(grid, 2)) == first and evaluator.images == 3
    on = every(grid, 2).on
    on[2:, 0] |= False
    assert evaluator(grid.schedule(on, method="the same under another name")) == first
    assert evaluator.images == 3
    evaluator(every(grid, 3))
    assert evaluator.images == 6


def test_the_batch_does_not_matter_and_seeds_do(pipe, grid) -> None:
    def asked(**more):
        return Evaluator(pipe, PROMPTS, grid, guidance_scale=3, **more).per_prompt(every(grid, 2))

    assert torch.allclose(asked(batch=2), asked(), rtol=1e-3)
    assert not torch.allclose(asked(seeds=[1, 2, 3]), asked(), rtol=1e-2)


def test_losses_and_reuse(pipe, grid) -> None:
    found = {
        (loss, reuse): Evaluator(pipe, PROMPTS[:1], grid, loss=loss, reuse=reuse)(every(grid, 2))
        for loss in ("latent", "l2", "ssim")
        for reuse in ("output", "prediction")
    }
    assert all(value > 0 for value in found.values())
    assert len({round(value, 9) for value in found.values()}) >= 3


def test_bad_input_is_refused(pipe, grid) -> None:
    with pytest.raises(ValueError, match="loss"):
        Evaluator(pipe, PROMPTS, grid, loss="clip")
    with pytest.raises(ValueError, match="reuse="):
        Evaluator(pipe, PROMPTS, grid, reuse="all")
    with pytest.raises(ValueError, match="2 seeds for 3 prompts"):
        Evaluator(pipe, PROMPTS, grid, seeds=[1, 2])
    with pytest.raises(ValueError, match="batch="):
        Evaluator(pipe, PROMPTS, grid, batch=0)
    with pytest.raises(ValueError, match="draws from texts"):
        Evaluator(pipe, "lion", grid)
    with pytest.raises(ValueError, match="another grid"):
        Evaluator(pipe, PROMPTS, grid)(grid_of(pipe, 5).full())


def test_a_tally_keeps_to_both_budgets(pipe, grid) -> None:
    evaluator = Evaluator(pipe, PROMPTS, grid, guidance_scale=3)
    tally = SearchBudget(grid, 0.5, evaluator, 7)
    assert tally.ask(every(grid, 3).on) == tally.loss
    with pytest.raises(ValueError, match="over its budget"):
        tally.ask(grid.full().on)
    assert tally.ask(every(grid, 3).on) == tally.loss and tally.spent == 3
    with pytest.raises(BudgetExhausted):
        tally.charge(5)
    tally.charge(1)
    tally.ask(every(grid, 2).on)
    assert tally.spent == 7
    with pytest.raises(BudgetExhausted):
        tally.ask(every(grid, 4).on)
    losses = [loss for _, loss in tally.trace]
    assert losses == sorted(losses, reverse=True) and losses[-1] == tally.loss
    with pytest.raises(ValueError, match="draws 3 images"):
        SearchBudget(grid, 0.5, evaluator, 2)
