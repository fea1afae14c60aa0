"""A schedule beside what else may be switched on: ways to call, other caches, the state that is left behind."""

from __future__ import annotations

import functools
import hashlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import diffusers.hooks as theirs
import numpy as np
import pytest
import torch
from diffusers.hooks.layer_skip import LayerSkipConfig, apply_layer_skip
from options import BUNDLES, OFF_BESIDE, check_ways
from sweep import asked, grid_of, off, table
from test_compat import KNOWN, REFUSED, sampled
from tiny_pipelines import RECIPES, Case
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import pruning_lib as pl
from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.budget import deepcache
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.schedule import Schedule
from pruning_lib.steps.supernet import SuperNet

# --- the state of a pipeline ----------------------------------------------------------------------------------------


_OF_ANY = ("_parameters", "_buffers", "training")


def state_of(pipe: object) -> dict[str, object]:
    """Return all that a pipeline, its modules and its scheduler hold, and the random states: plain values by path."""
    found: dict[str, object] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
    }
    seen: set[int] = set()
    _note("pipe", {k: v for k, v in vars(pipe).items() if not isinstance(v, nn.Module)}, found, seen)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            for path, module in part.named_modules(prefix=name):
                ours = not type(module).__module__.startswith("transformers")  # which hooks its own when first run
                noted = [k for k in vars(module) if k != "_modules" and (ours or k in _OF_ANY)]
                _note(path, {k: vars(module)[k] for k in noted}, found, seen)
                found[f"{path} is"] = id(module)
    return found


def _note(path: str, value: object, found: dict, seen: set[int]) -> None:
    if isinstance(value, Tensor):
        data = None if value.device.type == "meta" else value.detach().float().cpu().contiguous().numpy().tobytes()
        kept = id(value) if isinstance(value, nn.Parameter) else type(value)  # a parameter is the same object
        digest = data and hashlib.sha256(data).hexdigest()
        about = value.dtype, value.shape, value.device.type, value.requires_grad, value.grad_fn is None
        found[path] = kept, digest, *about, value.grad is None
    elif isinstance(value, (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device)):
        found[path] = value
    elif isinstance(value, np.ndarray):
        found[path] = value.tobytes()
    elif isinstance(value, nn.Module):
        found[path] = id(value)
    elif callable(value) and hasattr(value, "__func__"):
        found[path] = "method", value.__func__, id(value.__self__)
    elif id(value) not in seen:  # of those around it
        seen = seen | {id(value)}
        found[path] = type(value)
        if isinstance(value, (set, frozenset)):
            found[path] = frozenset(map(str, value))
            return
        if callable(value):
            found[path] = type(value), id(value)
        members = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
        for key, member in (members if isinstance(members, Mapping) else getattr(value, "__dict__", {})).items():
            if key != "_child_registries_cache":  # diffusers drops it whenever hooks change
                _note(f"{path}.{key}", member, found, seen)


def changes(before: dict, after: dict) -> dict[str, object]:
    return {
        key: (before.get(key, "absent"), after.get(key, "absent"))
        for key in {**before, **after}
        if key not in before or key not in after or before[key] != after[key]
    }


# --- caches of diffusers --------------------------------------------------------------------------------------------

ALWAYS = (-1, 2000)  # of timesteps


def _attention_cache(model: nn.Module, **changed: object) -> None:
    told = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": ALWAYS, **changed}
    config = theirs.PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: 500, **told)
    theirs.apply_pyramid_attention_broadcast(model, config)


def _faster_cache(model: nn.Module, **more: object) -> None:
    config = theirs.FasterCacheConfig(
        spatial_attention_timestep_skip_range=ALWAYS,
        spatial_attention_block_identifiers=("transformer_blocks",),
        attention_weight_callback=lambda _: 0.5,
        tensor_format="BCHW",
        current_timestep_callback=lambda: 500,
        **more,
    )
    theirs.apply_faster_cache(model, config)


def _taylor(model: nn.Module) -> None:
    config = theirs.TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32
    )
    theirs.apply_taylorseer_cache(model, config)


def _magnitudes(model: nn.Module) -> None:
    ratios = [1.0, 0.99, 0.98, 0.97]
    told = {"threshold": 0.5, "max_skip_steps": 1, "retention_ratio": 0.2, "num_inference_steps": 4}
    theirs.apply_mag_cache(model, theirs.MagCacheConfig(mag_ratios=ratios, **told))


