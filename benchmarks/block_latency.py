"""Record of chapter 2: the time of every top-level block of a denoiser, in one call, batch 1, float32.

python -m benchmarks block_latency --models emoji-sd sd-1.5 --repeats 5
"""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from torch import nn
from tqdm.auto import tqdm

import pruning_lib as pl
from pruning_lib.checks import synchronise
from pruning_lib.denoisers import example_inputs
from pruning_lib.latency import Latency

from .common import Record, quantiles

WARMUP = 3


def denoiser(model: str, device: torch.device) -> nn.Module:
    """Return the denoiser of emoji-sd with its weights, or another with random ones, in evaluation mode."""
    if model == "emoji-sd":
        return pl.load(model, device=device).unet.eval()
    found = pl.denoiser_on_meta(model).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for tensor in (*found.parameters(), *found.buffers()):
        if tensor.is_floating_point():  # whatever memory held may be NaN or denormal, which is slow
            tensor.data.normal_(0, 0.02, generator=generator)
    return found.eval()


@torch.no_grad()
def time_blocks(model: nn.Module, repeats: int, device: torch.device) -> dict[str, Latency]:
    """Time every top-level block inside whole calls of the denoiser; return block -> its times."""
    blocks = [name for name in pl.count_macs(model).by_block() if name != "(model)"]
    times: dict[str, list[float]] = defaultdict(list)
    started: dict[str, float] = {}

    def watch(name: str) -> list:
        def begin(*_):
            synchronise(device)
            started[name] = time.perf_counter()

        def end(*_):
            synchronise(device)
            times[name].append(1000 * (time.perf_counter() - started[name]))

        module = model.get_submodule(name)
        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

    hooks = [hook for name in blocks for hook in watch(name)]
    inputs = example_inputs(model, device=device)
    for _ in tqdm(range(WARMUP + repeats), desc=type(model).__name__, unit="call"):
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return {name: Latency(tuple(found[WARMUP:]), WARMUP, None, str(device)) for name, found in times.items()}


def measure(models: tuple[str, ...] = ("emoji-sd",), repeats: int = 50, device: str = "cpu") -> Record:
    """Time the blocks of each model."""
    found = {}
    for name in models:
        latencies = time_blocks(denoiser(name, torch.device(device)), repeats, torch.device(device))
        blocks = {block: quantiles(latency, 4) for block, latency in latencies.items()}
        found[name] = {"n": repeats, "warmup": WARMUP, "batch": 1, "dtype": "float32", "blocks": blocks}
    return Record({"models": found}, seeds=[0], n=repeats, device=device)
