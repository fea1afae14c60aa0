"""Schedules within a budget: of scores, of whole calls, DeepCache's pattern; and what open gates cost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from on_gpu import draw
from tiny import laid_out, made_up, tiny

from pruning_book.rivals.fewer_steps import fewer_steps
from pruning_lib.steps.budget import check_budget, deepcache, evenly, every, threshold_scores, uniform, within_budget
from pruning_lib.steps.gates import cell_shares, own_shares, sparsity_loss
from pruning_lib.steps.schedule import decode_table

CHAIN = made_up(3, (10, 20, 70), [[], [0], [1]])


@pytest.fixture(scope="module")
def pipe():
    return tiny("sd-1.5")


@pytest.fixture(scope="module")
def grid(pipe):
    return laid_out(pipe, 7)


@pytest.mark.parametrize("keep", [0.15, 0.5, 0.99])
def test_a_budget_is_met_and_never_exceeded(grid, keep):
    scores = torch.rand(grid.shape, generator=torch.Generator().manual_seed(1))
    on = within_budget(scores, grid, keep)
    assert grid.macs_ratio(on) <= keep and on[0].all()
    shut = scores[1:][~on[1:]]
    assert not on[1:].any() or scores[1:][on[1:]].min() >= shut.max(), "the best are open"
    more = on.clone()
    more[1:].view(-1)[scores[1:].flatten().masked_fill(on[1:].flatten(), -1).argmax()] = True
    assert grid.macs_ratio(more) > keep, "one more is too many"
    filled = threshold_scores(scores, grid, keep, seed=1)
    assert 0.85 * keep < filled.macs_ratio() <= keep and filled.live().equal(filled.on), "no dead work"
    assert threshold_scores(scores, grid, 1) == uniform(grid, 1.0) == every(grid, 1) == grid.full()
    on = within_budget(torch.tensor([[9.0] * 3, [5, 5, 0], [1, 1, 4]]), CHAIN, 0.34)
    assert on[1].tolist() == [True, True, False], "dead cells are free: nobody reads a and b while c is shut"


def test_a_share_of_calls_is_counted_exactly_and_they_stand_at_equal_distances(pipe, grid):
    for calls in (20, 7, 3):
        other = laid_out(pipe, calls)
        for count in range(1, calls + 1):
            assert check_budget(other, count / calls) * calls // other.total_macs == count
    for keep, rows in ((1 / 7, [0]), (3 / 7, [0, 2, 4]), (0.99, [0, 1, 2, 3, 4, 5])):
        on = evenly(grid, keep)
        assert torch.equal(on.all(1), on.any(1)) and on.any(1).nonzero().flatten().tolist() == rows


def test_other_budgets_and_scores_are_refused(grid):
    for keep in (0, 0.1, 1.1, "0.5", True, float("nan")):
        for make in (within_budget, threshold_scores, lambda _, *rest: uniform(*rest)):
            with pytest.raises(ValueError, match=r"keep_macs=.*(a number in \(0, 1\]|less than the first of 7 calls)"):
                make(torch.rand(grid.shape), grid, keep)
    for wrong, said in ((torch.rand(3, 3), r"shape \(3, 3\)"), (torch.full(grid.shape, torch.nan), "not finite")):
        with pytest.raises(ValueError, match=said):
            threshold_scores(wrong, grid, 0.5)


def test_branches_of_deepcache_are_those_of_the_package_and_its_interval_fits_a_budget(grid):
    def between(branch: int) -> set[str]:
        found = deepcache(grid, 3, branch)
        assert all(found.on[i].all() for i in (0, 3, 6))
        return {name for name, on in zip(grid.names, found.on[1].tolist(), strict=True) if on}

    last = "up_blocks.3.layers.2"
    assert between(0) == {last}
    assert between(1) == {"down_blocks.0.layers.0", "up_blocks.3.layers.1", last}
    two = between(2)
    assert two == {*(f"down_blocks.0.layers.{i}" for i in (0, 1)), *(f"up_blocks.3.layers.{i}" for i in (0, 1, 2))}
    assert between(3) - two == {"down_blocks.0.downsamplers.0", "up_blocks.2.layers.2", "up_blocks.2.upsamplers.0"}
    found = deepcache(grid, keep_macs=0.4)
    assert found.macs_ratio() <= 0.4 < deepcache(grid, found.provenance["interval"] - 1).macs_ratio()
    for asked, said in (
        ({"interval": 2, "keep_macs": 0.5}, "give one of them"),
        ({"interval": 2, "branch": 12}, "4 levels deep, but this UNet has 4"),
        ({"branch": 9, "keep_macs": 0.15}, "single whole call"),
    ):
        with pytest.raises(ValueError, match=said):
            deepcache(grid, **asked)
    with pytest.raises(ValueError, match="layers of a UNet"):
        deepcache(laid_out(tiny("classes"), 3), 2)


@pytest.mark.parametrize("branch", [0, 3])
def test_pictures_of_deepcache_are_those_of_the_package(pipe, branch):
    helper = pytest.importorskip("DeepCache").DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    helper.enable()
    try:
        theirs = draw(pipe)
    finally:
        helper.disable()
    with deepcache(laid_out(pipe, 5), 3, branch).applied(pipe):
        ours = draw(pipe)
    assert not ours.equal(draw(pipe)) and torch.allclose(ours, theirs, atol=1e-5)


def test_fewer_steps_are_as_many_as_the_budget_pays_for(pipe, grid):
    for keep, steps in ((1.0, 7), (0.5, 3), (0.15, 1)):
        found = fewer_steps(pipe, grid, keep)
        assert found.steps == found.calls == steps and found.label == f"{steps} steps of DDIM"
        assert found.macs_ratio() == steps / 7 and found.macs() == grid.total_macs * steps // 7
    heun = fewer_steps(pipe, grid, 0.6, HeunDiscreteScheduler)
    assert heun.steps < heun.calls <= 4 and heun.macs_ratio() == heun.calls / 7, "it calls more often"
    with pytest.raises(ValueError, match="pays for 1 calls"):
        fewer_steps(pipe, grid, 0.15, PNDMScheduler)
    before, rival = pipe.scheduler, fewer_steps(pipe, grid, 0.5, DPMSolverMultistepScheduler)
    assert pipe.scheduler is before
    with rival.applied(pipe):
        assert type(pipe.scheduler) is DPMSolverMultistepScheduler
        assert pipe.scheduler.config.prediction_type == before.config.prediction_type
    assert pipe.scheduler is before
    shifted = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(ValueError, match="does not tell its timesteps"):
        fewer_steps(shifted, grid, 0.5)


def test_a_cell_costs_what_would_fall_with_it():
    own, gates = own_shares(CHAIN), torch.ones(3, 3, requires_grad=True)
    assert own.tolist() == pytest.approx([0.1, 0.2, 0.7])
    found = cell_shares(decode_table(["111", "011", "110"]), CHAIN)
    # open: c takes a and b with it; with a shut there is less to fall; behind a shut c nothing matters, and opening it
    # sets b and a to work
    assert found.tolist() == [pytest.approx(row) for row in ([0.1, 0.3, 1.0], [0.1, 0.2, 0.9], [0, 0, 1.0])]
    loss = sparsity_loss(gates, own)
    loss.backward()
    assert loss.item() == pytest.approx(1) and torch.allclose(gates.grad, own.expand(3, 3) / 3)