CACHES: dict[str, Callable[[nn.Module], object]] = {
    "first block": lambda model: theirs.apply_first_block_cache(model, theirs.FirstBlockCacheConfig(threshold=0.9)),
    "attention": _attention_cache,
    "faster": lambda model: _faster_cache(
        model, unconditional_batch_skip_range=2, unconditional_batch_timestep_skip_range=ALWAYS
    ),
    "faster, distilled": lambda model: _faster_cache(model, is_guidance_distilled=True),
    "taylor": _taylor,
    "magnitudes": _magnitudes,
    "sea": lambda model: theirs.apply_sea_cache(model, theirs.SeaCacheConfig(threshold=0.9)),
    "layer skip": lambda model: apply_layer_skip(model, LayerSkipConfig(indices=[1], fqn="auto")),
}


def hook_names(model: nn.Module) -> set[str]:
    registries = [getattr(module, "_diffusers_hook", None) for module in model.modules()]
    return {name for registry in registries if registry for name in registry.hooks}


def put_on(model: nn.Module, cache: str) -> None:
    """As `enable_cache` does, which not every model has."""
    CACHES[cache](model)
    theirs.HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()


def draw(case: Case) -> Tensor:
    """Draw with caches that begin anew, which of some models the user has to see to."""
    theirs.HookRegistry.check_if_exists_or_initialize(denoiser_of(case.pipe)[1]).reset_stateful_hooks()
    return case()


def take_off(model: nn.Module) -> None:
    """Remove every cache, as `disable_cache` does."""
    registry = theirs.HookRegistry.check_if_exists_or_initialize(model)
    for name in hook_names(model) - {"pruning_lib_steps"}:
        registry.remove_hook(name, recurse=True)
    registry.invalidate_child_registries_cache()


def drawn_by(case: Case, schedule: Schedule, then: Callable[[], object] = lambda: None) -> Tensor:
    """Draw by a schedule, after something that is done while it is applied."""
    with schedule.applied(case.pipe):
        then()
        return draw(case)


WORKING = {  # what works there alone, and changes the picture
    "flux_true_guidance": ("first block", "attention", "taylor", "magnitudes"),
    "sd3": ("attention", "magnitudes"),
    "pixart_alpha": ("attention", "magnitudes", "layer skip"),
    "dit": ("attention", "magnitudes", "layer skip"),
    "wan": ("first block", "attention", "magnitudes", "sea", "layer skip"),
}
BESIDE = [(name, cache, grain) for name in WORKING for cache in WORKING[name] for grain in ("blocks", "layers")]


@pytest.mark.parametrize(("name", "cache", "grain"), sampled(BESIDE, 9))
def test_beside_a_cache_in_both_orders(name, cache, grain):
    case = RECIPES[name]()
    model, plain, grid = denoiser_of(case.pipe)[1], case(), grid_of(case, grain)
    schedule, full = table(grid), grid.full()
    ours = drawn_by(case, schedule)

    def on() -> None:
        put_on(model, cache)

    def off() -> None:
        take_off(model)

    on()
    alone = draw(case)
    assert not torch.equal(alone, plain)
    assert grid_of(case, grain) == grid
    assert torch.equal(drawn_by(case, full), alone), "put on before"
    both = drawn_by(case, schedule)
    assert both.isfinite().all() and torch.equal(drawn_by(case, schedule), both)
    assert torch.equal(draw(case), alone), "left as it was"
    assert torch.equal(drawn_by(case, schedule, off), ours), "put on before, taken off inside"
    assert torch.equal(case(), plain)
    assert torch.equal(drawn_by(case, full, on), alone), "put on inside"
    assert torch.equal(draw(case), alone), "left on inside"
    off()
    inside = drawn_by(case, schedule, on)
    off()
    assert torch.equal(drawn_by(case, schedule, on), inside)
    off()
    assert torch.equal(drawn_by(case, schedule, lambda: (on(), draw(case), off())), ours), "both inside"
    assert torch.equal(case(), plain) and not hook_names(model)


@pytest.mark.parametrize(("name", "cache"), [("pixart_alpha", "faster"), ("wan", "faster, distilled")])
def test_a_cache_that_changes_the_batch_is_refused(name, cache):
    case = RECIPES[name]()
    model, grid = denoiser_of(case.pipe)[1], grid_of(case)
    schedule = table(grid)
    ours = drawn_by(case, schedule)
    with schedule.applied(case.pipe):
        put_on(model, cache)
        with pytest.raises(RuntimeError, match="FasterCache is enabled"):
            case()
        take_off(model)
        assert torch.equal(case(), ours)
    put_on(model, cache)
    with pytest.raises(RuntimeError, match="FasterCache is enabled"), schedule.applied(case.pipe):
        pass


