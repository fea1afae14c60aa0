"""Schedules on every sampler of diffusers that a pipeline may bring: repeated, fractional and doubled timesteps."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tiny import laid_out
from tiny_ways import STEPS, sd3, text

from pruning_lib.steps.schedule import Schedule, grid_of

# sampler -> (class, options, calls that STEPS steps make)
SAMPLERS = {
    "DDIM": ("DDIMScheduler", {}, 5),
    "DDPM": ("DDPMScheduler", {}, 5),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}, 6),  # the second timestep twice
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": False}, 14),  # Runge-Kutta: four calls for each of the first steps
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}, 5),
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 5),
    "DPM-Solver++, single step": ("DPMSolverSinglestepScheduler", {}, 5),
    "UniPC": ("UniPCMultistepScheduler", {}, 5),
    "DEIS": ("DEISMultistepScheduler", {}, 5),
    "Euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, 5),  # fractional timesteps
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 5),
    "Euler, ancestral": ("EulerAncestralDiscreteScheduler", {}, 5),
    "Heun": ("HeunDiscreteScheduler", {}, 9),  # two calls a step but the last
    "DPM2": ("KDPM2DiscreteScheduler", {}, 9),
    "LCM": ("LCMScheduler", {}, 5),
    "TCD": ("TCDScheduler", {}, 5),
}


@pytest.fixture(scope="module")
def small():
    """A tiny pipeline with text, its call, and the configuration of its sampler."""
    pipe, draw = text()
    return pipe, draw, pipe.scheduler.config


def use(small, name: str, **more):
    """Give the pipeline a sampler; return the grid of its calls."""
    pipe, _, config = small
    kind, options, _ = SAMPLERS[name]
    pipe.scheduler = getattr(diffusers, kind).from_config(config, **options, **more)
    return laid_out(pipe, STEPS)


def half(grid) -> Schedule:
    """Return a schedule of half the cells, with at least one call that is skipped."""
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    on[0], on[2], on[3] = True, True, False
    return grid.schedule(on, method="by chance")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(small, tmp_path, name):
    pipe, draw, *_ = small
    grid, calls = use(small, name), SAMPLERS[name][2]
    assert grid.shape[0] == calls and grid.steps == STEPS
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(float(args[1])))
    plain = draw()
    hook.remove()
    assert list(grid.timesteps) == pytest.approx(seen), "a row for every call, in order"
    with grid.full().applied(pipe) as run:
        assert torch.equal(draw(), plain), "all on: bit for bit"
        assert (run.called, run.computed) == (calls, len(grid.names) * calls)
    schedule = half(grid)
    with schedule.applied(pipe) as run:
        first = draw()
        assert run.called == int(grid.calls(schedule.on).sum()) < calls
        assert run.computed == int(schedule.live().sum())
        assert first.isfinite().all() and not torch.equal(first, plain)
    with Schedule.load(schedule.save(tmp_path / "a.json")).applied(pipe):
        assert torch.equal(draw(), first), "saved, loaded and drawn again"
    assert torch.equal(draw(), plain), "outside, the pipeline is as it was"


def test_a_row_reuses_what_the_sampler_asked_for_before(small):
    """PLMS asks twice at its second timestep: the rows are two, and the second may reuse the first."""
    pipe, draw, *_ = small
    grid = use(small, "PLMS")
    assert grid.timesteps[1] == grid.timesteps[2]
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[2] = False
    outputs = []
    hook = pipe.unet.register_forward_hook(lambda unet, args, output: outputs.append(output[0].clone()))
    with grid.schedule(on).applied(pipe) as run:
        draw()
        assert run.called == grid.shape[0] - 1
    hook.remove()
    assert len(outputs) == grid.shape[0] and torch.equal(outputs[2], outputs[1])
    assert not torch.equal(outputs[3], outputs[2])


def test_another_sampler_or_spacing_is_refused_before_any_work(small):
    pipe, draw, *_ = small
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    plms = half(use(small, "PLMS"))
    with plms.applied(pipe), pytest.raises(ValueError, match=r"5 steps of PNDMScheduler \(6 calls"):
        draw(num_inference_steps=STEPS + 1)
    use(small, "PNDM")
    with plms.applied(pipe), pytest.raises(ValueError, match="14 calls"):
        draw()
    ddim = half(use(small, "DDIM"))
    with pytest.raises(ValueError, match="made for PNDMScheduler, while the pipeline samples with DDIMSched"):
        plms.applied(pipe).__enter__()
    use(small, "DDIM", timestep_spacing="trailing")
    with ddim.applied(pipe), pytest.raises(ValueError, match="asks for 5"):
        draw()
    hook.remove()
    assert not calls


@pytest.mark.parametrize("options", [{"shift": 3.0}, {"use_karras_sigmas": True}])
def test_flow_matching(options):
    pipe, draw = sd3(**options)
    grid = laid_out(pipe, STEPS)
    assert grid.wiring.output_reads_input, "the timestep reaches the last norm: every call is made"
    plain = draw()
    with grid.full().applied(pipe):
        assert torch.equal(draw(), plain)
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[1::2] = False
    with grid.schedule(on).applied(pipe) as run:
        first = draw()
        assert (run.called, run.computed) == (STEPS, int(grid.live(on).sum()))
        assert torch.equal(draw(), first) and not torch.equal(first, plain)
        with pytest.raises(ValueError, match="4 calls"):
            draw(num_inference_steps=4)
    assert torch.equal(draw(), plain)


def test_flow_matching_whose_timesteps_depend_on_the_picture():
    pipe, _ = sd3(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="does not tell its timesteps for 5 steps alone"):
        grid_of(pipe, STEPS)
    pipe.scheduler.set_timesteps(STEPS, mu=0.7)
    asked = pipe.scheduler.timesteps.tolist()
    grid = grid_of(pipe, STEPS, timesteps=asked)
    assert list(grid.timesteps) == asked and grid.shape[0] == STEPS
