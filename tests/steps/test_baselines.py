"""Uniform reuse and DeepCache's pattern."""

from __future__ import annotations

import pytest
import torch
from tiny import latents, tiny

from pruning_lib.steps.budget import deepcache, every, uniform
from pruning_lib.steps.schedule import grid_of


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def grid(pipe):
    return grid_of(pipe, 7)


def units_at(schedule, row: int) -> set[str]:
    return {name for name, on in zip(schedule.grid.names, schedule.on[row].tolist(), strict=True) if on}


def test_uniform_places_whole_calls_at_equal_distances(grid) -> None:
    assert uniform(grid, 3 / 7).on.all(1).nonzero().flatten().tolist() == [0, 2, 4]
    assert uniform(grid, 0.99).on.all(1).sum() == 6
    assert uniform(grid, 1.0) == grid.full()
    assert uniform(grid, 1 / 7).on.any(1).sum() == 1
    for keep in (0.2, 0.35, 0.5, 0.9):
        assert uniform(grid, keep).macs_ratio() <= keep


def test_every(grid) -> None:
    assert every(grid, 3).on.any(1).nonzero().flatten().tolist() == [0, 3, 6]
    assert every(grid, 1) == grid.full()


def test_branches_are_those_of_the_package(grid) -> None:
    last = "up_blocks.3.layers.2"
    assert units_at(deepcache(grid, 3), 1) == {last}
    assert units_at(deepcache(grid, 3, 1), 1) == {"down_blocks.0.layers.0", "up_blocks.3.layers.1", last}
    two = units_at(deepcache(grid, 3, 2), 1)
    assert two == {*(f"down_blocks.0.layers.{i}" for i in (0, 1)), *(f"up_blocks.3.layers.{i}" for i in (0, 1, 2))}
    three = units_at(deepcache(grid, 3, 3), 1)
    assert three - two == {"down_blocks.0.downsamplers.0", "up_blocks.2.layers.2", "up_blocks.2.upsamplers.0"}
    assert all(deepcache(grid, 3).on[i].all() for i in (0, 3, 6))


@pytest.mark.parametrize("branch", [0, 1, 2, 3])
def test_pictures_are_those_of_the_package(pipe, grid, branch) -> None:
    deepcache_package = pytest.importorskip("DeepCache")
    helper = deepcache_package.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    helper.enable()
    try:
        theirs = latents(pipe, steps=7)
    finally:
        helper.disable()
    with deepcache(grid, 3, branch).applied(pipe):
        ours = latents(pipe, steps=7)
    assert not ours.equal(latents(pipe, steps=7))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("keep_macs", [0.3, 0.4, 0.6, 1.0])
def test_a_budget_gives_the_shortest_interval_within(grid, keep_macs) -> None:
    found = deepcache(grid, keep_macs=keep_macs)
    assert found.macs_ratio() <= keep_macs
    interval = found.provenance["interval"]
    assert interval == 1 or deepcache(grid, interval - 1).macs_ratio() > keep_macs


def test_bad_input_is_refused(grid) -> None:
    for wrong in ({}, {"interval": 2, "keep_macs": 0.5}):
        with pytest.raises(ValueError, match="give one of them"):
            deepcache(grid, **wrong)
    for interval in (0, 1.5, True):
        with pytest.raises(ValueError, match="interval="):
            deepcache(grid, interval)
    with pytest.raises(ValueError, match="interval="):
        every(grid, 0)
    with pytest.raises(ValueError, match="branch="):
        deepcache(grid, 2, -1)
    with pytest.raises(ValueError, match="levels deep"):
        deepcache(grid, 2, 12)
    with pytest.raises(ValueError, match="single whole call"):
        deepcache(grid, branch=9, keep_macs=0.15)
    with pytest.raises(ValueError, match="layers of a UNet"):
        deepcache(grid_of(tiny("dit-xl-2-256"), 3), 2)
    with pytest.raises(ValueError, match="layers of a UNet"):
        deepcache(grid_of(tiny(), 3, "blocks"), 2)