def test_gates_beside_a_cache():
    """Checkpointing calls twice, and would be answered otherwise; without it gradients are those of the cache, too."""
    case = RECIPES["wan"]()
    grid = grid_of(case, "blocks")
    put_on(denoiser_of(case.pipe)[1], "first block")
    with pytest.raises(ValueError, match=r"cache is enabled.*fbc_leader_block_hook.*disable_cache\(\)"):
        SuperNet(case.pipe, grid, options=case.options)
    told = []
    how = {"grain": grid, "images": 1, "evaluations": 3, "options": case.options, "hold": "value", "progress": False}
    pl.search_schedule(case.pipe, [{}], steps=4, keep=0.7, tell=told.append, **how)
    assert any("no gradients" in words for words in told)


# --- others as oracles ----------------------------------------------------------------------------------------------


UNETS = ("sd", "sd_v_prediction", "sd_inpaint", "sd_inpaint_four_channels", "sd_controlnet", "sdxl", "sdxl_inpaint")


@pytest.mark.parametrize(("name", "branch"), sampled([(n, b) for n in UNETS for b in (0, 1, 2)], 7))
def test_deepcache_draws_the_same(name, branch):
    helper = pytest.importorskip("DeepCache").DeepCacheSDHelper
    case = RECIPES[name]()
    plain, ours = case(), deepcache(grid_of(case), 2, branch)
    helper = helper(pipe=case.pipe)
    helper.set_params(cache_interval=2, cache_branch_id=branch)
    helper.enable()
    try:
        wanted = case()
    finally:
        helper.disable()
    assert off(wanted, plain) > 1e-4 and off(drawn_by(case, ours), wanted) < 1e-5


FIRST = """flux_schnell flux_dev flux_true_guidance flux_fill flux_control wan cogview4 ltx qwen_image hunyuan_video
    mochi cogvideo""".split()


@pytest.mark.parametrize("name", sampled(FIRST, 8))
def test_first_block_cache_draws_the_same(name):
    case = RECIPES[name]()
    plain, grid = case(), grid_of(case, "blocks")
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[1:, 1:] = False
    model = denoiser_of(case.pipe)[1]
    theirs.apply_first_block_cache(model, theirs.FirstBlockCacheConfig(threshold=1e9))
    theirs.HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()
    with model.cache_context("the only call"):  # of pipelines that name none
        wanted = case()
    take_off(model)
    assert off(wanted, plain) > 1e-4 and off(drawn_by(case, grid.schedule(on)), wanted) < 1e-5


ATTENTIONS = """dit pixart_alpha pixart_sigma sd3 sd3_img2img sd3_controlnet flux_schnell flux_dev flux_fill
    flux_control latte sana cogvideo""".split()


@pytest.mark.parametrize("name", sampled(ATTENTIONS, 6))
def test_attention_broadcast_draws_the_same(name):
    """Of pipelines that call their denoiser once a step, for it counts calls."""
    case = RECIPES[name]()
    plain, grid, model = case(), grid_of(case, "layers"), denoiser_of(case.pipe)[1]
    _attention_cache(model, spatial_attention_block_identifiers=("^transformer_blocks",))
    chosen = {path for path, module in model.named_modules() if getattr(module, "_diffusers_hook", None)}
    wanted = draw(case)
    take_off(model)
    reused = torch.tensor([bool({*unit.modules} & chosen) for unit in grid.units])
    assert reused.sum() >= len(chosen - {""})
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[1::2, reused] = False
    assert off(wanted, plain) > 1e-4 and off(drawn_by(case, grid.schedule(on)), wanted) < 1e-5


# --- ways to call ---------------------------------------------------------------------------------------------------


CELLS = [
    (name, ways, ("blocks", "layers")[(i + j) % 2])
    for i, name in enumerate(sorted({*RECIPES} - {*REFUSED}))
    for j, ways in enumerate(BUNDLES)
]


@pytest.mark.parametrize(("name", "ways", "grain"), sampled(CELLS, 61))
def test_beside_what_is_switched_on(name, ways, grain):
    known = KNOWN.get(name, set()) | OFF_BESIDE.get(name, set())
    assert check_ways(RECIPES[name], BUNDLES[ways], grain, known) in ("yes", "absent")


# --- what is left behind --------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


