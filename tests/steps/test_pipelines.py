"""Schedules beside everything a diffusers pipeline may do: the same four promises, for every way of using one.

All on is bit-identical; what a schedule leaves out does not run; two runs in a row are equal; outside, nothing is left.
"""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from on_gpu import macs_of_run, some
from peft.utils import get_peft_model_state_dict
from tiny import laid_out
from tiny_ways import STEPS, WAYS, counting, drawing, expected, hooks_left, text, with_lora

import pruning_lib as pl
from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.schedule import grid_of

LATER = {"image to image": 2, "inpainting": 2}  # the row at which strength 0.61 begins


@pytest.mark.parametrize("way", WAYS)
def test_every_way(way):
    pipe, draw = WAYS[way]()
    plain = draw()
    # Flux computes its timesteps from the picture's size: they are read off a run
    told = {"timesteps": pipe.scheduler.timesteps.tolist()}
    grid = grid_of(pipe, STEPS, **told) if way == "Flux" else laid_out(pipe, STEPS)
    begins = LATER.get(way, 0)
    calls = {"Flux": 2}.get(way, 1)  # guidance in two calls, each with values of its own

    with grid.full().applied(pipe), counting(pipe) as ran:
        assert torch.equal(draw(), plain), "all on: bit for bit"
    assert set(ran.values()) == {calls * (STEPS - begins)}

    schedule = some(grid)
    with schedule.applied(pipe):
        with counting(pipe) as ran:
            pruned = draw()
        assert ran == expected(schedule, begins, calls)
        assert torch.equal(draw(), pruned), "nothing is left over from the run before"
    assert pruned.isfinite().all() and not torch.equal(pruned, plain)
    assert not hooks_left(denoiser_of(pipe)[1])
    with counting(pipe) as ran:
        assert torch.equal(draw(), plain), "outside, the pipeline is as it was"
    assert set(ran.values()) == {calls * (STEPS - begins)}


@pytest.mark.parametrize(
    ("way", "samples", "grains"),
    [("sd-2.1", 2, ["blocks", "modules"]), ("DiT", 4, ["blocks", "layers"]), ("SDXL", 4, ["layers"])],
)
def test_the_macs_that_are_claimed_are_the_macs_that_run(way, samples, grains):
    pipe, draw = WAYS[way]()
    whole = macs_of_run(draw)
    for grain in grains:
        grid = laid_out(pipe, STEPS, grain)
        schedule = some(grid, seed=1)
        with schedule.applied(pipe):
            left = macs_of_run(draw)
        claimed = samples * (grid.full().macs() - schedule.macs())
        if (way, grain) == ("DiT", "blocks"):  # its last norm calls the embedding inside the first block once more
            embedding = pl.count_macs(pipe.transformer).modules["transformer_blocks.0.norm1.emb"].macs // 2
            claimed -= samples * embedding * int((~schedule.live()[:, 0]).sum())
        assert whole - left == claimed > 0, grain


def test_one_context_many_kinds_of_runs():
    """Batch size and guidance change from run to run; nothing of one run reaches the next."""
    pipe, _ = text()

    def draw(prompts, guidance):
        return drawing(pipe, prompts, batch=len(prompts), guidance_scale=guidance)[1]()

    asked = [(["lion"], 3.0), (["lion", "pizza"], 1.0), (["pizza"], 3.0), (["lion"], 1.0), (["a", "b", "c"], 3.0)]
    schedule, alone = some(laid_out(pipe, STEPS)), []
    for case in asked:
        with schedule.applied(pipe):
            alone.append(draw(*case))
    with schedule.applied(pipe):
        assert all(torch.equal(draw(*case), one) for case, one in zip(asked, alone, strict=True))
        together = draw(["lion", "pizza", "red heart"], 3.0)
        assert torch.allclose(together[:1], alone[0], atol=1e-4), "in a batch as alone"


class StopError(Exception):
    """What a test raises in the middle of a run."""


@pytest.mark.parametrize(
    ("where", "error"), [("unit", KeyboardInterrupt), ("callback", StopError), ("scheduler", StopError)]
)
def test_an_interrupted_run_leaves_nothing_behind(monkeypatch, where, error):
    pipe, draw = text(batch=2)
    schedule, plain = some(laid_out(pipe, STEPS)), draw()
    on = schedule.on.clone()
    on[:, -1] = True  # so that the unit of the test runs at every call
    schedule = schedule.grid.schedule(on)
    with schedule.applied(pipe):
        pruned = draw()
    calls = []

    def stop(*args, **more):
        calls.append(1)
        if len(calls) > 1:  # the second step
            raise error
        return step(*args, **more) if where == "scheduler" else {} if where == "callback" else None

    step, other = pipe.scheduler.step, drawing(pipe, "house")[1]

    def broken():
        """Break a run of another batch size after its first step."""
        calls.clear()
        module = pipe.unet.up_blocks[-1].resnets[-1].conv1  # of the last unit: others are computed already
        with monkeypatch.context() as patch:
            hook = module.register_forward_pre_hook(stop) if where == "unit" else None
            if where == "scheduler":
                patch.setattr(pipe.scheduler, "step", stop)
            try:
                other(**({"callback_on_step_end": stop} if where == "callback" else {}))
            finally:
                if hook:
                    hook.remove()

    with schedule.applied(pipe):
        with pytest.raises(error):
            broken()
        assert torch.equal(draw(), pruned), "the run after a broken one is right"
    with pytest.raises(error), schedule.applied(pipe):  # and it may leave the block
        broken()
    assert "set_timesteps" not in vars(pipe.scheduler)
    assert not any({"forward", "_diffusers_hook"} & vars(module).keys() for module in pipe.unet.modules())
    assert torch.equal(draw(), plain)


