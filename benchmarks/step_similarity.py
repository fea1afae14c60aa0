"""Record of chapter 11: how alike the features of a denoiser are from step to step, and what that promises.

Compares what every unit puts out at all pairs of steps, for three samplers and for random weights; and judges pictures
in which one unit is computed at every second step only. Ten minutes on one CPU core.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

import pruning_lib as pl
from pruning_book.judge import generate
from pruning_lib.quality import ssim

from .common import GUIDANCE, MODEL, Record, held_out, initialised, interval, once, spread, unit

SEED, BATCH = 0, 16
N, N_CONTROL, N_HARM, HARM_STEPS = 64, 16, 32, 20
OUTPUT = "conv_out"  # the denoiser's own output
PENULTIMATE = "up_blocks.2.upsamplers.0"  # the last module of the penultimate up block: its output is the block's
SHOWN = (PENULTIMATE,)  # all pairs of steps are kept
HALVES = ("unprompted", "prompted")  # guidance puts the calls without the prompt first
LAGS = (1, 2, 3, 5, 10)
SAMPLERS = {
    "DDIM, 50 steps": (DDIMScheduler, 50),
    "DDIM, 20 steps": (DDIMScheduler, 20),
    "DPM-Solver++, 25 steps": (DPMSolverMultistepScheduler, 25),
}


def prompts(count: int) -> list[str]:
    """Return captions that no pruner is trained with."""
    return spread(held_out(), count)


def features(unet: nn.Module) -> dict[str, nn.Module]:
    """Return unit -> the module whose output it passes on, in the order of the forward; last the whole UNet's."""
    found: dict[str, nn.Module] = {}
    for side in ("down_blocks", "up_blocks"):
        if side == "up_blocks":
            found["mid_block"] = unet.mid_block
        for k, block in enumerate(getattr(unet, side)):
            for i, resnet in enumerate(block.resnets):
                found[f"{side}.{k}.layers.{i}"] = block.attentions[i] if hasattr(block, "attentions") else resnet
            for kind in ("downsamplers", "upsamplers"):
                for i, module in enumerate(getattr(block, kind, None) or ()):
                    found[f"{side}.{k}.{kind}.{i}"] = module
    return found | {OUTPUT: unet.conv_out}


