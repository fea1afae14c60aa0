"""Record of chapter 9: how few latents and steps put the operators in the same order, and which formula sees harm.

Every fourth operator of the recorded ranking, with 2 to 64 latents, and with 8 latents at 2 to 50 steps; the harm that
is done is judged on pictures of the second 32 latents. About 14 minutes on one CPU core.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import pruning_lib as pl
from pruning_book.rivals.rankings import overlap, rank_agreement, spearman
from pruning_lib.operators.find import DEFAULT_KINDS
from pruning_lib.operators.scores import FORMULAS, Scores
from pruning_lib.quality import ssim

from .common import MODEL, Record, interval
from .operator_scores import SAMPLING, SCORES, prompts

EVERY, OFFSET = 4, 1
NUM_LATENTS = (2, 4, 8, 16, 32, 64)
STEPS, STEP_LATENTS = (2, 5, 10, 20, 50), 8
FEWEST = 10  # how many of the lowest are compared
SEEN, UNSEEN = 16, range(32, 64)  # latents that the formulas see, and those whose pictures are judged


def against(few: Scores, full: Scores) -> dict[str, object]:
    """Compare two scorings of the same operators."""
    a, b = few.values(), full.values()
    return {**rank_agreement(a, b).to_dict(), "overlap": overlap(a, b, FEWEST)}


def by_latents(full: Scores) -> list[dict]:
    """Compare the first n latents with all, and groups of n with one another."""
    total, rows = NUM_LATENTS[-1], []
    for n in NUM_LATENTS:
        row = {"num_latents": n, **against(full.of_latents(range(n)), full)}
        groups = [full.of_latents(range(start, start + n)).values() for start in range(0, total, n)]
        # Neighbours only: pairs of groups that share no latent, and no group twice.
        apart = [spearman(list(a.values()), list(b.values())) for a, b in zip(groups[::2], groups[1::2], strict=False)]
        rows.append({**row, "between_groups": apart})
    return rows


@torch.no_grad()
def pictures(pipe, latents: Tensor) -> Tensor:
    """Decode latents to floats `[n, 3, 64, 64]` in [0, 1]."""
    parts = [pipe.vae.decode(part / pipe.vae.config.scaling_factor).sample for part in latents.split(16)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def harm(pipe, scores: Scores) -> dict[str, dict]:
    """Return path -> 1 - SSIM of the unseen pictures to the unpruned model's, with its interval."""
    whole, paths = pictures(pipe, scores.original.latents[UNSEEN.start :]), scores.operators.paths
    return {p: interval(1 - ssim(whole, pictures(pipe, scores[p].latents[UNSEEN.start :]))) for p in paths}


def measure(work: Path, scores: Path = SCORES) -> Record:
    """Score and compare."""
    pipe, known, recorded = pl.load(MODEL), prompts(NUM_LATENTS[-1]), Scores.load(scores).of(*DEFAULT_KINDS)
    # Captions in an order without meaning, so that the first few are no family.
    few = [known[i] for i in torch.randperm(len(known), generator=torch.Generator().manual_seed(0)).tolist()]

    def scored(captions: list[str], folder: str, steps: int) -> Scores:
        how = {"num_latents": len(captions), "folder": work / folder, "keep_latents": True}
        how["operators"] = recorded.ranked()[OFFSET::EVERY]
        return pl.score_operators(pipe, captions, **how, **{**SAMPLING, "steps": steps})

    full = scored(few, "latents", SAMPLING["steps"])
    latents, lost = by_latents(full), harm(pipe, full)
    formulas = {}
    for name in FORMULAS:
        first = full.of_latents(range(SEEN)).values(name)
        formulas[name] = rank_agreement(first, {p: lost[p]["value"] for p in first}).to_dict()
    runs = {steps: scored(few[:STEP_LATENTS], f"steps-{steps}", steps) for steps in STEPS}
    few_of = {n: full.of_latents(range(n)) for n in NUM_LATENTS}
    operators = []
    for op in full.operators:
        row = {"path": op.path, "kind": op.kind, "how": op.modifications[0], "lost": lost[op.path]}
        row["values"] = {name: full.values(name)[op.path] for name in FORMULAS}
        row["by_steps"] = {str(n): run.values()[op.path] for n, run in runs.items()}
        row["by_latents"] = {str(n): few_of[n].values()[op.path] for n in NUM_LATENTS}
        row["mean_by_latents"] = {str(n): few_of[n][op.path].avg_dist for n in NUM_LATENTS}
        operators.append({**row, "seen": {name: few_of[SEEN].values(name)[op.path] for name in FORMULAS}})
    data = {
        **{"model": MODEL, "operators": operators, "of": len(recorded), "every": EVERY},
        **{"steps": SAMPLING["steps"], "guidance_scale": SAMPLING["guidance_scale"], "by_latents": latents},
        "step_latents": STEP_LATENTS,
        "by_steps": [{"steps": n, **against(run, runs[STEPS[-1]])} for n, run in runs.items()],
        **{"fewest": FEWEST, "formulas": formulas, "formula_latents": SEEN, "unseen": len(UNSEEN)},
        "elements": full.original.avg.numel(),
        "seconds": full.seconds + sum(run.seconds for run in runs.values()),
    }
    return Record(data, seeds=list(range(NUM_LATENTS[-1])), n=NUM_LATENTS[-1])
