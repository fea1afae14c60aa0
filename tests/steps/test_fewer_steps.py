"""Fewer steps of a sampler, as a rival."""

from __future__ import annotations

import pytest
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler
from tiny import latents, tiny

from pruning_book.rivals.fewer_steps import fewer_steps
from pruning_lib.steps.schedule import grid_of


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def grid(pipe):
    return grid_of(pipe, 8)


def test_as_many_steps_as_the_budget_pays_for(pipe, grid) -> None:
    for keep, steps in ((1.0, 8), (0.5, 4), (0.49, 3), (0.125, 1)):
        found = fewer_steps(pipe, grid, keep)
        assert found.steps == found.calls == steps
        assert found.macs_ratio() == steps / 8 <= keep
        assert found.macs() == grid.total_macs * steps // 8
        assert found.macs(attention=False) / grid.full().macs(attention=False) == steps / 8


def test_samplers_that_call_more_often_get_fewer_steps(pipe, grid) -> None:
    found = fewer_steps(pipe, grid, 0.5, HeunDiscreteScheduler)
    assert found.steps < found.calls <= 4 and found.macs_ratio() == found.calls / 8
    with pytest.raises(ValueError, match="pays for 1 calls"):
        fewer_steps(pipe, grid, 0.125, PNDMScheduler)


def test_the_sampler_is_swapped_and_put_back(pipe, grid) -> None:
    before = pipe.scheduler
    rival = fewer_steps(pipe, grid, 0.5, DPMSolverMultistepScheduler)
    with rival.applied(pipe):
        assert type(pipe.scheduler) is DPMSolverMultistepScheduler
        assert pipe.scheduler.config.prediction_type == before.config.prediction_type
        drawn = latents(pipe, steps=rival.steps)
    assert pipe.scheduler is before
    assert not drawn.equal(latents(pipe, steps=4))
    with fewer_steps(pipe, grid, 0.5).applied(pipe):
        assert latents(pipe, steps=4).equal(latents(pipe, steps=4))


def test_labels(pipe, grid) -> None:
    assert fewer_steps(pipe, grid, 0.5, DPMSolverMultistepScheduler).label == "4 steps of DPMSolverMultistep"
    assert fewer_steps(pipe, grid, 0.5).label.startswith("4 steps of ")


def test_a_budget_below_one_call_is_refused(pipe, grid) -> None:
    with pytest.raises(ValueError, match="first of 8 calls"):
        fewer_steps(pipe, grid, 0.1)
