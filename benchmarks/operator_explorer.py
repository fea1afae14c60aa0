"""Record of chapter 7: the picture without each scored operator, and without the lowest-scored ones.

The same captions are drawn from the same noise; about eight minutes on one CPU core.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets.operators import (
    PROMPTS,
    STOPS,
    OperatorExplorer,
    OperatorResult,
    PruningStop,
    changed_pictures,
)
from pruning_book.widgets.sparsity import FIRST_SEED, GUIDANCE, MODEL, STEPS, spread_captions
from pruning_lib.operators.budget import reductions
from pruning_lib.operators.find import DEFAULT_KINDS, Operator
from pruning_lib.quality import ssim

from .common import Record, likeness, pictures_once, rounded, unit
from .operator_scores import SCORES

QUALITY = 92  # of the sheet: its pictures are looked at, and every figure was computed before


def measure(work: Path, pictures: int = 16, scores: Path = SCORES, device: str = "cpu") -> Record:
    """Change, draw and judge; so many captions for each change, the first ones those of the explorer."""
    # Single linear layers and norms are too many to draw.
    return explored(pl.Scores.load(scores).of(*DEFAULT_KINDS), captions_of(pictures), work, device)


def explored(scores: pl.Scores, captions: Sequence[str], work: Path, device: str = "cpu") -> Record:
    """Return the record of these operators and captions, at least two."""
    pipe, nothing = pl.load(MODEL, device=device), pl.Plan((), scores.operators.base)
    plans = {ratio: scores.lowest(macs_ratio=ratio, pipe=pipe) if ratio else nothing for ratio in STOPS}
    jobs = [*plans.values(), *(alone(scores, op) for op in scores.operators)]
    drawn = []
    for plan in tqdm(jobs, desc="changes", unit="change"):
        told = json.dumps([sorted(dict(plan.changes).items()), list(captions)])
        drawn.append(pictures_once(work, told, partial(changed_pictures, pipe, plan, captions)))
    similar = [ssim(unit(drawn[0]), unit(found)) for found in drawn]
    explorer = assemble(pipe.unet, scores, plans, drawn, similar)
    each = dict(zip(scores.operators.paths, map(rounded, similar[len(plans) :]), strict=True))
    more = {"quality": QUALITY, "sampler": "DDIM, trailing", "steps": STEPS, "guidance": GUIDANCE}
    more |= {"captions": list(captions), "per_picture": each}
    seeds = [FIRST_SEED + i for i in range(len(captions))]
    return Record(more, seeds=seeds, n=len(captions), device=device, explorer=explorer)


def alone(scores: pl.Scores, op: Operator) -> pl.Plan:
    """Return the plan that changes one operator."""
    return pl.Plan(((op.path, op.modifications[0]),), scores.operators.base)


def assemble(
    unet: torch.nn.Module, scores: pl.Scores, plans: Mapping[float, pl.Plan], drawn: list[Tensor], similar: list[Tensor]
) -> OperatorExplorer:
    """Return the explorer; `drawn` and `similar` hold the stops, then the operators."""
    costs, shown = pl.count_macs(unet), len(PROMPTS)

    def judged(values: Tensor) -> dict[str, object]:
        of_each, mean = likeness(values, shown)
        return {"ssim": of_each, "mean_ssim": mean}

    stops, worths = [], []
    for (ratio, plan), values in zip(plans.items(), similar, strict=False):
        macs, params = reductions(unet, plan)
        sizes = {"params": round((1 - params) * costs.params), "macs": round((1 - macs) * costs.macs)}
        stops.append(PruningStop(ratio, plan.changes, **sizes, **judged(values)))
    for op, values in zip(scores.operators, similar[len(plans) :], strict=True):
        macs, params = reductions(unet, alone(scores, op))
        saved = {"saved_params": round(params * costs.params), "saved_macs": round(macs * costs.macs)}
        scored = scores[op.path]
        distances = (scored.avg_dist, scored.std_dist) if scored.is_finite else (None, None)
        about = (op.path, op.kind, op.in_shape, op.out_shape, op.modifications[0])
        worths.append(OperatorResult(*about, *distances, **saved, **judged(values)))
    images = torch.cat([torch.stack([found[i] for found in drawn]) for i in range(shown)])
    more = {"n": len(drawn[0]), "title": "as recorded"}
    return OperatorExplorer("operator-explorer", MODEL, worths, stops, PROMPTS, images, **more)


def captions_of(n: int) -> list[str]:
    """Return n captions: the explorer's prompts, then others spread over all."""
    return [*PROMPTS, *(c for c in spread_captions(pb.captions(MODEL), n + len(PROMPTS)) if c not in PROMPTS)][:n]
