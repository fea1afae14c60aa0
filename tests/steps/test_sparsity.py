"""What open gates cost, cascades included, and a threshold that never exceeds its budget."""

from __future__ import annotations

import pytest
import torch
from tiny_pipes import pipe_of

from pruning_lib.steps.budget import cell_shares, evenly, own_shares, sparsity_loss, within_budget
from pruning_lib.steps.schedule import Grid, grid_of
from pruning_lib.steps.wiring import Wiring


def chain(calls: int = 3, macs: tuple[int, ...] = (10, 20, 70), output: int = 2) -> Grid:
    """A denoiser of three units in a row; the output reads the last one."""
    wiring = Wiring((frozenset(), frozenset({0}), frozenset({1})), frozenset({output}), False)
    return Grid(
        names=("a", "b", "c"),
        macs=macs,
        macs_without_attention=macs,
        base_macs=0,
        base_macs_without_attention=0,
        wiring=wiring,
        grain="layers",
        class_name="Toy",
        structure="",
        scheduler="DDIMScheduler",
        steps=calls,
        timesteps=tuple(range(calls, 0, -1)),
    )


def table(*rows: str) -> torch.Tensor:
    return torch.tensor([[cell == "1" for cell in row] for row in rows])


def test_a_cell_costs_what_would_fall_with_it():
    grid = chain()
    assert own_shares(grid).tolist() == pytest.approx([0.1, 0.2, 0.7])
    found = cell_shares(table("111", "011", "110"), grid)
    # open: c takes a and b with it; with a shut there is less to fall; behind a shut c nothing matters, and opening it
    # sets b and a to work
    assert found[0].tolist() == pytest.approx([0.1, 0.3, 1.0])
    assert found[1].tolist() == pytest.approx([0.1, 0.2, 0.9])
    assert found[2].tolist() == pytest.approx([0, 0, 1.0])


def test_the_loss_is_one_when_all_is_open_and_its_gradient_the_shares():
    grid = chain()
    gates = torch.ones(3, 3, requires_grad=True)
    loss = sparsity_loss(gates, own_shares(grid))
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert torch.allclose(gates.grad, own_shares(grid).expand(3, 3) / 3)


@pytest.fixture(scope="module")
def grid():
    return grid_of(pipe_of("text"), 6)


@pytest.mark.parametrize("budget", [0.17, 0.3, 0.5, 0.8, 1])
def test_a_threshold_never_exceeds_its_budget_and_wastes_less_than_a_cell(grid, budget):
    scores = torch.rand(grid.shape, generator=torch.Generator().manual_seed(3))
    on = within_budget(scores, grid, budget)
    kept = grid.macs_ratio(on)
    assert kept <= budget and on[0].all()
    shut = scores[1:][~on[1:]]
    assert not len(shut) or scores[1:][on[1:]].min() >= shut.max() if on[1:].any() else True
    if len(shut):
        more = on.clone()
        more[1:].view(-1)[scores[1:].flatten().masked_fill(on[1:].flatten(), -1).argmax()] = True
        assert grid.macs_ratio(more) > budget
    else:
        assert budget == 1 and on.all()


def test_dead_cells_are_free():
    on = within_budget(torch.tensor([[9.0] * 3, [5, 5, 0], [1, 1, 4]]), chain(), 0.34)
    assert on[1].tolist() == [True, True, False], "nobody reads a and b while c is shut"


def test_evenly_opens_whole_calls(grid):
    for budget, rows in ((1, [0, 1, 2, 3, 4, 5]), (0.51, [0, 2, 4]), (0.34, [0, 3]), (0.17, [0])):
        on = evenly(grid, budget)
        assert torch.equal(on.all(1), on.any(1)) and on.any(1).nonzero().flatten().tolist() == rows
        assert grid.macs_ratio(on) <= budget


@pytest.mark.parametrize("budget", [0, 0.1, 1.1, -1, "0.5", True, float("nan")])
def test_budgets_out_of_range_are_refused(grid, budget):
    for make in (within_budget, lambda _, *rest: evenly(*rest)):
        with pytest.raises(ValueError, match="keep_macs=.*(above 0 and up to 1|less than the first of 6 calls)"):
            make(torch.rand(grid.shape), grid, budget)


def test_other_scores_are_refused(grid):
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        within_budget(torch.rand(3, 3), grid, 0.5)
    with pytest.raises(ValueError, match="not finite numbers"):
        within_budget(torch.full(grid.shape, float("nan")), grid, 0.5)
