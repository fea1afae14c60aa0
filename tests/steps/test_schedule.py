"""What a schedule is, counts, refuses and writes."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from tiny import latents, tiny

from pruning_lib.steps.schedule import Schedule, grid_of


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def grid(pipe):
    return grid_of(pipe, 4)


def some(grid, seed: int = 0) -> Schedule:
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    on[0] = True
    return grid.schedule(on, method="random", seed=seed)


def every_other(grid) -> Schedule:
    on = torch.zeros(grid.shape, dtype=torch.bool)
    on[::2] = True
    return grid.schedule(on, method="uniform")


def test_all_on_changes_no_bit(pipe, grid) -> None:
    before = latents(pipe)
    with grid.full().applied(pipe) as control:
        assert latents(pipe).equal(before)
        assert control.called == 4 and control.computed == 4 * 27
    assert latents(pipe).equal(before)


def test_reuse_changes_the_picture_and_leaves_nothing_behind(pipe, grid) -> None:
    before = latents(pipe)
    with every_other(grid).applied(pipe) as control:
        first, second = latents(pipe), latents(pipe)
        assert control.called == 2 and control.computed == 2 * 27
    assert first.equal(second) and not first.equal(before)
    assert latents(pipe).equal(before)


def test_skipped_calls_cost_nothing(grid) -> None:
    assert every_other(grid).macs_ratio() == 0.5
    assert every_other(grid).macs_ratio(attention=False) == 0.5


def test_dead_work_changes_no_bit(pipe, grid) -> None:
    schedule = some(grid)
    alive = schedule.live()
    assert alive.sum() < schedule.on.sum()
    alive[0] = True
    with schedule.applied(pipe):
        with_dead = latents(pipe)
    with grid.schedule(alive).applied(pipe):
        assert latents(pipe).equal(with_dead)


def test_round_trip(grid, tmp_path) -> None:
    schedule = some(grid)
    again = Schedule.load(schedule.save(tmp_path / "a.schedule.json"))
    assert again == schedule and again.provenance == {"method": "random", "seed": 0}
    assert again.macs() == schedule.macs() and again.live().equal(schedule.live())


def test_another_number_of_steps_is_refused_before_the_denoiser_runs(pipe, grid) -> None:
    called = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: called.append(1))
    with grid.full().applied(pipe), pytest.raises(ValueError, match="num_inference_steps=4"):
        latents(pipe, steps=5)
    handle.remove()
    assert not called


def test_another_scheduler_is_refused(pipe, grid) -> None:
    before = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(before.config)
    try:
        with pytest.raises(ValueError, match="DPMSolverMultistepScheduler"), grid.full().applied(pipe):
            pass
    finally:
        pipe.scheduler = before


def test_another_denoiser_is_refused(grid) -> None:
    with pytest.raises(ValueError, match="another denoiser"), grid.full().applied(tiny("sd-2.1")):
        pass


def test_two_at_once_are_refused(pipe, grid) -> None:
    with grid.full().applied(pipe):
        with pytest.raises(RuntimeError, match="already"), grid.full().applied(pipe):
            pass
        latents(pipe)
    latents(pipe, steps=2)


def test_an_error_in_the_block_takes_the_hooks_off(pipe, grid) -> None:
    before = latents(pipe)
    with pytest.raises(KeyError), every_other(grid).applied(pipe):
        raise KeyError
    assert latents(pipe).equal(before)
    assert "set_timesteps" not in vars(pipe.scheduler)
    for module in pipe.unet.modules():
        assert "forward" not in vars(module) and "_diffusers_hook" not in vars(module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda on: on.__setitem__((0, 3), False), "first row 1 of 27 units are off"),
        (lambda on: on.resize_(3, 27), "shape"),
    ],
)
def test_bad_tables_are_refused(grid, change, message: str) -> None:
    on = torch.ones(grid.shape, dtype=torch.bool)
    change(on)
    with pytest.raises(ValueError, match=message):
        grid.schedule(on)


def test_values_that_are_no_truth_values_are_refused(grid) -> None:
    with pytest.raises(ValueError, match=r"truth values .* got 0.5"):
        grid.schedule(torch.full(grid.shape, 0.5))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("rows"), "'rows' is missing"),
        (lambda d: d["rows"].pop(), "shape"),
        (lambda d: d["rows"].__setitem__(1, "2" * 27), "besides 0 and 1"),
        (lambda d: d["rows"].__setitem__(1, "1"), "different lengths"),
        (lambda d: d["units"]["names"].pop(), "of the same"),
        (lambda d: d["wiring"]["inputs"].__setitem__(0, [5]), "before it"),
        (lambda d: d.__setitem__("format", "other"), "not a schedule"),
    ],
)
def test_damaged_files_are_refused(grid, tmp_path, damage, message: str) -> None:
    path = some(grid).save(tmp_path / "a.json")
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        Schedule.load(path)


def test_half_a_file_is_refused(grid, tmp_path) -> None:
    path = some(grid).save(tmp_path / "a.json")
    path.write_text(path.read_text()[:200])
    with pytest.raises(ValueError, match="not valid JSON"):
        Schedule.load(path)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "4"])
def test_bad_step_counts_are_refused(pipe, steps) -> None:
    with pytest.raises(ValueError, match="steps="):
        grid_of(pipe, steps)
