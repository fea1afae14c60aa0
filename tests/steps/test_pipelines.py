"""Schedules beside everything a diffusers pipeline may do, and what else reaches into a denoiser: the same promises.

All on is bit-identical; what a schedule leaves out does not run; two runs in a row are equal; outside, nothing is left.
"""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload
from DeepCache import DeepCacheSDHelper
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, apply_first_block_cache, apply_group_offloading
from on_gpu import macs_of_run, some
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import laid_out, tiny
from tiny_ways import STEPS, WAYS, counting, drawing, expected, hooks_left

import pruning_lib as pl
from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.schedule import grid_of


def set_up(way: str = "text"):
    """Return a pipeline, its call, a schedule, and what is drawn without it and with it."""
    pipe, draw = WAYS[way]()
    plain = draw()
    if way == "Flux":  # has no text encoder, and computes its timesteps from the picture's size: as in a run
        grid = grid_of(pipe, STEPS, options={"height": 8, "width": 8})
        assert grid.timesteps == pytest.approx(pipe.scheduler.timesteps.tolist())
    schedule = some(grid if way == "Flux" else laid_out(pipe, STEPS))
    with schedule.applied(pipe):
        return pipe, draw, schedule, plain, draw()


@pytest.mark.parametrize("way", WAYS)
def test_every_way(way):
    pipe, draw, schedule, plain, pruned = set_up(way)
    begins = 2 if way == "image to image" else 0  # the row at which strength 0.61 begins
    calls = 2 if way == "Flux" else 1  # guidance in two calls, each with values of its own
    with schedule.grid.full().applied(pipe), counting(pipe) as ran:
        assert torch.equal(draw(), plain), "all on: bit for bit"
    assert set(ran.values()) == {calls * (STEPS - begins)}
    with schedule.applied(pipe), counting(pipe) as ran:
        assert torch.equal(draw(), pruned), "a second run is the same"
        assert ran == expected(schedule, begins, calls)
        assert torch.equal(draw(), pruned), "nothing is left over from the run before"
        left = macs_of_run(draw) if way in ("DiT", "SDXL") else 0
    assert pruned.isfinite().all() and not torch.equal(pruned, plain)
    assert torch.equal(draw(), plain) and not hooks_left(denoiser_of(pipe)[1]), "outside, it is as it was"
    if left:
        samples = 4 if way == "DiT" else 2  # guidance doubles them
        assert macs_of_run(draw) - left == samples * (schedule.grid.full().macs() - schedule.macs()) > 0


def test_one_context_many_kinds_of_runs():
    """Batch size and guidance change from run to run; nothing of one run reaches the next, not even a stopped one."""
    pipe = tiny()

    def draw(prompts, guidance, **more):
        return drawing(pipe, prompts, batch=len(prompts), guidance_scale=guidance)[1](**more)

    def enough(pipe, step, timestep, values):
        pipe._interrupt = step == 1  # diffusers' own way: the remaining calls are passed over
        return values

    asked = [(["lion"], 3.0), (["lion", "pizza"], 1.0), (["lion"], 1.0), (["a", "b", "c"], 3.0)]
    schedule, alone = some(laid_out(pipe, STEPS)), []
    for case in asked:
        with schedule.applied(pipe):
            alone.append(draw(*case))
    with schedule.applied(pipe) as run:
        assert all(torch.equal(draw(*case), one) for case, one in zip(asked, alone, strict=True))
        draw(*asked[0], callback_on_step_end=enough)
        assert run.called <= 2
        assert torch.equal(draw(*asked[0]), alone[0])


@pytest.mark.parametrize("where", ["unit", "scheduler"])
def test_an_interrupted_run_leaves_nothing_behind(monkeypatch, where):
    pipe, draw, schedule, plain, _ = set_up()
    on = schedule.on.clone()
    on[:, -1] = True  # so that the unit of the test runs at every call
    schedule = schedule.grid.schedule(on)
    with schedule.applied(pipe):
        pruned = draw()
    last = pipe.unet.up_blocks[-1].resnets[-1].conv1
    part, name = (last, "forward") if where == "unit" else (pipe.scheduler, "step")
    work, other, calls = getattr(part, name), drawing(pipe, ["house", "lion"], batch=2)[1], []

    def stop(*given, **more):
        calls.append(1)
        if len(calls) % 2 == 0:  # the second step
            raise KeyboardInterrupt
        return work(*given, **more)

    def broken() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(part, name, stop)
            other()

    with schedule.applied(pipe):
        with pytest.raises(KeyboardInterrupt):
            broken()
        assert torch.equal(draw(), pruned), "the run after a broken one, of another batch size, is right"
    with pytest.raises(KeyboardInterrupt), schedule.applied(pipe):  # and it may leave the block
        broken()
    assert "set_timesteps" not in vars(pipe.scheduler) and not hooks_left(pipe.unet)
    assert torch.equal(draw(), plain)