@contextmanager
def breaking(case: Case, place: str, error: type[BaseException]) -> Iterator[None]:
    """Have a layer of the denoiser, or the scheduler, raise at its second step."""
    calls = [0]

    def begins(*_) -> None:
        calls[0] += 1

    def strike(*_) -> None:
        if calls[0] >= 2:
            raise error("struck")

    if place == "denoiser":
        denoiser = denoiser_of(case.pipe)[1]
        layers = [part for part in denoiser.modules() if isinstance(part, nn.Linear | _ConvNd)]
        handles = [denoiser.register_forward_pre_hook(begins), *(x.register_forward_pre_hook(strike) for x in layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        return
    scheduler = case.pipe.scheduler
    step = scheduler.step

    @functools.wraps(step)  # pipelines read its signature
    def breaks(*args, **kwargs):
        begins()
        strike()
        return step(*args, **kwargs)

    scheduler.step = breaks
    try:
        yield
    finally:
        del scheduler.step


def _told(case: Case) -> list:
    return case.prompt[1] if case.prompt and case.prompt[0] in ("prompt", "class_labels") else [{}]


def _lays_out(case: Case) -> None:
    grid_of(case, "blocks")


def _trains(case: Case) -> None:
    told = {"steps": case.steps, "grain": "blocks", "options": case.options}
    pl.train_pruner(case.pipe, _told(case), iterations=1, batch=1, keep_macs=0.7, **told)


def _trains_and_is_stopped(case: Case) -> None:
    def stop(step: object) -> None:
        raise Broken("struck")

    told = {"steps": case.steps, "grain": "blocks", "options": case.options}
    pl.train_pruner(case.pipe, _told(case), iterations=1, batch=1, keep_macs=0.7, callback=stop, **told)


def _searches(case: Case) -> None:
    told = {"steps": case.steps, "grain": "blocks", "options": case.options, "hold": "value"}
    quiet = {"tell": lambda words: None, "progress": False}
    pl.search_schedule(case.pipe, _told(case), keep=0.7, images=1, evaluations=5, **told, **quiet)


def _judges(case: Case) -> None:
    grid = grid_of(case, "layers")
    assert Evaluator(case.pipe, _told(case), grid, options=case.options)(grid.full()) == 0


def _scores(case: Case) -> None:
    found = pl.find_operators(case.pipe, steps=case.steps, options=asked(case))
    told = {"steps": case.steps, "options": case.options, "progress": False}
    takes = inspect.signature(case.pipe.__call__).parameters
    none = "batch_size" in takes and "class_labels" not in takes
    prompts = None if none else _told(case)
    pl.score_operators(case.pipe, prompts, operators=found[:1], num_latents=2, batch=1, **told)


WORKS = (_lays_out, _trains, _trains_and_is_stopped, _searches, _judges, _scores)
ENDINGS = (None, *((place, error) for place in ("denoiser", "step") for error in (Broken, KeyboardInterrupt)))
NO_GRADIENTS = {name for name, keys in KNOWN.items() if "gradient" in keys}
VARIED = ("sd", "sdxl", "sd_pag", "flux_true_guidance", "sd3", "text_to_video", "stable_audio", "sd_freeu")
REST = sorted({*RECIPES} - {*REFUSED} - {*VARIED})
ENDED = [(name, work, ending) for name in VARIED for work in WORKS for ending in ENDINGS]
ENDED_ELSEWHERE = [
    (name, work, ENDINGS[(i + j) % len(ENDINGS)]) for i, name in enumerate(REST) for j, work in enumerate(WORKS)
]


@pytest.mark.parametrize(("name", "work", "ending"), [*sampled(ENDED, 19), *sampled(ENDED_ELSEWHERE, 201)])
def test_nothing_is_left_behind(name, work, ending):
    """Whatever is done, and however it ends: modules, pipeline, scheduler and random numbers are as they were."""
    case = RECIPES[name]()
    if name == "z_image":
        case()  # computes its table of positions when it first runs
    with breaking(case, *ending) if ending else nullcontext():
        before = state_of(case.pipe)
        try:
            work(case)
        except (Broken, KeyboardInterrupt, ValueError):
            assert ending or work is _trains_and_is_stopped or name in NO_GRADIENTS
        assert not changes(before, state_of(case.pipe))


@pytest.mark.parametrize("name", [*sampled(VARIED, 3), *sampled(REST, 91)])
def test_a_run_by_a_schedule_leaves_what_a_plain_run_leaves(name):
    case = RECIPES[name]()
    on = table(grid := grid_of(case, "layers")).on.clone()
    on[1] = True  # so that there is a second call to break
    full, schedule = grid.full(), grid.schedule(on)
    for ending in ENDINGS:
        left = []
        for applied in (lambda: nullcontext(), lambda: full.applied(case.pipe), lambda: schedule.applied(case.pipe)):
            case()  # some schedulers keep what an earlier run left
            with breaking(case, *ending) if ending else nullcontext():
                with pytest.raises((Broken, KeyboardInterrupt)) if ending else nullcontext(), applied():
                    case()
            left.append(state_of(case.pipe))
        assert not changes(left[0], left[1])
        same = changes(left[0], left[2])  # a scheduler with a memory holds other outputs
        assert not {key for key in same if not key.startswith("pipe.scheduler.")}
        assert {key for key in left[0]} == {key for key in left[2]}
