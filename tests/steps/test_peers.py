"""Schedules beside what else reaches into a denoiser: offloading, compilation, other caches."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from DeepCache import DeepCacheSDHelper
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    LayerSkipConfig,
    PyramidAttentionBroadcastConfig,
    apply_first_block_cache,
    apply_group_offloading,
    apply_layer_skip,
    apply_pyramid_attention_broadcast,
)
from on_gpu import some
from small_denoisers import build
from tiny import laid_out
from tiny_ways import STEPS, WAYS, counting, expected, hooks_left, text

from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.schedule import grid_of


def set_up(way: str = "text"):
    """Return a pipeline, its call, a schedule, and what is drawn without it and with it."""
    pipe, draw = WAYS[way]()
    plain = draw()
    told = {"timesteps": pipe.scheduler.timesteps.tolist()}
    schedule = some(grid_of(pipe, STEPS, **told) if way == "Flux" else laid_out(pipe, STEPS))
    with schedule.applied(pipe):
        return pipe, draw, schedule, plain, draw()


def offload_all(unet) -> None:
    """As `enable_model_cpu_offload`: a whole model at a time."""
    cpu_offload_with_hook(unet, execution_device="cpu")


def offload_parts(unet) -> None:
    """As `enable_sequential_cpu_offload`: weights live elsewhere and are fetched layer by layer."""
    cpu_offload(unet, execution_device="cpu", offload_buffers=True)


def offload_groups(unet) -> None:
    """diffusers' own, through the registry that our hooks use."""
    cpu = torch.device("cpu")
    apply_group_offloading(unet, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [offload_all, offload_parts, offload_groups])
def test_offloaded(offload):
    pipe, draw, schedule, plain, pruned = set_up()
    offload(pipe.unet)
    assert grid_of(pipe, STEPS) == schedule.grid, "weights that are elsewhere do not change the structure"
    with schedule.grid.full().applied(pipe):
        assert torch.equal(draw(), plain)
    with schedule.applied(pipe), counting(pipe) as ran:
        assert torch.equal(draw(), pruned)
    assert ran == expected(schedule)
    assert torch.equal(draw(), plain) and not hooks_left(pipe.unet)
    if offload is not offload_groups:  # accelerate's can be taken off again
        remove_hook_from_module(pipe.unet, recurse=True)
        with schedule.applied(pipe):
            assert torch.equal(draw(), pruned)


@pytest.mark.parametrize(
    ("backend", "how"), [("eager", "wrapped"), pytest.param("aot_eager", "in place", marks=pytest.mark.slow)]
)
def test_compiled(backend, how):
    torch._dynamo.reset()
    pipe, draw = text()
    # as few kinds of layers as there can be: compiling takes long
    one = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    pipe.unet = build("unet", mid_block_type=None, cross_attention_dim=8, **one)
    grid = laid_out(pipe, STEPS)
    schedule = some(grid)
    with schedule.applied(pipe):
        wanted = draw()
    if how == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend=backend)
    else:
        pipe.unet.compile(backend=backend)
    plain = draw()
    assert grid_of(pipe, STEPS) == grid
    with grid.full().applied(pipe), counting(pipe) as ran:
        torch.testing.assert_close(draw(), plain, rtol=1e-3, atol=1e-3)
    assert set(ran.values()) == {STEPS}
    with schedule.applied(pipe):
        with counting(pipe) as ran:
            first = draw()
        assert torch.equal(draw(), first), "a compiled run repeats as well"
    assert ran == expected(schedule)
    torch.testing.assert_close(first, wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(draw(), plain) and not hooks_left(denoiser_of(pipe)[1])
    torch._dynamo.reset()


@pytest.mark.parametrize("when", ["before", "inside"])
def test_deepcache_is_refused(when):
    pipe, draw, schedule, plain, pruned = set_up()
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    refused = pytest.raises(RuntimeError, match=r"DeepCache is enabled.*disable\(\)")
    if when == "before":
        helper.enable()
        cached = draw()
        with refused, schedule.applied(pipe):
            pass
        assert torch.equal(draw(), cached) and not hooks_left(pipe.unet)
        helper.disable()
    with schedule.applied(pipe):
        if when == "inside":
            helper.enable()
            with refused:  # at the next run
                draw()
            helper.disable()
        assert torch.equal(draw(), pruned)
    assert torch.equal(draw(), plain)


OTHER_CACHES = {
    "first block": lambda model: apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.05)),
    "attention broadcast": lambda model: apply_pyramid_attention_broadcast(
        model,
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 2000),
            spatial_attention_block_identifiers=("transformer_blocks",),
            current_timestep_callback=lambda: 500,
        ),
    ),
    "layer skip": lambda model: apply_layer_skip(
        model, LayerSkipConfig(indices=[1], fqn="transformer_blocks", skip_attention=False)
    ),
}


@pytest.mark.parametrize("first", ["theirs", "ours"])
@pytest.mark.parametrize(
    ("other", "way"), [("first block", "Flux"), ("attention broadcast", "Flux"), ("layer skip", "SD3")]
)
def test_beside_a_cache_of_diffusers(other, way, first):
    """Both work on the same registry: each may be put on and taken off whatever the other does."""
    pipe, draw, schedule, plain, ours = set_up(way)
    model = pipe.transformer

    def names() -> set[str]:
        registries = [getattr(module, "_diffusers_hook", None) for module in model.modules()]
        return {name for registry in registries if registry for name in registry.hooks}

    def take_off() -> None:
        for name in names() - {"pruning_lib_steps"}:
            HookRegistry.check_if_exists_or_initialize(model).remove_hook(name, recurse=True)

    if first == "theirs":
        OTHER_CACHES[other](model)
        theirs = draw()
        HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks()
        with schedule.applied(pipe):
            assert draw().isfinite().all()
        assert not hooks_left(model) and names()
        HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks()
        assert torch.equal(draw(), theirs), "theirs is as it was"
        take_off()
    else:
        with schedule.applied(pipe):
            OTHER_CACHES[other](model)
            assert draw().isfinite().all()
            take_off()
            assert torch.equal(draw(), ours), "ours is as it was"
    assert torch.equal(draw(), plain)
    with schedule.applied(pipe):
        assert torch.equal(draw(), ours)
