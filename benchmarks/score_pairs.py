"""Record of chapter 9: do single scores add up, and is scoring again after each removal the better way?

    python -m benchmarks score_pairs

- All pairs of twelve operators, spread over the middle of the ranking in operator_scores.json: the lowest do nothing at
  all, and of those even the pairs do nothing.
- Sets: the lowest 8, 16, 20 … of that ranking, changed together; and as many chosen by greedy re-scoring, with a
  quarter of the latents and half of the steps. The pictures of other prompts and seeds are compared with the unpruned
  model's.

About 9 minutes on one CPU core; it may be interrupted.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.judge import generate
from pruning_book.rivals.rankings import greedy_plan, pairs_of, score_together, spearman
from pruning_lib.interval import bootstrap_interval
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import DEFAULT_KINDS
from pruning_lib.operators.plan import plan_for
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.operators.scores import Scores
from pruning_lib.quality import ssim

from .common import Record, once
from .operator_scores import MODEL, NUM_LATENTS, SAMPLING, SCORES

PAIRED = 12  # operators, all pairs of them
MIDDLE = (0.2, 0.65)  # of the ranking
COUNTS = {"single": (8, 16, 20, 24, 28, 32, 36, 40), "greedy": (20, 24, 28, 32, 36, 40, 44)}  # sizes of the sets
START = 16  # where greedy re-scoring begins: what the single scores call idle
POOL = 64  # its candidates; they are scored again after every removal, with fewer latents and steps
FEW = {"num_latents": 4, "steps": 4}
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)  # of the MACs, where operators are taken by harm for each MAC
SHARE_START, SHARE_MORE = 0.15, 14  # where scoring again begins, and how many it adds
JUDGED, JUDGED_SEED = 32, 1000  # pictures per set, from seeds that no score has seen


def spread_operators(scores: Scores) -> list[str]:
    """Return operators from the middle of the ranking, none inside another."""
    found: list[str] = []
    ranking = scores.ranked()
    for place in torch.linspace(MIDDLE[0] * len(ranking), MIDDLE[1] * len(ranking), PAIRED).round().long().tolist():
        free = (p for p in ranking[place:] if all(pairs_of([p, other]) for other in found))
        found.append(next(p for p in free if p not in found))
    return found


def quality(pipe, plan, prompts: list[str], whole) -> dict:
    """Return the SSIM of pictures with the plan carried out to the unpruned model's, with its interval."""
    sampler = {"steps": SAMPLING["steps"], "guidance": SAMPLING["guidance_scale"], "seed": JUDGED_SEED}
    with change_operators(pipe.unet, plan):
        pictures = generate(pipe, prompts, **sampler).float() / 255
    return bootstrap_interval(ssim(whole, pictures)).to_dict()


def sets(pipe, scores: Scores, work: Path) -> dict[str, object]:
    """Compare the lowest of the single scores with greedy choices of the same size."""
    idle = choose(scores.ranked(), scores.operators, pipe.unet, count=START).paths
    few = score_operators(
        pipe, scores.sampling["prompts"], operators=scores.operators, folder=work / "few", **{**SAMPLING, **FEW}
    )
    greedy = greedy_plan(pipe, few, max(COUNTS["greedy"]), start=idle, pool=POOL, folder=work / "greedy-few")
    values, macs = scores.values(), {op.path: op.macs for op in scores.operators}
    by_macs = sorted((path for path in values if macs[path]), key=lambda path: values[path] / macs[path])
    begun = choose(by_macs, scores.operators, pipe.unet, macs_ratio=SHARE_START).paths
    again = greedy_plan(
        pipe, few, len(begun) + SHARE_MORE, start=begun, pool=POOL, per_macs=True, folder=work / "greedy-few"
    )
    plans = {}
    for name, ranking in (("single", scores.ranked()), ("greedy", greedy.plan.paths)):
        for count in COUNTS[name]:
            plans[name, f"{count}"] = choose(ranking, scores.operators, pipe.unet, count=count)
    for name, ranking in (("single per MAC", by_macs), ("greedy per MAC", again.plan.paths)):
        most = reductions(pipe.unet, plan_for(ranking, scores.operators))[0]
        for share in (s for s in SHARES if s <= most):
            plans[name, f"{share}"] = choose(ranking, scores.operators, pipe.unet, macs_ratio=share)
    known = pb.captions(MODEL)
    prompts = [
        known[i] for i in torch.randperm(len(known), generator=torch.Generator().manual_seed(1))[:JUDGED].tolist()
    ]
    sampler = {"steps": SAMPLING["steps"], "guidance": SAMPLING["guidance_scale"], "seed": JUDGED_SEED}
    whole = generate(pipe, prompts, **sampler).float() / 255
    rows = []
    for (name, budget), plan in plans.items():
        (together,) = score_together(pipe, scores, [plan.paths], folder=work / "sets")
        removed, params = reductions(pipe.unet, plan)
        judged = once(work / f"{name.replace(' ', '-')}-{budget}.json", lambda p=plan: quality(pipe, p, prompts, whole))
        rows.append(
            {
                "by": name,
                "count": len(plan),
                **asdict(together),
                "macs_ratio": removed,
                "params_ratio": params,
                "ssim": judged,
            }
        )
        print(name, len(plan), removed, judged["value"], flush=True)
    rounds = [asdict(found) for found in greedy.rounds]
    return {
        "rows": rows,
        "rounds": rounds,
        "generations": greedy.generations,
        "generations_per_mac": again.generations,
        "judged": JUDGED,
    }


def measure(work: Path, scores: Path = SCORES) -> Record:
    """Score pairs and sets."""
    pipe, scores = pl.load(MODEL), Scores.load(scores).of(*DEFAULT_KINDS)
    pipe.set_progress_bar_config(disable=True)
    chosen = spread_operators(scores)
    pairs = score_together(pipe, scores, pairs_of(chosen), folder=work / "pairs")
    found = sets(pipe, scores, work)
    values = scores.values()
    data = {
        "model": MODEL,
        "sampling": {k: v for k, v in scores.sampling.items() if k != "prompts"},
        "operators": [{"path": p, "kind": scores.operators[p].kind, "score": values[p]} for p in chosen],
        "pairs": [asdict(pair) for pair in pairs],
        "spearman": {
            name: spearman([getattr(p, name) for p in pairs], [p.joint for p in pairs]) for name in ("sum", "linear")
        },
        "sets": found["rows"],
        "single_generations": len(scores),
        "judged": found["judged"],
        "greedy": {
            "rounds": found["rounds"],
            "generations": found["generations"],
            "generations_per_mac": found["generations_per_mac"],
            "pool": POOL,
            "start": START,
            **FEW,
        },
    }
    return Record(data, seeds=[SAMPLING["seed"], JUDGED_SEED], n=NUM_LATENTS)