def test_lora_that_is_added_loaded_and_taken_off(tmp_path):
    """A schedule goes with other weights of the same model: made without LoRA, applied with it, and without again."""
    pipe, draw, schedule, plain, without = set_up()
    torch.manual_seed(5)
    layers = {"target_modules": ["to_q", "to_v", "conv1"], "init_lora_weights": False}
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, **layers))
    tuned = draw()
    with schedule.applied(pipe):
        with counting(pipe) as ran:
            pruned = draw()
        assert ran == expected(schedule) and not torch.equal(pruned, without)
        pipe.unet.disable_adapters()  # inside the block as well
        assert torch.equal(draw(), without)
    assert torch.equal(draw(), plain) and not torch.equal(tuned, plain)
    pipe.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    pipe, draw = WAYS["text"]()
    pipe.load_lora_weights(tmp_path, adapter_name="tuned")
    with schedule.grid.full().applied(pipe):
        assert torch.equal(draw(), tuned)
        pipe.unload_lora_weights()  # inside: adapters live in the modules that are hooked
        assert torch.equal(draw(), plain)
    assert torch.equal(draw(), plain)


@pytest.mark.parametrize(
    "prune",
    [
        lambda pipe: pl.remove_operators(pipe, ["down_blocks.0.resnets.1", "mid_block.attentions.0"]).unet,
        lambda pipe: pl.prune_structured(pipe.unet, 0.4, importance="random").unet,
    ],
)
def test_a_pruned_denoiser_has_a_grid_of_its_own(prune):
    """It refuses the schedule of the whole one, and follows its own."""
    pipe, draw = drawing(tiny(), "lion")
    whole = some(laid_out(pipe, STEPS))
    pipe.unet = prune(pipe)
    with pytest.raises(ValueError, match="made for another denoiser"), whole.applied(pipe):
        pass
    grid = grid_of(pipe, STEPS)
    assert grid.shape == whole.grid.shape and sum(grid.macs) < sum(whole.grid.macs)
    plain, schedule = draw(), some(grid)
    with schedule.applied(pipe), counting(pipe) as ran:
        assert not torch.equal(draw(), plain)
    assert ran == expected(schedule)
    assert torch.equal(draw(), plain) and not hooks_left(pipe.unet)


def test_a_denoiser_that_follows_a_schedule_is_neither_copied_nor_shared():
    """diffusers' hooks hold on to the module they were put on: a copy would silently run the original's layers."""
    pipe, draw, schedule, plain, pruned = set_up()
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with schedule.applied(pipe):
        for copying in (copy.deepcopy, lambda unet: pl.remove_operators(pipe, ["mid_block.attentions.0"])):
            with pytest.raises(RuntimeError, match="cannot be copied while a schedule is applied"):
                copying(pipe.unet)
        with pytest.raises(RuntimeError, match="already applied"), schedule.applied(other):
            pass
    assert torch.equal(draw(), plain) and not hooks_left(pipe.unet)
    with schedule.applied(other):  # shares scheduler and denoiser, so the first pipeline follows as well
        assert torch.equal(draw(), pruned)


def offload_layers(unet) -> None:
    """As `enable_sequential_cpu_offload`: weights live elsewhere and are fetched layer by layer."""
    cpu_offload(unet, execution_device="cpu", offload_buffers=True)


def offload_groups(unet) -> None:
    """diffusers' own, through the registry that our hooks use."""
    cpu = torch.device("cpu")
    apply_group_offloading(unet, cpu, cpu, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [offload_layers, offload_groups])
def test_offloaded(offload):
    pipe, draw, schedule, plain, pruned = set_up()
    offload(pipe.unet)
    assert grid_of(pipe, STEPS) == schedule.grid, "weights that are elsewhere do not change the structure"
    with schedule.applied(pipe), counting(pipe) as ran:
        assert torch.equal(draw(), pruned)
    assert ran == expected(schedule)
    assert torch.equal(draw(), plain) and not hooks_left(pipe.unet)


def test_deepcache_is_refused():
    pipe, draw, schedule, plain, pruned = set_up()
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    with schedule.applied(pipe):
        helper.enable()
        with pytest.raises(RuntimeError, match=r"DeepCache is enabled.*disable\(\)"):  # at the next run
            draw()
        with pytest.raises(RuntimeError, match="DeepCache is enabled"), schedule.applied(pipe):
            pass
        helper.disable()
        assert torch.equal(draw(), pruned)
    assert torch.equal(draw(), plain)


def test_beside_a_cache_of_diffusers():
    """Both work on the same registry."""
    pipe, draw, schedule, plain, ours = set_up("Flux")
    model = pipe.transformer
    registry = HookRegistry.check_if_exists_or_initialize(model)
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.05))
    cached = draw()
    registry.reset_stateful_hooks()
    with schedule.applied(pipe):
        assert draw().isfinite().all()
    registry.reset_stateful_hooks()
    assert torch.equal(draw(), cached) and not hooks_left(model), "theirs is as it was"
    registries = [getattr(module, "_diffusers_hook", None) for module in model.modules()]
    for name in {name for found in registries if found for name in found.hooks}:
        registry.remove_hook(name, recurse=True)
    with schedule.applied(pipe):
        assert torch.equal(draw(), ours), "ours is as it was"
    assert torch.equal(draw(), plain)
