"""Records of chapter 10: the operators of the papers' models, and what scoring costs at the full size of SD-1.5.

`--what operators` counts without weights (three minutes), for the record big_operators. `--what scoring` scores a
handful of operators with random weights, beside k + 1 generations: three minutes on a quiet core, 6 GB.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torch

import pruning_lib as pl
from pruning_book.stand_in import stand_in
from pruning_lib.checks import synchronise
from pruning_lib.operators.budget import reductions
from pruning_lib.operators.find import KINDS, find_operators
from pruning_lib.operators.plan import plan_for
from pruning_lib.operators.score import LatentSampler

from .common import Record, peak_mib, spread

MODELS = ("sd-1.5", "sd-2.1", "dit-xl-2-256", "pixart-alpha")
# Early and late in a call, cheap and dear: what is shared in the first step differs.
HANDFUL = (
    "down_blocks.0.attentions.0",
    "down_blocks.1.resnets.1",
    "down_blocks.2.attentions.1.transformer_blocks.0.attn2",
    "mid_block.resnets.0",
    "up_blocks.1.attentions.1",
    "up_blocks.3.resnets.2",
)
PROMPTS = ("a photograph of a lion", "a bowl of soup")  # two texts; to random weights they mean nothing
# How the scoring is run, unless the command line says otherwise.
SETTINGS = {"size": 32, "latents": 2, "steps": 2, "guidance": 1.0, "batch": 2, "dtype": "float32", "scale": 1}


def kinds_of(name: str) -> dict:
    """Count the operators of an architecture, kind by kind, and what the default change of all of a kind saves."""
    model = pl.denoiser_on_meta(name)
    whole, every, rows = pl.count_macs(model), find_operators(model, tuple(KINDS)), []
    for kind in KINDS:
        some = every.of(kind)
        if not len(some):
            continue
        macs_saved, params_saved = reductions(model, plan_for(some.paths, some))
        done = [op.modifications[0] for op in some]
        row = {"kind": kind, "count": len(some), "params": sum(op.params for op in some)}
        row |= {"macs": sum(op.macs for op in some), "macs_saved": macs_saved, "params_saved": params_saved}
        rows.append({**row, "done": {how: done.count(how) for how in dict.fromkeys(done)}})
    size = model.config.sample_size
    return {"name": name, "sample_size": size, "params": whole.params, "macs": whole.macs, "kinds": rows}


def scoring(device: torch.device, how: dict, paths: Sequence[str] | int) -> dict:
    """Score operators of SD-1.5 with random weights; return times and memory.

    `how` is as `SETTINGS`, where "scale" 1 is the full size; `paths` are the operators', or their number.
    """
    dtype = getattr(torch, how["dtype"])
    pipe = stand_in("sd-1.5", scale=how["scale"], sample_size=how["size"], dtype=dtype, device=device)
    sampling = {"num_latents": how["latents"], "steps": how["steps"], "batch": how["batch"]}
    sampling["guidance_scale"] = how["guidance"]
    operators = find_operators(pipe.unet, sample_size=how["size"])
    if isinstance(paths, int):
        paths = spread(operators.paths, paths)

    def generation() -> float:
        started = time.perf_counter()
        LatentSampler(pipe, PROMPTS, **sampling).draw()
        synchronise(device)
        return time.perf_counter() - started

    LatentSampler(pipe, PROMPTS, **{**sampling, "num_latents": 2, "steps": 1}).draw()  # warm-up
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    plain = [generation()]
    before = peak_mib(device)
    started = time.perf_counter()
    scores = pl.score_operators(pipe, PROMPTS, operators=paths, **sampling)
    seconds = time.perf_counter() - started
    peak = peak_mib(device)
    plain.append(generation())
    size, mean = pl.count_macs(pipe.unet, sample_size=how["size"]), sum(plain) / len(plain)
    floor = mean * (len(scores) + 1)
    rows = []
    for op in scores.operators:
        took = {"seconds": scores[op.path].seconds, "of_generation": scores[op.path].seconds / mean}
        rows.append({"path": op.path, "kind": op.kind, "macs": op.macs, "order": op.order, **took})
    return {
        **{"device": device.type, **how, "prompts": list(PROMPTS)},
        **{"params": size.params, "macs": size.macs, "weights": "random", "generation_seconds": plain},
        **{"floor_seconds": floor, "seconds": seconds, "of_floor": seconds / floor},
        **{"peak_generation_mib": before, "peak_scoring_mib": peak},
        "weights_mib": sum(p.numel() * p.element_size() for p in pipe.unet.parameters()) / 2**20,
        **{"operators": rows, "original_seconds": scores.original.seconds},
    }


def measure(
    what: Literal["operators", "scoring"],
    size: int = SETTINGS["size"],
    latents: int = SETTINGS["latents"],
    steps: int = SETTINGS["steps"],
    operators: int = len(HANDFUL),
) -> Record:
    """Count operators, or score the first so many of a handful; `size` is the side of the latents."""
    if what == "operators":
        return Record({"models": [kinds_of(name) for name in MODELS]}, seeds=[], n=len(MODELS), name="big_operators")
    how = {**SETTINGS, "size": size, "latents": latents, "steps": steps}
    run = scoring(torch.device("cpu"), how, HANDFUL[:operators])
    run["passport"] = pl.passport(seeds=[0], n=latents, device="cpu")
    return Record({"runs": [run]}, seeds=[0], n=latents)
