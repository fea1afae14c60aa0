"""The stages about Stable Diffusion 1.5: its published sizes and random weights.

No hub is needed then: time and memory do not depend on what the weights are, and no picture means anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import pruning_lib as pl
from pruning_book.activation_memory import backward_bytes
from pruning_book.stand_in import drawn
from pruning_lib.denoisers import example_inputs, meta_copy
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import find_operators
from pruning_lib.operators.remove import remove_operators
from pruning_lib.steps.schedule import grid_of
from pruning_lib.structured.structured import narrow_widths

from .. import sd15_schedules, sd15_scoring
from ..big_schedules import cache_bytes, decoding_bytes
from ..common import compared, peak_mib
from .ways import timed_ways, ways_at
from .worker import Run

PROMPTS = ("a photograph of a lion", "a bowl of soup", "a red bicycle", "a lighthouse in a storm")
GUIDANCE = 7.5


def build(run: Run, dtype: str = "float16"):
    """Return the pipeline: UNet and decoder of the published sizes."""
    return sd15_schedules.build({"side": run.at(64, 8), "dtype": dtype, "scale": run.at(1, 0.1)}, run.device)


def setting(run: Run, **more: object) -> dict:
    """Return what a part's record says of how it was measured."""
    return {"guidance": GUIDANCE, "side": run.at(64, 8), "dtype": "float16", **more}


def drawing(pipe, run: Run, batch: int) -> Callable[[int], object]:
    """Return a generation of `batch` latents from the same noise."""
    side = 8 * run.at(64, 8)
    how = {"guidance_scale": GUIDANCE, "height": side, "width": side, "output_type": "latent"}

    def draw(steps: int) -> object:
        noise = [torch.Generator().manual_seed(i) for i in range(batch)]
        return pipe(list(PROMPTS[:batch]), num_inference_steps=steps, generator=noise, **how)

    return draw


def speed(run: Run) -> None:
    """Time every way to be faster, at two numbers of steps and two batch sizes."""
    pipe = build(run)

    def work(steps: int, batch: int, repeats: int) -> dict:
        draw, keeps = drawing(pipe, run, batch), run.at((0.5, 0.3, 0.2), (0.5,))
        return timed_ways(pipe, grid_of(pipe, steps), draw, keeps, repeats=repeats, device=run.device)

    # steps, batch, rounds, seconds
    for steps, batch, repeats, seconds in run.at(
        ((50, 1, 3, 45), (20, 1, 5, 30), (50, 4, 3, 60), (20, 4, 3, 25)), ((20, 2, 2, 1),)
    ):
        count = run.at(steps, 4)
        facts = setting(run, steps=count, batch=batch)
        run.part(f"{steps} steps, batch {batch}", seconds, partial(work, count, batch, repeats), **facts)


def compiled(run: Run) -> None:
    """Time the ways under torch.compile."""
    for batch in run.at((1, 4), (1,)):
        facts = setting(run, steps=run.at(20, 4), batch=batch)
        run.part(f"20 steps, batch {batch}", 120, partial(_compiled, run, facts["steps"], batch), **facts)


