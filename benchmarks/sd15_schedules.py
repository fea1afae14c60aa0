"""Record of chapter 15: schedules on Stable Diffusion 1.5 at full size: --what speed, or --what training.

Random weights: time and memory do not depend on them. So the schedules are kinds that bound what a search may find.
256 x 256 pixels, ten steps, float32, a CPU: speed six minutes on a quiet core, training eight, and 12 GB.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch

import pruning_lib as pl
from pruning_book.stand_in import drawn, stand_in
from pruning_lib.checks import synchronise
from pruning_lib.steps.budget import deepcache, threshold_scores, uniform
from pruning_lib.steps.schedule import Grid, Schedule, grid_of
from pruning_lib.steps.supernet import SuperNet, consistency

from .big_schedules import AUTOENCODER
from .common import Record, compared, in_own_process, once, peak_mib

PROMPT = "a photograph of a lion"  # to random weights it means nothing
REMOVED = (0.7, 0.8)
# How it is run, unless the command line says otherwise.
SETTINGS = {"side": 32, "steps": 10, "guidance": 1.0, "dtype": "float32", "repeats": 3, "warmup": 1}
# What is trained: (loss, checkpointing). Without checkpointing all calls' activations are kept.
TRAINING = (("latent", True), ("latent", False), ("ssim", True))


def build(how: dict, device: torch.device):
    """Return the pipeline: UNet and decoder of the published sizes, random weights, a small text encoder.

    `how`: "side" of the latents and "dtype"; "scale" below 1 makes the UNet narrower and the decoder small.
    """
    dtype, scale = getattr(torch, how["dtype"]), how.get("scale", 1)
    pipe = stand_in("sd-1.5", scale=scale, sample_size=how["side"], dtype=dtype, device=device)
    narrow = {} if scale == 1 else {"block_out_channels": [16, 24, 48, 48], "norm_num_groups": 8}
    pipe.vae = drawn({**AUTOENCODER, **narrow}, device=device, dtype=dtype)
    pipe.vae.encoder = None  # a generation decodes only
    pipe.vae_scale_factor = 8
    return pipe


def call_of(pipe, how: dict, schedule: Schedule | None = None):
    """Return a function that draws latents, by a schedule or without."""
    options = {"num_inference_steps": how["steps"], "guidance_scale": how["guidance"], "output_type": "latent"}

    def call() -> None:
        noise = torch.Generator().manual_seed(0)
        with schedule.applied(pipe) if schedule else nullcontext():
            pipe(PROMPT, generator=noise, height=8 * how["side"], width=8 * how["side"], **options)

    return call


def schedules_of(grid: Grid) -> dict[str, Schedule]:
    """Return the schedules to time; a pattern that does not fit a budget is left out."""
    chance = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for removed in REMOVED:
        keep = round(1 - removed, 6)
        found[f"uniform {removed}"] = uniform(grid, keep)
        found[f"scattered {removed}"] = threshold_scores(chance, grid, keep)
        try:
            found[f"DeepCache {removed}"] = deepcache(grid, keep_macs=keep)
        except ValueError:
            continue
    return found


def speed(how: dict, device: torch.device) -> dict:
    """Time generations in turn; decoding, which no schedule touches, is timed beside them."""
    pipe = build(how, device)
    grid = grid_of(pipe, how["steps"])
    schedules = schedules_of(grid)
    calls = {"unpruned": call_of(pipe, how)}
    calls |= {name: call_of(pipe, how, schedule) for name, schedule in schedules.items()}
    latent = torch.randn(1, 4, how["side"], how["side"], device=device, dtype=pipe.vae.dtype)
    calls["decoding"] = torch.no_grad()(lambda: pipe.vae.decode(latent))
    timed = pl.measure_latency(calls, repeats=how["repeats"], warmup=how["warmup"], device=device)
    rows = []
    for name, schedule in schedules.items():
        kind, _, removed = name.rpartition(" ")
        row = {"kind": kind, "removed": float(removed), "keep_macs": schedule.macs_ratio()}
        row["keep_macs_without_attention"] = schedule.macs_ratio(attention=False)
        row |= {"calls": int(grid.calls(schedule.on).sum()), "cells": int(schedule.live().sum())}
        rows.append({**row, **compared(timed["unpruned"], timed[name], schedule.macs_ratio())})
    about = {**how, "shape": list(grid.shape), "macs": grid.total_macs // grid.shape[0], "weights": "random"}
    return {**about, **{name: timed[name].to_dict() for name in ("unpruned", "decoding")}, "schedules": rows}


def training_step(how: dict, device: torch.device, loss: str, checkpointing: bool) -> dict:
    """Take one step: unpruned latents, gated generation, loss, gradient of all gates."""
    pipe = build(how, device)
    if loss != "latent":
        pipe.vae.train()  # diffusers checkpoints in training only
        pipe.vae.enable_gradient_checkpointing()
    grid = grid_of(pipe, how["steps"])
    gates = torch.full(grid.shape, 0.5, device=device, requires_grad=True)
    before = peak_mib(device)
    options = {"height": 8 * how["side"], "width": 8 * how["side"]}
    net = SuperNet(pipe, grid, guidance_scale=how["guidance"], options=options, checkpointing=checkpointing)
    seconds = {}

    def timed(name: str, work: Callable[[], object]):
        started = time.perf_counter()
        result = work()
        synchronise(device)
        seconds[name] = time.perf_counter() - started
        return result

    with net:
        wanted = timed("reference", lambda: net.reference([PROMPT], [0]))
        latents = timed("forward", lambda: net.latents(gates, [PROMPT], [0]))
        value = timed("loss", lambda: consistency(loss, net, latents, wanted).mean())
        timed("backward", value.backward)
    return {
        **{"loss": loss, "checkpointing": checkpointing},
        **{"shape": list(grid.shape), "macs": grid.total_macs // grid.shape[0]},
        **{"seconds": seconds, "total_seconds": sum(seconds.values())},
        **{"peak_mib": peak_mib(device), "before_mib": before},
        "gates_with_gradient": int((gates.grad != 0).sum()),
        "finite": bool(gates.grad.isfinite().all()),
    }


def training(how: dict, work: Path) -> dict:
    """Run every training step in a process of its own; what is done already is read."""
    rows = []
    for loss, checkpointing in TRAINING:
        call = f"training_step({how!r}, torch.device('cpu'), {loss!r}, {checkpointing})"
        name = f"cpu-{loss}-{'checkpointed' if checkpointing else 'kept'}-{how['steps']}.json"
        rows.append(once(work / name, in_own_process, "sd15_schedules", call))
    return {**how, "weights": "random", "rows": rows}


def measure(
    out: Path,
    work: Path,
    what: Literal["speed", "training"],
    side: int = SETTINGS["side"],
    steps: int = SETTINGS["steps"],
    repeats: int = SETTINGS["repeats"],
) -> Record:
    """Time generations, or training steps; `side` is that of the latents."""
    how, n = {**SETTINGS, "side": side, "steps": steps, "repeats": repeats}, repeats if what == "speed" else 1
    found = speed(how, torch.device("cpu")) if what == "speed" else training(how, work)
    found["passport"] = pl.passport(seeds=[0], n=n, device="cpu")
    data = pl.load_record(out)["data"] if out.is_file() else {}
    data.setdefault(what, {})["cpu"] = found
    return Record(data, seeds=[0], n=n)
