"""Record of chapter 9: do single scores add up, and is scoring again after each removal the better way?

All pairs of twelve operators from the middle of the ranking, and sets of the lowest beside as many chosen by greedy
re-scoring with fewer latents and steps. About 9 minutes on one CPU core.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.judge import generate
from pruning_book.rivals.rankings import greedy_plan, pairs_of, score_together, spearman
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import DEFAULT_KINDS
from pruning_lib.operators.plan import Plan, plan_for
from pruning_lib.operators.remove import change_operators
from pruning_lib.quality import ssim

from .common import MODEL, Record, interval, once, unit
from .operator_scores import NUM_LATENTS, SAMPLING, SCORES

PAIRED = 12  # operators, all pairs of them
MIDDLE = (0.2, 0.65)  # of the ranking
COUNTS = {"single": (8, 16, 20, 24, 28, 32, 36, 40), "greedy": (20, 24, 28, 32, 36, 40, 44)}  # sizes of the sets
START = 16  # where greedy re-scoring begins: what the single scores call idle
POOL = 64  # its candidates; they are scored again after every removal, with fewer latents and steps
FEW = {"num_latents": 4, "steps": 4}
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)  # of the MACs, where operators are taken by harm for each MAC
SHARE_START, SHARE_MORE = 0.15, 14  # where scoring again begins, and how many it adds
JUDGED, JUDGED_SEED = 32, 1000  # pictures per set, from seeds that no score has seen


def spread_operators(scores: pl.Scores) -> list[str]:
    """Return operators from the middle of the ranking, none inside another."""
    found: list[str] = []
    ranking = scores.ranked()
    for place in torch.linspace(MIDDLE[0] * len(ranking), MIDDLE[1] * len(ranking), PAIRED).round().long().tolist():
        free = (p for p in ranking[place:] if all(pairs_of([p, other]) for other in found))
        found.append(next(p for p in free if p not in found))
    return found


def drawn(pipe, prompts: list[str]) -> torch.Tensor:
    """Draw pictures that no score has seen, in [0, 1]."""
    sampler = {"steps": SAMPLING["steps"], "guidance": SAMPLING["guidance_scale"], "seed": JUDGED_SEED}
    return unit(generate(pipe, prompts, **sampler))


def quality(pipe, plan: Plan, prompts: list[str], whole: torch.Tensor) -> dict:
    """Return the SSIM of pictures with the plan carried out to the unpruned model's, with its interval."""
    with change_operators(pipe.unet, plan):
        return interval(ssim(whole, drawn(pipe, prompts)))


def sets(pipe, scores: pl.Scores, work: Path) -> tuple[list[dict], dict]:
    """Compare the lowest of the single scores with greedy choices of the same size; return rows, and how it went."""
    unet, operators, values = pipe.unet, scores.operators, scores.values()
    how = {"operators": operators, "folder": work / "few", **SAMPLING, **FEW}
    few = pl.score_operators(pipe, scores.sampling["prompts"], **how)
    again = {"pool": POOL, "folder": work / "greedy-few"}
    idle = choose(scores.ranked(), operators, unet, count=START).paths
    greedy = greedy_plan(pipe, few, max(COUNTS["greedy"]), start=idle, **again)
    per_mac = {op.path: values[op.path] / op.macs for op in operators if op.macs}
    by_macs = sorted((path for path in values if path in per_mac), key=per_mac.__getitem__)
    begun = choose(by_macs, operators, unet, macs_ratio=SHARE_START).paths
    greedy_macs = greedy_plan(pipe, few, len(begun) + SHARE_MORE, start=begun, per_macs=True, **again)
    plans = {}
    for name, ranking in (("single", scores.ranked()), ("greedy", greedy.plan.paths)):
        for count in COUNTS[name]:
            plans[name, f"{count}"] = choose(ranking, operators, unet, count=count)
    for name, ranking in (("single per MAC", by_macs), ("greedy per MAC", greedy_macs.plan.paths)):
        most = reductions(unet, plan_for(ranking, operators))[0]
        for share in (s for s in SHARES if s <= most):
            plans[name, f"{share}"] = choose(ranking, operators, unet, macs_ratio=share)
    known = pb.captions(MODEL)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(1))
    prompts = [known[i] for i in order[:JUDGED].tolist()]
    whole, rows = drawn(pipe, prompts), []
    for (name, budget), plan in plans.items():
        (together,) = score_together(pipe, scores, [plan.paths], folder=work / "sets")
        macs, params = reductions(unet, plan)
        judged = once(work / f"{name.replace(' ', '-')}-{budget}.json", quality, pipe, plan, prompts, whole)
        sizes = {"macs_ratio": macs, "params_ratio": params}
        rows.append({"by": name, "count": len(plan), **asdict(together), **sizes, "ssim": judged})
    rounds = [asdict(found) for found in greedy.rounds]
    generations = {"generations": greedy.generations, "generations_per_mac": greedy_macs.generations}
    return rows, {"rounds": rounds, **generations, "pool": POOL, "start": START, **FEW}


def measure(work: Path, scores: Path = SCORES) -> Record:
    """Score pairs and sets."""
    pipe, scores = pl.load(MODEL), pl.Scores.load(scores).of(*DEFAULT_KINDS)
    chosen, values = spread_operators(scores), scores.values()
    pairs = score_together(pipe, scores, pairs_of(chosen), folder=work / "pairs")
    rows, greedy = sets(pipe, scores, work)
    joint = [pair.joint for pair in pairs]
    data = {
        "model": MODEL,
        "sampling": {k: v for k, v in scores.sampling.items() if k != "prompts"},
        "operators": [{"path": p, "kind": scores.operators[p].kind, "score": values[p]} for p in chosen],
        "pairs": [asdict(pair) for pair in pairs],
        "spearman": {name: spearman([getattr(pair, name) for pair in pairs], joint) for name in ("sum", "linear")},
        **{"sets": rows, "single_generations": len(scores), "judged": JUDGED, "greedy": greedy},
    }
    return Record(data, seeds=[SAMPLING["seed"], JUDGED_SEED], n=NUM_LATENTS)
