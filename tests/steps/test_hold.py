"""What skipped calls answer."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
)
from tiny import laid_out, latents, tiny

from pruning_lib.steps.budget import every
from pruning_lib.steps.replay import LastValue, hold_of


@pytest.mark.parametrize(("kind", "guidance"), [("v_prediction", 3.0), ("epsilon", 1.0)])
def test_holding_the_prediction_is_one_larger_step_of_ddim(kind, guidance):
    pipe = tiny()
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type=kind, timestep_spacing="trailing", set_alpha_to_one=False
    )
    schedule = every(laid_out(pipe, 4), 2)
    with schedule.holding("prediction").applied(pipe) as control:
        held = latents(pipe, guidance=guidance)
        assert control.called == 2
        two = latents(pipe, guidance=guidance, batch=2)
        assert latents(pipe, guidance=guidance).equal(held), "nothing is left over from the run before"
    assert torch.allclose(two[0], held[0], atol=1e-4), "in a batch as alone"
    # the same jumps, by hand: a sampler of 4 steps that is called at every second one
    assert torch.allclose(held, by_hand(pipe, 4, 2, guidance), atol=1e-4)
    with schedule.applied(pipe):
        value = latents(pipe, guidance=guidance)
    assert torch.allclose(value, held, atol=1e-4) == (kind == "epsilon")
    with schedule.grid.full().holding("prediction").applied(pipe):
        whole = latents(pipe, guidance=guidance)
    assert latents(pipe, guidance=guidance).equal(whole), "all on: bit for bit"


@torch.no_grad()
def by_hand(pipe, steps: int, every_nth: int, guidance: float) -> torch.Tensor:
    """Sample with jumps from one computed call to the next: DDIM's formula, written out."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    levels = scheduler.alphas_cumprod
    times = scheduler.timesteps[::every_nth].tolist()
    positive, negative = pipe.encode_prompt(["lion"], "cpu", 1, True)
    size = pipe.unet.config.sample_size
    x = torch.randn(1, pipe.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(times):
        low, high = (pipe.unet(x, t, text).sample for text in (negative, positive))
        out = low + guidance * (high - low)
        a = levels[t]
        if scheduler.config.prediction_type == "v_prediction":
            x0, e = a.sqrt() * x - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * x
        else:
            x0, e = (x - (1 - a).sqrt() * out) / a.sqrt(), out
        b = levels[times[i + 1]] if i + 1 < len(times) else scheduler.final_alpha_cumprod
        x = b.sqrt() * x0 + (1 - b).sqrt() * e
    return x


def test_the_velocity_of_the_same_clean_sample_and_noise():
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    hold = hold_of("prediction", scheduler)()
    levels = scheduler.alphas_cumprod.double()
    x0, e = torch.randn(2, 4, dtype=torch.float64)

    def parts(t):
        a, s = levels[t].sqrt(), (1 - levels[t]).sqrt()
        return a * x0 + s * e, a * e - s * x0  # sample, velocity

    sample, velocity = parts(700)
    hold.update(sample, 700, (velocity, "more"))
    turned = hold.predict(torch.tensor([250]))
    assert torch.allclose(turned[0], parts(250)[1], atol=1e-9) and turned[1] == "more"
    assert 0 <= hold.angle(-1) < hold.angle(10.5) < hold.angle(11) < hold.angle(5000) < 1.571


def test_other_predictions_are_held_by_their_value_and_what_cannot_work_is_refused_before_any_work():
    for other in (DDIMScheduler(), DDIMScheduler(prediction_type="sample"), FlowMatchEulerDiscreteScheduler()):
        assert hold_of("prediction", other) is LastValue
    without_levels = EulerDiscreteScheduler(prediction_type="v_prediction")
    del without_levels.alphas_cumprod
    for scheduler, said in (
        (without_levels, "noise levels are not known"),
        (EDMEulerScheduler(), "no rule here covers EDMEulerScheduler"),
        (IPNDMScheduler(), "prediction_type=None"),
    ):
        assert hold_of("value", scheduler) is LastValue
        with pytest.raises(ValueError, match=said):
            hold_of("prediction", scheduler)
    pipe = tiny()
    pipe.scheduler = EDMEulerScheduler()
    schedule = laid_out(pipe, 4).full()
    called = []
    pipe.unet.register_forward_pre_hook(lambda *_: called.append(1))
    with pytest.raises(ValueError, match="no rule here"), schedule.holding("prediction").applied(pipe):
        latents(pipe)
    assert not called and "set_timesteps" not in vars(pipe.scheduler)
    with pytest.raises(ValueError, match="allowed: 'value', 'prediction'"):
        schedule.holding("velocity")
