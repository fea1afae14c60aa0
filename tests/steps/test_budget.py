"""Schedules within a budget: of scores, of whole calls, DeepCache's pattern; and what open gates cost."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler
from tiny import laid_out, latents, tiny
from tiny_pipes import pipe_of

from pruning_book.rivals.fewer_steps import fewer_steps
from pruning_lib.steps.budget import check_budget, deepcache, evenly, every, threshold_scores, uniform, within_budget
from pruning_lib.steps.gates import cell_shares, own_shares, sparsity_loss
from pruning_lib.steps.schedule import Grid, decode_table
from pruning_lib.steps.wiring import Wiring


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def grid(pipe):
    return laid_out(pipe, 7)


def scores_of(grid, seed: int = 0) -> torch.Tensor:
    return torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed))


def chain() -> Grid:
    """Return three calls of three units in a row, whose output reads the last one."""
    macs, wiring = (10, 20, 70), Wiring((frozenset(), frozenset({0}), frozenset({1})), frozenset({2}), False)
    times = (3.0, 2.0, 1.0)
    return Grid(("a", "b", "c"), macs, macs, 0, 0, wiring, "layers", "Toy", "", "DDIMScheduler", 3, times)


@pytest.mark.parametrize(("keep", "seed"), [(0.15, 0), (0.3, 1), (0.5, 0), (0.5, 1), (0.99, 0)])
def test_a_budget_is_met_and_never_exceeded(grid, keep, seed):
    scores = scores_of(grid, seed)
    on = within_budget(scores, grid, keep)
    assert grid.macs_ratio(on) <= keep and on[0].all()
    shut = scores[1:][~on[1:]]
    assert not on[1:].any() or scores[1:][on[1:]].min() >= shut.max(), "the best are open"
    more = on.clone()
    more[1:].view(-1)[scores[1:].flatten().masked_fill(on[1:].flatten(), -1).argmax()] = True
    assert grid.macs_ratio(more) > keep, "one more is too many"
    filled = threshold_scores(scores, grid, keep, seed=seed)
    assert 0.85 * keep < filled.macs_ratio() <= keep
    assert filled.live().equal(filled.on), "no dead work"
    assert filled.provenance == {"method": "scores", "keep_macs": keep, "seed": seed}


def test_all_of_the_macs_is_everything_and_dead_cells_are_free(grid):
    assert threshold_scores(scores_of(grid), grid, 1) == uniform(grid, 1.0) == every(grid, 1) == grid.full()
    wanted = torch.zeros(grid.shape)
    wanted[3] = 1.0
    assert threshold_scores(wanted, grid, 2 / 7).on.sum(1).tolist() == [27, 0, 0, 27, 0, 0, 0]
    on = within_budget(torch.tensor([[9.0] * 3, [5, 5, 0], [1, 1, 4]]), chain(), 0.34)
    assert on[1].tolist() == [True, True, False], "nobody reads a and b while c is shut"


def test_a_share_of_calls_is_counted_exactly(pipe):
    for calls in (20, 7, 3):
        grid = laid_out(pipe, calls)
        for count in range(1, calls + 1):
            assert check_budget(grid, count / calls) * calls // grid.total_macs == count


def test_whole_calls_stand_at_equal_distances(grid):
    for keep, rows in ((1 / 7, [0]), (3 / 7, [0, 2, 4]), (0.99, [0, 1, 2, 3, 4, 5])):
        on = evenly(grid, keep)
        assert torch.equal(on.all(1), on.any(1)) and on.any(1).nonzero().flatten().tolist() == rows
        assert uniform(grid, keep).on.equal(on) and grid.macs_ratio(on) <= keep
    assert every(grid, 3).on.any(1).nonzero().flatten().tolist() == [0, 3, 6]


@pytest.mark.parametrize("keep", [0, 0.1, 1.1, -1, "0.5", True, float("nan")])
def test_other_budgets_and_scores_are_refused(grid, keep):
    for make in (within_budget, threshold_scores, lambda _, *rest: uniform(*rest)):
        with pytest.raises(ValueError, match=r"keep_macs=.*(a number in \(0, 1\]|less than the first of 7 calls)"):
            make(torch.rand(grid.shape), grid, keep)
    for wrong, said in ((torch.rand(3, 3), r"shape \(3, 3\)"), (torch.full(grid.shape, torch.nan), "not finite")):
        with pytest.raises(ValueError, match=said):
            threshold_scores(wrong, grid, 0.5)


def units_at(schedule, row: int) -> set[str]:
    return {name for name, on in zip(schedule.grid.names, schedule.on[row].tolist(), strict=True) if on}


def test_branches_of_deepcache_are_those_of_the_package(grid):
    last = "up_blocks.3.layers.2"
    assert units_at(deepcache(grid, 3), 1) == {last}
    assert units_at(deepcache(grid, 3, 1), 1) == {"down_blocks.0.layers.0", "up_blocks.3.layers.1", last}
    two = units_at(deepcache(grid, 3, 2), 1)
    assert two == {*(f"down_blocks.0.layers.{i}" for i in (0, 1)), *(f"up_blocks.3.layers.{i}" for i in (0, 1, 2))}
    three = units_at(deepcache(grid, 3, 3), 1)
    assert three - two == {"down_blocks.0.downsamplers.0", "up_blocks.2.layers.2", "up_blocks.2.upsamplers.0"}
    assert all(deepcache(grid, 3).on[i].all() for i in (0, 3, 6))


@pytest.mark.parametrize("branch", [0, 2, 3])
def test_pictures_of_deepcache_are_those_of_the_package(pipe, branch):
    helper = pytest.importorskip("DeepCache").DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    helper.enable()
    try:
        theirs = latents(pipe, steps=4)
    finally:
        helper.disable()
    with deepcache(laid_out(pipe, 4), 3, branch).applied(pipe):
        ours = latents(pipe, steps=4)
    assert not ours.equal(latents(pipe, steps=4))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_deepcache_takes_the_shortest_interval_within_a_budget(grid):
    for keep in (0.4, 0.6, 1.0):
        found = deepcache(grid, keep_macs=keep)
        interval = found.provenance["interval"]
        assert found.macs_ratio() <= keep
        assert interval == 1 or deepcache(grid, interval - 1).macs_ratio() > keep


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "give one of them"),
        ({"interval": 2, "keep_macs": 0.5}, "give one of them"),
        ({"interval": 0}, "interval=0"),
        ({"interval": 2, "branch": -1}, "branch=-1"),
        ({"interval": 2, "branch": 12}, "4 levels deep, but this UNet has 4"),
        ({"branch": 9, "keep_macs": 0.15}, "single whole call"),
    ],
)
def test_what_deepcache_cannot_do_is_refused(grid, asked, said):
    with pytest.raises(ValueError, match=said):
        deepcache(grid, **asked)


def test_deepcache_needs_the_layers_of_a_unet():
    for grid in (laid_out(pipe_of("classes"), 3), laid_out(pipe_of("text"), 3, "blocks")):
        with pytest.raises(ValueError, match="layers of a UNet"):
            deepcache(grid, 2)


def test_fewer_steps_are_as_many_as_the_budget_pays_for(pipe, grid):
    for keep, steps in ((1.0, 7), (0.5, 3), (0.15, 1)):
        found = fewer_steps(pipe, grid, keep)
        assert found.steps == found.calls == steps and found.label == f"{steps} steps of DDIM"
        assert found.macs_ratio() == steps / 7 and found.macs() == grid.total_macs * steps // 7
        assert found.macs(attention=False) / grid.full().macs(attention=False) == steps / 7
    heun = fewer_steps(pipe, grid, 0.6, HeunDiscreteScheduler)
    assert heun.steps < heun.calls <= 4 and heun.macs_ratio() == heun.calls / 7, "it calls more often"
    with pytest.raises(ValueError, match="pays for 1 calls"):
        fewer_steps(pipe, grid, 0.15, PNDMScheduler)
    with pytest.raises(ValueError, match="first of 7 calls"):
        fewer_steps(pipe, grid, 0.1)


def test_the_sampler_is_swapped_and_put_back(pipe, grid):
    before = pipe.scheduler
    rival = fewer_steps(pipe, grid, 0.5, DPMSolverMultistepScheduler)
    assert rival.label == "3 steps of DPMSolverMultistep" and pipe.scheduler is before
    with rival.applied(pipe):
        assert type(pipe.scheduler) is DPMSolverMultistepScheduler
        assert pipe.scheduler.config.prediction_type == before.config.prediction_type
        drawn = latents(pipe, steps=rival.steps)
    assert pipe.scheduler is before
    assert not drawn.equal(latents(pipe, steps=3))


def test_a_cell_costs_what_would_fall_with_it():
    grid = chain()
    assert own_shares(grid).tolist() == pytest.approx([0.1, 0.2, 0.7])
    found = cell_shares(decode_table(["111", "011", "110"]), grid)
    # open: c takes a and b with it; with a shut there is less to fall; behind a shut c nothing matters, and opening it
    # sets b and a to work
    assert found.tolist() == [pytest.approx(row) for row in ([0.1, 0.3, 1.0], [0.1, 0.2, 0.9], [0, 0, 1.0])]


def test_the_sparsity_loss_is_one_when_all_is_open_and_its_gradient_the_shares():
    gates = torch.ones(3, 3, requires_grad=True)
    loss = sparsity_loss(gates, own_shares(chain()))
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert torch.allclose(gates.grad, own_shares(chain()).expand(3, 3) / 3)