def test_a_run_that_is_stopped_early_is_no_error():
    """`pipe._interrupt` is diffusers' own way: the remaining calls are passed over."""
    pipe, draw = text()

    def enough(pipe, step, timestep, values):
        pipe._interrupt = step == 1
        return values

    with some(laid_out(pipe, STEPS)).applied(pipe) as run:
        pruned = draw()
        draw(callback_on_step_end=enough)
        assert run.called <= 2
        assert torch.equal(draw(), pruned)


def test_a_schedule_goes_with_other_weights_of_the_same_model():
    """Made without LoRA, applied with it, scaled, and without it again."""
    pipe, draw = text()
    schedule, plain = some(laid_out(pipe, STEPS)), draw()
    with schedule.applied(pipe):
        without = draw()
    with_lora(pipe)
    tuned = draw()
    assert not torch.equal(tuned, plain)
    with schedule.applied(pipe):
        with counting(pipe) as ran:
            assert not torch.equal(draw(), without)
        assert ran == expected(schedule)
        pipe.unet.disable_adapters()  # inside the block as well
        assert torch.equal(draw(), without)
    assert torch.equal(draw(), plain)
    pipe.unet.enable_adapters()
    assert torch.equal(draw(), tuned)


def test_weights_of_lora_loaded_by_the_pipeline(tmp_path):
    pipe, draw = text(change=with_lora)
    tuned = draw()
    pipe.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    pipe, draw = text()
    plain, schedule = draw(), some(laid_out(pipe, STEPS))
    pipe.load_lora_weights(tmp_path, adapter_name="tuned")
    with schedule.applied(pipe), counting(pipe) as ran:
        draw()
    assert ran == expected(schedule)
    with schedule.grid.full().applied(pipe):
        assert torch.equal(draw(), tuned)
        pipe.unload_lora_weights()  # inside: adapters live in the modules that are hooked
        assert torch.equal(draw(), plain)
    assert torch.equal(draw(), plain)


def removed(pipe):
    """Return a pipeline without some layers; the one that is given is left alone."""
    return pl.remove_operators(pipe, ["down_blocks.1.resnets.1", "up_blocks.3.attentions.1", "mid_block.attentions.0"])


def narrowed(pipe):
    """Return a pipeline with fewer channels."""
    unet = pl.prune_structured(pipe.unet, 0.4, importance="random").unet
    return type(pipe)(**{**pipe.components, "unet": unet}, requires_safety_checker=False)


@pytest.mark.parametrize("prune", [removed, narrowed])
def test_a_pruned_denoiser_has_a_grid_of_its_own(prune):
    """It refuses the schedule of the whole one, and holds the four promises with its own."""
    pipe, _ = text(kind="sd-1.5")
    whole = some(laid_out(pipe, STEPS))
    small, draw = drawing(prune(pipe), "lion")
    with pytest.raises(ValueError, match="made for another denoiser"), whole.applied(small):
        pass
    grid = grid_of(small, STEPS)
    assert grid.shape == whole.grid.shape and sum(grid.macs) < sum(whole.grid.macs)
    plain, macs = draw(), macs_of_run(draw)
    with grid.full().applied(small):
        assert torch.equal(draw(), plain)
    schedule = some(grid)
    with schedule.applied(small):
        pruned = draw()
        assert macs - macs_of_run(draw) == 2 * (grid.full().macs() - schedule.macs()) > 0
        assert torch.equal(draw(), pruned) and not torch.equal(pruned, plain)
    assert torch.equal(draw(), plain) and not hooks_left(small.unet)


def test_a_denoiser_that_follows_a_schedule_is_not_copied():
    """diffusers' hooks hold on to the module they were put on: a copy would silently run the original's layers."""
    pipe, draw = text()
    schedule, plain = some(laid_out(pipe, STEPS)), draw()
    path = "mid_block.attentions.0"
    with schedule.applied(pipe):
        for copying in (lambda: copy.deepcopy(pipe.unet), lambda: pl.remove_operators(pipe, [path])):
            with pytest.raises(RuntimeError, match="cannot be copied while a schedule is applied"):
                copying()
    assert torch.equal(draw(), plain)
    assert not torch.equal(drawing(pl.remove_operators(pipe, [path]), "lion", guidance_scale=3.0)[1](), plain)


def test_two_pipelines_of_one_denoiser():
    """Text to image and image to image share their UNet; one schedule serves both, one at a time."""
    pipe, draw = text()
    schedule = some(laid_out(pipe, STEPS))
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with schedule.applied(pipe), pytest.raises(RuntimeError, match="already applied"), schedule.applied(other):
        pass
    assert not hooks_left(pipe.unet)
    with schedule.applied(other):
        first = draw()  # shares scheduler and denoiser, so it follows as well
    with schedule.applied(pipe):
        assert torch.equal(draw(), first)


def test_half_precision():
    pipe, draw = text(guidance=7.5)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        torch.nn.Module.to(part, torch.bfloat16)
    plain, grid = draw(), laid_out(pipe, STEPS)
    assert plain.dtype == torch.bfloat16
    with grid.full().applied(pipe):
        assert torch.equal(draw(), plain)
    with some(grid).applied(pipe), counting(pipe) as ran:
        draw()
    assert ran == expected(some(grid))
