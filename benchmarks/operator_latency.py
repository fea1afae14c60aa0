"""Record of chapter 8: how much faster a denoiser becomes without some of its operators, beside what MACs promise.

One call at batch 1, 2 and 8, and whole generations, all candidates in turn. Needs a quiet machine; about three minutes
on one CPU core. Another --device adds its rows to the record that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.denoisers import example_inputs
from pruning_lib.latency import Latency
from pruning_lib.operators.budget import choose
from pruning_lib.operators.remove import pruned_copy
from pruning_lib.records import RecordError

from .common import MACS_CONVENTION, MODEL, Record, in_turn, quantiles
from .operator_runs import BK_SDM, with_unet
from .operator_scores import SCORES

BATCHES = (1, 2, 8)
RATIOS = (0.1, 0.2, 0.35, 0.5)
KINDS = ("resnet", "transformer", "self-attention", "cross-attention", "feed-forward")
GENERATED, STEPS, GUIDANCE = 4, 6, 3.0  # pictures per timed generation


def candidates(scores: Path, device: str) -> tuple[object, dict[str, dict], dict[str, torch.nn.Module]]:
    """Return the pipeline, what each candidate is, and its denoiser; the unpruned one first."""
    pipe = pl.load(MODEL, device=device)
    operators = pl.find_operators(pipe.unet)
    order = [path for path in pl.Scores.load(scores).ranked() if path in operators]
    plans = {f"score, {100 * r:.0f} % of MACs": choose(order, operators, pipe.unet, macs_ratio=r) for r in RATIOS}
    for kind in KINDS:
        same = operators.of(kind)
        plans[f"every {kind}"] = choose(same.paths, operators, pipe.unet, count=len(same))
    models = {"unpruned": pipe.unet, **{name: pruned_copy(pipe.unet, plan) for name, plan in plans.items()}}
    models[f"BK-SDM {BK_SDM}"] = pl.remove_blocks(pipe.unet, BK_SDM).unet.to(device)
    whole, found = pl.count_macs(pipe.unet), {}
    for name, model in models.items():
        size, plan = pl.count_macs(model), plans.get(name)
        found[name] = {
            **{"params": size.params, "macs": size.macs},
            "macs_ratio": 1 - size.macs / whole.macs,
            "params_ratio": 1 - size.params / whole.params,
            "expected_times_as_fast": whole.macs / size.macs,
            "count": len(plan) if plan is not None else None,
            "changes": [list(change) for change in plan.changes] if plan is not None else None,
        }
    return pipe, found, models


def timed(calls: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, dict]:
    """Time calls in turn; return times and how many times as fast as the first each is."""

    def how(found: Latency) -> dict:
        return {**quantiles(found, 4), "n": found.n, "peak_memory_mib": found.peak_memory_mib}

    return in_turn(calls, how, repeats=repeats, warmup=3, device=device)


def times_of(pipe, models: dict[str, torch.nn.Module], repeats: int, device: str) -> dict[str, dict]:
    """Return the times of one call at each batch, and of whole generations."""
    found = {}
    for batch in BATCHES:
        inputs = example_inputs(pipe.unet, batch=batch, device=device)
        calls = {name: torch.no_grad()(lambda m=model, x=inputs: m(**x)) for name, model in models.items()}
        found[f"batch {batch}"] = timed(calls, repeats, device)
    prompts = pb.captions(MODEL)[:GENERATED]
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    pipes = {name: with_unet(pipe, model) for name, model in models.items()}
    for each in pipes.values():
        each.set_progress_bar_config(disable=True)
    calls = {name: partial(each, prompts, **options) for name, each in pipes.items()}
    return {**found, "generation": timed(calls, max(2, repeats // 4), device)}


def measure(out: Path, scores: Path = SCORES, repeats: int = 60, device: str = "cpu") -> Record:
    """Measure on one device and add it to the record."""
    try:
        devices = pl.load_record(out)["data"]["devices"]
    except RecordError:  # the first device
        devices = {}
    pipe, what, models = candidates(scores, device)
    stamp = pl.passport(seeds=[], n=repeats, device=device)
    devices[device] = {"times": times_of(pipe, models, repeats, device), "passport": stamp}
    data = {
        **{"devices": devices, "candidates": what, "batches": list(BATCHES), "model": MODEL, "dtype": "float32"},
        "generation": {"pictures": GENERATED, "steps": STEPS, "guidance": GUIDANCE, "what": "text to pixels"},
        "macs_convention": MACS_CONVENTION,
    }
    return Record(data, seeds=[], n=repeats, device=device)
