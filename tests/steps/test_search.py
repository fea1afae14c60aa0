"""From scores to schedules within a budget."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny

from pruning_lib.steps.budget import check_budget, threshold_scores
from pruning_lib.steps.schedule import grid_of


@pytest.fixture(scope="module")
def grid():
    return grid_of(tiny(), 6)


def scores(grid, seed: int = 0) -> torch.Tensor:
    return torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("keep_macs", [0.17, 0.2, 0.3, 0.5, 0.77, 0.99, 1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_budget_is_met_and_never_exceeded(grid, keep_macs, seed) -> None:
    schedule = threshold_scores(scores(grid, seed), grid, keep_macs)
    assert schedule.macs_ratio() <= keep_macs
    assert schedule.macs_ratio() > 0.85 * keep_macs


def test_all_of_the_macs_is_everything(grid) -> None:
    assert threshold_scores(scores(grid), grid, 1.0) == grid.full()


def test_the_highest_scores_win(grid) -> None:
    wanted = torch.zeros(grid.shape)
    wanted[3] = 1.0  # one whole call besides the first
    on = threshold_scores(wanted, grid, 2 / 6).on
    assert on[0].all() and on[3].all() and int(on.sum()) == 2 * grid.shape[1]


def test_dead_cells_are_left_off(grid) -> None:
    some = scores(grid)
    schedule = threshold_scores(some, grid, 0.4)
    assert schedule.live().equal(schedule.on)


def test_a_schedule_says_where_it_comes_from(grid) -> None:
    found = threshold_scores(scores(grid), grid, 0.5, seed=3).provenance
    assert found == {"method": "scores", "keep_macs": 0.5, "seed": 3}


@pytest.mark.parametrize(
    ("keep_macs", "said"),
    [
        (0, "share of MACs to keep"),
        (1.2, "share of MACs to keep"),
        (True, "share"),
        ("0.5", "share"),
        (0.1, "first of 6 calls"),
    ],
)
def test_wrong_budgets_are_refused(grid, keep_macs, said) -> None:
    with pytest.raises(ValueError, match=said):
        threshold_scores(scores(grid), grid, keep_macs)


def test_wrong_scores_are_refused(grid) -> None:
    with pytest.raises(ValueError, match="shape|numbers"):
        threshold_scores(torch.rand(3, 3), grid, 0.5)
    with pytest.raises(ValueError, match="finite"):
        threshold_scores(scores(grid) / 0, grid, 0.5)


def test_a_share_of_calls_is_counted_exactly() -> None:
    pipe = tiny()
    for calls in (20, 7, 3):
        grid = grid_of(pipe, calls)
        for count in range(1, calls + 1):
            assert check_budget(grid, count / calls) * calls // grid.total_macs == count
