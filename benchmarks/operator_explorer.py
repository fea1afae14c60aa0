"""Record the operator explorer of chapter 7: the picture without each operator, and without the lowest-scored ones.

    python -m benchmarks operator_scores       # first: it scores the operators
    python -m benchmarks operator_explorer

Every operator is changed alone, and at each stop of the slider the lowest-scored ones together; the same captions are
drawn from the same noise, and compared with the pictures of the unpruned model. Nothing here depends on how fast the
machine is. Pictures are kept in --work as they are made, so an interrupted run goes on where it stopped; about eight
minutes on one CPU core.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets.operator_live import MODEL, PROMPTS, STOPS, changed_pictures
from pruning_book.widgets.operators import OperatorExplorer, OperatorResult, PruningStop
from pruning_book.widgets.sparsity import FIRST_SEED, GUIDANCE, STEPS, spread_captions
from pruning_lib.interval import bootstrap_interval
from pruning_lib.operators.budget import reductions
from pruning_lib.operators.find import DEFAULT_KINDS
from pruning_lib.operators.plan import Plan
from pruning_lib.operators.scores import Scores
from pruning_lib.quality import ssim

from .common import Record
from .operator_scores import SCORES

QUALITY = 92  # of the sheet: its pictures are looked at, and every figure was computed before


def measure(work: Path, pictures: int = 16, scores: Path = SCORES, device: str = "cpu") -> Record:
    """Change, draw and judge; so many captions for each change, the first ones those of the explorer."""
    # Single linear layers and norms are too many to draw.
    return explored(Scores.load(scores).of(*DEFAULT_KINDS), captions_of(pictures), work, device)


def explored(scores: Scores, captions: Sequence[str], work: Path, device: str = "cpu") -> Record:
    """Return the record of these operators and captions, at least two."""
    work.mkdir(parents=True, exist_ok=True)
    pipe = pl.load(MODEL, device=device)
    pipe.set_progress_bar_config(disable=True)
    operators = scores.operators
    ones = [Plan(((op.path, op.modifications[0]),), operators.base) for op in operators]
    plans = {
        ratio: scores.lowest(macs_ratio=ratio, pipe=pipe) if ratio else Plan((), operators.base) for ratio in STOPS
    }
    jobs = [*plans.values(), *ones]
    drawn = [kept(pipe, plan, captions, work) for plan in tqdm(jobs, desc="changes", unit="change")]
    whole = drawn[0]
    similar = [ssim(whole.float() / 255, found.float() / 255) for found in drawn]
    explorer = assemble(pipe.unet, scores, plans, drawn, similar)
    more = {
        "quality": QUALITY,
        "sampler": "DDIM, trailing",
        "steps": STEPS,
        "guidance": GUIDANCE,
        "captions": list(captions),
        "per_picture": {op.path: _rounded(similar[len(plans) + i]) for i, op in enumerate(operators)},
    }
    seeds = [FIRST_SEED + i for i in range(len(captions))]
    return Record(more, seeds=seeds, n=len(captions), device=device, explorer=explorer)


def kept(pipe: Any, plan: Plan, captions: Sequence[str], work: Path) -> Tensor:
    """Return the pictures of one plan, uint8 `[n, 3, h, w]`, drawn once."""
    name = hashlib.sha256(json.dumps([sorted(dict(plan.changes).items()), list(captions)]).encode()).hexdigest()[:24]
    file = work / f"{name}.pt"
    if not file.is_file():
        pictures = (changed_pictures(pipe, plan, captions) * 255).round().to(torch.uint8)
        torch.save(pictures, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    return torch.load(file, weights_only=True)


def assemble(
    unet: torch.nn.Module, scores: Scores, plans: Mapping[float, Plan], drawn: list[Tensor], similar: list[Tensor]
) -> OperatorExplorer:
    """Return the explorer; `drawn` and `similar` hold the stops, then the operators."""
    operators, shown = scores.operators, len(PROMPTS)
    costs = pl.count_macs(unet)

    def judged(values: Tensor) -> dict[str, Any]:
        ends = bootstrap_interval(values)
        mean = {key: round(getattr(ends, key), 6) for key in ("value", "low", "high")}
        return {"ssim": _rounded(values[:shown]), "mean_ssim": mean}

    stops = []
    for (ratio, plan), values in zip(plans.items(), similar, strict=False):
        macs, params = reductions(unet, plan)
        stops.append(
            PruningStop(
                ratio,
                plan.changes,
                params=round((1 - params) * costs.params),
                macs=round((1 - macs) * costs.macs),
                **judged(values),
            )
        )
    worths = []
    for op, values in zip(operators, similar[len(plans) :], strict=True):
        macs, params = reductions(unet, Plan(((op.path, op.modifications[0]),), operators.base))
        scored = scores[op.path]
        avg, std = (scored.avg_dist, scored.std_dist) if scored.is_finite else (None, None)
        worths.append(
            OperatorResult(
                op.path,
                op.kind,
                op.in_shape,
                op.out_shape,
                op.modifications[0],
                avg,
                std,
                saved_params=round(params * costs.params),
                saved_macs=round(macs * costs.macs),
                **judged(values),
            )
        )
    images = torch.cat([torch.stack([found[i] for found in drawn]) for i in range(shown)])
    return OperatorExplorer(
        "operator-explorer", MODEL, worths, stops, PROMPTS, images, n=len(drawn[0]), title="as recorded"
    )


def captions_of(n: int) -> list[str]:
    """Return n captions: the explorer's prompts, then others spread over all."""
    return [*PROMPTS, *(c for c in spread_captions(pb.captions(MODEL), n + len(PROMPTS)) if c not in PROMPTS)][:n]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
