"""Samplers of diffusers that a pipeline may bring, repeated and fractional timesteps, and what skipped calls answer."""

from __future__ import annotations

import diffusers
import pytest
import torch
from on_gpu import STEPS, draw, some
from tiny import laid_out, tiny

from pruning_lib.steps.budget import every
from pruning_lib.steps.replay import LastValue, hold_of
from pruning_lib.steps.schedule import Schedule

# sampler -> (class, options, calls that STEPS steps make)
SAMPLERS = {
    "DDPM": ("DDPMScheduler", {}, 5),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}, 6),  # the second timestep twice
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": False}, 14),  # Runge-Kutta: four calls for each of the first steps
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 5),
    "Euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, 5),  # fractional timesteps
    "Heun": ("HeunDiscreteScheduler", {}, 9),  # two calls a step but the last
    "LCM": ("LCMScheduler", {}, 5),
}


@pytest.fixture(scope="module")
def small():
    """A tiny pipeline with text, and the configuration of its sampler."""
    pipe = tiny()
    return pipe, pipe.scheduler.config


def use(small, name: str, **more):
    """Give the pipeline a sampler; return the grid of its calls."""
    kind, options, _ = SAMPLERS[name]
    small[0].scheduler = getattr(diffusers, kind).from_config(small[1], **options, **more)
    return laid_out(small[0], STEPS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(small, tmp_path, name):
    pipe, grid, calls, seen = small[0], use(small, name), SAMPLERS[name][2], []
    assert grid.shape[0] == calls and grid.steps == STEPS
    hook = pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(float(args[1])))
    plain = draw(pipe)
    hook.remove()
    assert list(grid.timesteps) == pytest.approx(seen), "a row for every call, in order"
    with grid.full().applied(pipe) as run:
        assert torch.equal(draw(pipe), plain), "all on: bit for bit"
        assert (run.called, run.computed) == (calls, len(grid.names) * calls)
    schedule = some(grid)
    with schedule.applied(pipe) as run:
        first = draw(pipe)
        assert run.called == int(grid.calls(schedule.on).sum()) < calls
        assert run.computed == int(schedule.live().sum())
        assert first.isfinite().all() and not torch.equal(first, plain)
    with Schedule.load(schedule.save(tmp_path / "a.json")).applied(pipe):
        assert torch.equal(draw(pipe), first), "saved, loaded and drawn again"
    assert torch.equal(draw(pipe), plain), "outside, the pipeline is as it was"


def test_another_sampler_or_spacing_is_refused_before_any_work(small, monkeypatch):
    pipe = small[0]
    monkeypatch.setattr(pipe.unet, "forward", None)  # no call can be made
    plms = some(use(small, "PLMS"))
    with plms.applied(pipe), pytest.raises(ValueError, match=r"5 steps of PNDMScheduler \(6 calls"):
        draw(pipe, steps=STEPS + 1)
    ddpm = some(use(small, "DDPM"))
    with pytest.raises(ValueError, match="made for PNDMScheduler, while the pipeline samples with DDPMSched"):
        plms.applied(pipe).__enter__()
    use(small, "DDPM", timestep_spacing="trailing")
    with ddpm.applied(pipe), pytest.raises(ValueError, match="asks for 5"):
        draw(pipe)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_holding_the_prediction_is_one_larger_step_of_ddim(kind):
    pipe = tiny()
    trailing = {"timestep_spacing": "trailing", "set_alpha_to_one": False}
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=kind, **trailing)
    schedule, plain = every(laid_out(pipe, 4), 2), draw(pipe, steps=4)
    with schedule.holding("prediction").applied(pipe) as control:
        held = draw(pipe, steps=4)
        assert control.called == 2
        assert torch.allclose(draw(pipe, 2, steps=4)[:1], held, atol=1e-4), "in a batch as alone"
        assert draw(pipe, steps=4).equal(held), "nothing is left over from the run before"
    # the same jumps, by hand: a sampler of 4 steps that is called at every second one
    assert torch.allclose(held, by_hand(pipe, 4, 2), rtol=1e-3, atol=1e-3)
    with schedule.applied(pipe):
        assert torch.allclose(draw(pipe, steps=4), held, rtol=1e-3, atol=1e-3) == (kind == "epsilon")
    with schedule.grid.full().holding("prediction").applied(pipe):
        assert draw(pipe, steps=4).equal(plain), "all on: bit for bit"


@torch.no_grad()
def by_hand(pipe, steps: int, every_nth: int, guidance: float = 3.0) -> torch.Tensor:
    """Sample with jumps from one computed call to the next: DDIM's formula, written out."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    levels = scheduler.alphas_cumprod
    times = scheduler.timesteps[::every_nth].tolist()
    positive, negative = pipe.encode_prompt(["lion"], "cpu", 1, True)
    x = torch.randn(1, 4, *[pipe.unet.config.sample_size] * 2, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(times):
        low, high = (pipe.unet(x, t, text).sample for text in (negative, positive))
        out = low + guidance * (high - low)
        a, b = levels[t], levels[times[i + 1]] if i + 1 < len(times) else scheduler.final_alpha_cumprod
        if scheduler.config.prediction_type == "v_prediction":
            x0, e = a.sqrt() * x - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * x
        else:
            x0, e = (x - (1 - a).sqrt() * out) / a.sqrt(), out
        x = b.sqrt() * x0 + (1 - b).sqrt() * e
    return x


def test_other_predictions_are_held_by_their_value_and_what_cannot_work_is_refused():
    for kind in ("epsilon", "sample"):
        assert hold_of("prediction", diffusers.DDIMScheduler(prediction_type=kind)) is LastValue
    assert hold_of("prediction", diffusers.FlowMatchEulerDiscreteScheduler()) is LastValue
    without_levels = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction")
    del without_levels.alphas_cumprod
    for scheduler, said in (
        (without_levels, "noise levels are not known"),
        (diffusers.EDMEulerScheduler(), "no rule here covers EDMEulerScheduler"),
        (diffusers.IPNDMScheduler(), "prediction_type=None"),
    ):
        assert hold_of("value", scheduler) is LastValue
        with pytest.raises(ValueError, match=said):
            hold_of("prediction", scheduler)
    with pytest.raises(ValueError, match="allowed: 'value', 'prediction'"):
        hold_of("velocity", diffusers.DDIMScheduler())