def _compiled(run: Run, steps: int, batch: int) -> dict:
    """Time a compiled UNet under schedules, beside the one that is not compiled."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    pipe, eager = build(run), build(run)
    if run.dry:  # a CPU compiles a UNet of this depth for minutes
        shallow = {"_class_name": "UNet2DConditionModel", "block_out_channels": [16, 32], "attention_head_dim": 4}
        shallow |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "layers_per_block": 1}
        shallow |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
        for one in (pipe, eager):
            one.unet = drawn({**one.unet.config, **shallow}, device=run.device, dtype=one.unet.dtype)
    grid, backend = grid_of(pipe, steps), run.at("inductor", "eager")
    draw, plain = drawing(pipe, run, batch), drawing(eager, run, batch)
    keeps, wanted = run.at((0.5, 0.2), (0.5,)), ("fewer steps", "uniform", "DeepCache", "searched-like")
    # Every unit becomes a graph of its own where a schedule is applied; the default limit of eight would give them up.
    limits = {"recompile_limit": 512, "accumulated_recompile_limit": 4096}
    with torch._dynamo.config.patch(limits), torch.no_grad():
        pipe.unet = torch.compile(pipe.unet, backend=backend, dynamic=False)
        started = time.time()
        draw(steps)
        first = time.time() - started
        for keep in keeps:  # every way once, which compiles what it needs
            for _, _, applied, count in ways_at(pipe, grid, keep, wanted):
                with applied():
                    draw(count)
        draw(steps)
        compiling, graphs = time.time() - started, counters["stats"]["unique_graphs"]
        more = {"eager_unpruned": torch.no_grad()(lambda: plain(steps))}
        found = timed_ways(pipe, grid, draw, keeps, repeats=3, device=run.device, wanted=wanted, more=more)
        late = counters["stats"]["unique_graphs"] - graphs
    told = {"first_call_seconds": first, "compile_seconds": compiling, "graphs": graphs, "late_graphs": late}
    return {**found, **told, "backend": backend}


# (steps, recipe, type of the denoiser, checkpointing, seconds). What fits a T4 first; what may not fit anything last.
TRAININGS = (
    (50, "best", "float16", True, 12),
    (50, "published", "float16", True, 15),
    (20, "best", "float16", True, 6),
    (20, "published", "float16", True, 8),
    (50, "best", "bfloat16", True, 12),
    (20, "best", "float16", False, 6),
    (20, "published", "float16", False, 6),
    (50, "best", "float16", False, 12),
)


def training(run: Run) -> None:
    """Train pruners for a moment by both recipes: time and memory beside what the formula counts."""
    pipes: dict[str, object] = {}
    for steps, recipe, dtype, checkpointing, seconds in run.at(TRAININGS, (*TRAININGS[2:4], TRAININGS[5])):
        if dtype not in pipes:
            pipes.clear()  # one model at a time
            run.tidy()
            pipes[dtype] = build(run, dtype)
        loss = {"best": "latent", "published": "ssim"}[recipe]
        how = {"steps": run.at(steps, 2), "recipe": recipe, "loss": loss, "checkpointing": checkpointing}
        counted = _counted(pipes[dtype], how["steps"], loss, checkpointing) / 2**20
        name = f"{steps} steps, {recipe}, {dtype}, {'checkpoints' if checkpointing else 'all is kept'}"
        facts = setting(run, **how, counted_mib=counted) | {"dtype": dtype}
        run.part(name, seconds, partial(_training, run, pipes[dtype], how), **facts)


def _training(run: Run, pipe, how: dict) -> dict:
    """Take three iterations of `pl.train_pruner`; the first warms up."""
    ended, side = [], 8 * run.at(64, 8)
    run.tidy()
    before = torch.cuda.memory_allocated(run.device) / 2**20 if run.device.type == "cuda" else 0.0
    started = time.time()
    # With random weights it may collapse; what an iteration costs stays the same.
    few = {"iterations": 3, "batch": 1, "accumulation": 1, "on_collapse": "go on", "guidance_scale": GUIDANCE, **how}
    few |= {"keep_macs": (0.5,)} if how["recipe"] == "best" else {}
    sides = {"height": side, "width": side}
    pl.train_pruner(pipe, PROMPTS, options=sides, callback=lambda look: ended.append(time.time()), **few)
    seconds = [b - a for a, b in zip([started, *ended], ended, strict=False)]
    found = {"seconds_per_iteration": min(seconds[1:]), "seconds": seconds}
    return {**found, "before_mib": before, "peak_mib": peak_mib(run.device)}


def _counted(pipe, steps: int, loss: str, checkpointing: bool) -> float:
    """Return the bytes that chapter 15's formula counts: weights, caches, one call's or all calls' activations."""
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    weights = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    side, dtype, decode = pipe.unet.config.sample_size, pipe.unet.dtype, 0
    call = backward_bytes(pipe.unet, sample_size=side, batch=2, dtype=dtype)
    caches = cache_bytes(pipe.unet, side)
    if loss == "ssim":
        decode = decoding_bytes(nn.Module.to(meta_copy(pipe.vae), dtype).requires_grad_(False), side)
    if checkpointing:
        return weights + steps * caches + max(call + caches, decode)
    return weights + steps * (call + caches) + decode


def operators(run: Run) -> None:
    """Score operators, and time the model without some."""
    names = ("size", "latents", "steps", "batch", "scale")
    sizes = dict(zip(names, run.at((64, 8, 10, 8, 1), (8, 2, 2, 2, 0.1)), strict=True))
    how = {**sizes, "guidance": GUIDANCE, "dtype": "float16"}
    run.part("scoring", 45, partial(sd15_scoring.scoring, run.device, how, run.at(24, 3)))
    run.part("cut", 25, partial(_cut, run), dtype="float16")


def _cut(run: Run) -> dict:
    """Remove operators worth 30 % of the MACs, in an order drawn by chance, and time single calls."""
    pipe = build(run)
    operators = find_operators(pipe.unet)
    order = torch.randperm(len(operators), generator=torch.Generator().manual_seed(0)).tolist()
    plan = choose([operators.paths[i] for i in order], operators, pipe.unet, macs_ratio=0.3)
    models = {"whole": pipe.unet, "cut": remove_operators(pipe, plan).unet}
    kept, rows = 1 - reductions(pipe.unet, plan)[0], []
    for batch in (1, 8):
        times = _timed(run, models, batch)
        row = compared(times["whole"], times["cut"], kept)
        rows.append({"batch": batch, "whole": times["whole"].to_dict(), "cut": row.pop("latency"), **row})
    return {"removed": 0.3, "macs_ratio": kept, "operators": len(plan.paths), "rows": rows}


def fewer_channels(run: Run) -> dict:
    """Time UNets with fewer channels. Their shapes are what `prune_structured` leaves; time asks for no more."""
    unet = build(run).unet
    config = {**unet.config, "_class_name": "UNet2DConditionModel"}
    config["time_embedding_dim"] = 4 * config["block_out_channels"][0]
    models = {"whole": unet}
    for share in (0.25, 0.5):
        narrow = {**config, "block_out_channels": narrow_widths(unet, share)}
        models[share] = drawn(narrow, device=run.device, dtype=torch.float16)
    times, macs = _timed(run, models, 1), {name: pl.count_macs(model).macs for name, model in models.items()}
    rows = []
    for share in list(models)[1:]:
        kept = macs[share] / macs["whole"]
        rows.append({"ratio": share, "macs_ratio": kept, **compared(times["whole"], times[share], kept)})
    return {"batch": 2, "unpruned": times["whole"].to_dict(), "rows": rows}


def _timed(run: Run, models: dict[object, nn.Module], batch: int) -> dict:
    """Time single calls of denoisers in turn; guidance doubles the batch."""
    inputs = example_inputs(models["whole"], batch=2 * batch, device=run.device, dtype=torch.float16)
    calls = {name: partial(model, **inputs) for name, model in models.items()}
    with torch.no_grad():
        return pl.measure_latency(calls, repeats=run.at(30, 2), warmup=run.at(5, 1), device=run.device)