@contextmanager
def recording(unet: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what every unit puts out in each call: `[2, n, elements]`, without the prompt and with it."""
    kept: dict[str, list[Tensor]] = {name: [] for name in features(unet)}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            kept[name].append(tensor.flatten(1).unflatten(0, (2, -1)).float())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in features(unet).items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def compare(pipe, asked: Sequence[str], steps: int) -> dict:
    """Draw and compare the features of all pairs of steps.

    Returns:
        half -> unit -> `cosine` `[n, T, T]`, `change` `[n, T - 1]` (distance of neighbouring steps over the length of
        the earlier one) and `others` `[n, T]` (cosine with another picture at the same step).
    """
    found: dict[str, dict[str, dict[str, list[Tensor]]]] = {half: {} for half in HALVES}
    for start in range(0, len(asked), BATCH):
        part = list(asked[start : start + BATCH])
        with recording(pipe.unet) as kept:
            generate(pipe, part, steps=steps, guidance=GUIDANCE, seed=SEED + start)
        for name, calls in kept.items():
            for half, x in zip(HALVES, torch.stack(calls, dim=2), strict=True):  # [n, T, elements]
                unit_x = nn.functional.normalize(x, dim=2)
                rows = found[half].setdefault(name, {"cosine": [], "change": [], "others": []})
                rows["cosine"].append(unit_x @ unit_x.mT)
                rows["change"].append((x[:, 1:] - x[:, :-1]).norm(dim=2) / x[:, :-1].norm(dim=2))
                rows["others"].append((unit_x * unit_x.roll(1, 0)).sum(2))
            calls.clear()
    return {
        half: {name: {key: torch.cat(parts) for key, parts in rows.items()} for name, rows in units.items()}
        for half, units in found.items()
    }


def rounded(values: Tensor) -> list:
    """Return a tensor as lists of numbers with six places after the point."""
    return (values.double() * 1e6).round().div(1e6).tolist()


def of_unit(rows: dict[str, Tensor]) -> dict:
    """Return what the record keeps of one unit: means over pictures, and intervals where a page says a number."""
    steps = rows["cosine"].shape[1]
    lags = {k: rows["cosine"].diagonal(k, 1, 2) for k in LAGS if k < steps}
    return {
        "adjacent": rounded(lags[1].mean(0)),
        "adjacent_mean": interval(lags[1].mean(1)),
        "adjacent_least": round(lags[1].min().item(), 6),
        "change": rounded(rows["change"].mean(0)),
        "change_mean": interval(rows["change"].mean(1)),
        "lags": {str(k): round(v.mean().item(), 6) for k, v in lags.items()},
        "other_picture_mean": interval(rows["others"].mean(1)),
    }


def summary(pipe, asked: Sequence[str], steps: int) -> dict:
    """Draw with one sampler and return what the record keeps."""
    found = compare(pipe, asked, steps)
    return {
        **{"n": len(asked), "steps": steps, "timesteps": pipe.scheduler.timesteps.tolist()},
        "units": {h: {name: of_unit(rows) for name, rows in units.items()} for h, units in found.items()},
        "cosine": {h: {name: rounded(units[name]["cosine"].mean(0)) for name in SHOWN} for h, units in found.items()},
    }


def similarity(work: Path) -> tuple[dict[str, dict], dict]:
    """Compare all pairs of steps, sampler by sampler, and with random weights."""
    pipe, found = pl.load(MODEL), {}
    config = pipe.scheduler.config
    for name, (kind, steps) in SAMPLERS.items():
        pipe.scheduler = kind.from_config(config)
        found[name] = once(work / f"{kind.__name__}-{steps}.json", summary, pipe, prompts(N), steps)
    state = torch.random.get_rng_state()
    pipe.scheduler, pipe.unet = DDIMScheduler.from_config(config), initialised(copy.deepcopy(pipe.unet), SEED)
    torch.random.set_rng_state(state)
    return found, once(work / "control.json", summary, pipe, prompts(N_CONTROL), 50)


@contextmanager
def reused(unet: nn.Module, module: nn.Module, every: int) -> Iterator[None]:
    """Let one module answer with its last output except at every `every`-th call of the UNet."""
    forward, calls, cached = module.forward, [-1], [None]

    def counted(*_) -> None:
        calls[0] += 1

    def instead(*args, **kwargs):
        if calls[0] % every == 0:
            cached[0] = forward(*args, **kwargs)
        return cached[0]

    handle = unet.register_forward_pre_hook(counted)
    module.forward = instead
    try:
        yield
    finally:
        handle.remove()
        del module.forward


def harm(work: Path) -> dict[str, dict]:
    """Return, for every unit, SSIM to the unpruned picture when that unit is computed at every second step only."""
    pipe, asked = pl.load(MODEL), prompts(N_HARM)

    def drawn() -> Tensor:
        return unit(generate(pipe, asked, steps=HARM_STEPS, guidance=GUIDANCE, seed=SEED))

    def without(module: nn.Module) -> dict:
        # a unit's last module stands for the unit: what runs before it in the unit is not read by anything else
        with reused(pipe.unet, module, every=2):
            return {"ssim": interval(ssim(drawn(), wanted))}

    wanted, found = drawn(), {}
    for name, module in features(pipe.unet).items():
        found[name] = once(work / f"harm-{name}.json", without, module)
    return found


def measure(work: Path) -> Record:
    """Compare, judge and put together."""
    samplers, control = similarity(work)
    harmed = {"n": N_HARM, "steps": HARM_STEPS, "every": 2, "units": harm(work)}
    data = {"model": MODEL, "guidance_scale": GUIDANCE, "seed": SEED, "penultimate": PENULTIMATE, "output": OUTPUT}
    data |= {"prompts": prompts(N), "samplers": samplers, "control": control, "harm": harmed}
    return Record(data, seeds=[SEED], n=N)
