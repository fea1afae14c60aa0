"""What skipped calls hold on to."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from tiny import latents, tiny

from pruning_lib.steps.budget import every
from pruning_lib.steps.reuse import Turn, reusing
from pruning_lib.steps.schedule import grid_of


def with_prediction(kind: str):
    pipe = tiny()
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type=kind, timestep_spacing="trailing", set_alpha_to_one=False
    )
    return pipe


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_holding_the_prediction_is_one_larger_step_of_ddim(kind, guidance) -> None:
    pipe = with_prediction(kind)
    schedule = every(grid_of(pipe, 4), 2)
    with reusing(schedule, "prediction").applied(pipe) as control:
        held = latents(pipe, steps=4, guidance=guidance)
        assert control.called == 2
    # the same jumps, by hand: a sampler of 4 steps that is called at every second one
    assert torch.allclose(held, by_hand(pipe, 4, 2, guidance), atol=1e-4)
    with schedule.applied(pipe):
        output = latents(pipe, steps=4, guidance=guidance)
    assert torch.allclose(output, held, atol=1e-4) == (kind == "epsilon")


@torch.no_grad()
def by_hand(pipe, steps: int, every_nth: int, guidance: float) -> torch.Tensor:
    """Sample with jumps from one computed call to the next: DDIM's formula, written out."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    levels = scheduler.alphas_cumprod
    times = scheduler.timesteps[::every_nth].tolist()
    positive, negative = pipe.encode_prompt(["lion"], "cpu", 1, True)
    noise = torch.Generator().manual_seed(0)
    size = pipe.unet.config.sample_size
    x = torch.randn(1, pipe.unet.config.in_channels, size, size, generator=noise)
    for i, t in enumerate(times):
        if guidance > 1:
            out = pipe.unet(torch.cat([x, x]), t, torch.cat([negative, positive])).sample
            low, high = out.chunk(2)
            out = low + guidance * (high - low)
        else:
            out = pipe.unet(x, t, positive).sample
        a = levels[t]
        if scheduler.config.prediction_type == "v_prediction":
            x0, e = a.sqrt() * x - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * x
        else:
            x0, e = (x - (1 - a).sqrt() * out) / a.sqrt(), out
        b = levels[times[i + 1]] if i + 1 < len(times) else scheduler.final_alpha_cumprod
        x = b.sqrt() * x0 + (1 - b).sqrt() * e
    return x


def test_a_full_schedule_changes_no_bit() -> None:
    pipe = with_prediction("v_prediction")
    before = latents(pipe)
    with reusing(grid_of(pipe, 4).full(), "prediction").applied(pipe):
        assert latents(pipe).equal(before)
    assert latents(pipe).equal(before)


def test_two_runs_and_another_batch_are_equal() -> None:
    pipe = with_prediction("v_prediction")
    with reusing(every(grid_of(pipe, 4), 2), "prediction").applied(pipe):
        first, two, again = latents(pipe), latents(pipe, batch=2), latents(pipe)
    assert first.equal(again)
    assert torch.allclose(first[0], two[0], atol=1e-4)


def test_turning_keeps_the_clean_picture_and_the_noise() -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    turn = Turn.of(scheduler)
    levels = scheduler.alphas_cumprod.double()
    x0, e = torch.randn(2, 4, dtype=torch.float64)

    def parts(t):
        a, s = levels[t].sqrt(), (1 - levels[t]).sqrt()
        return a * x0 + s * e, a * e - s * x0  # sample, velocity

    sample, velocity = parts(700)
    turned = turn(sample, 700, (velocity, "more"), torch.tensor([250]))
    assert torch.allclose(turned[0], parts(250)[1], atol=1e-9)
    assert turned[1] == "more"
    assert 0 <= turn.angle(-1) < turn.angle(10.5) < turn.angle(11) < turn.angle(5000) < 1.571


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_other_predictions_stay(kind) -> None:
    output = torch.randn(3)
    assert Turn.of(DDIMScheduler(prediction_type=kind))(None, 900, output, 100) is output
    assert Turn.of(FlowMatchEulerDiscreteScheduler())(None, 900, output, 100) is output


def test_bad_input_is_refused() -> None:
    schedule = every(grid_of(tiny(), 4), 2)
    with pytest.raises(ValueError, match="'output', 'prediction'"):
        reusing(schedule, "velocity")
    assert reusing(schedule) is schedule
    levels = EulerDiscreteScheduler(prediction_type="v_prediction")
    del levels.alphas_cumprod
    with pytest.raises(TypeError, match="noise levels are not known"):
        Turn.of(levels)


def test_the_interface_is_a_schedule_s() -> None:
    schedule = every(grid_of(tiny(), 4), 2)
    held = reusing(schedule, "prediction")
    assert (held.steps, held.label, held.macs(), held.macs_ratio()) == (4, "uniform", schedule.macs(), 0.5)
    assert held.macs(attention=False) == schedule.macs(attention=False) and held.grid is schedule.grid
