"""Greedy re-scoring: after each operator that goes, score the others again with it gone.

The score stays the distance to the unpruned model, so what is compared in each round is the whole plan.  It costs one
generation per candidate and round; taking several a round, or looking at the lowest of the single scores only, costs
less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .distance import Formula, formula_of
from .plan import Plan, plan_for
from .score import score_plans
from .scores import Scores

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Greedy", "Round", "greedy_plan"]


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        taken: paths that were added to the plan.
        score: of the plan with the first of them, all changes together.
        candidates: how many were scored.
    """

    taken: tuple[str, ...]
    score: float
    candidates: int


@dataclass(frozen=True)
class Greedy:
    """A plan and how it came about.

    Attributes:
        plan: the changes.
        order: paths, in the order in which they were taken: a ranking for `choose`.
        rounds: one entry each.
    """

    plan: Plan
    order: tuple[str, ...]
    rounds: tuple[Round, ...]

    @property
    def generations(self) -> int:
        """How many sets of latents were generated, the original's not counted."""
        return sum(found.candidates for found in self.rounds)


def greedy_plan(
    pipe: DiffusionPipeline, scores: Scores, count: int, *, start: Sequence[str] = (), per_round: int = 1,
    pool: int | None = None, per_macs: bool = False, formula: str | Formula = "paper",
    folder: str | Path | None = None, **options,
) -> Greedy:  # fmt: skip
    """Choose operators one after another, each time the one with which the whole plan scores lowest.

    With nothing gone, the single scores are the scores of the plans, so the first round costs nothing.

    Args:
        pipe: that was scored.
        scores: of its operators, one at a time.
        count: how many to change, those of `start` included, >= 1.
        start: paths that go in any case, such as those whose single scores say that they do nothing.
        per_round: operators taken in a round, >= 1; their scores count as independent of one another within it.
        pool: candidates beside `start`, the lowest by the single scores, for each MAC if that is asked. Default: all
            whose score is finite.
        per_macs: take those that add least to the score for each MAC of their own, where otherwise those that add
            least are taken, which are small ones mostly.
        formula: as in `Scores.values`.
        folder: keeps what is finished.
        options: `batch`, `share_mib` and `progress`, as in `score_operators`.

    Returns:
        The plan. No operator in it lies inside another one.

    Raises:
        ValueError: numbers out of range, or fewer operators than asked for outside one another.
    """
    worth, single = formula_of(formula), scores.values(formula)
    order, rounds = plan_for(start, scores.operators).paths, []
    macs = {op.path: max(op.macs, 1) for op in scores.operators}
    ranking = sorted(single, key=lambda path: single[path] / (macs[path] if per_macs else 1))
    left = [p for p in ranking if math.isfinite(single[p]) and not _touches(p, order)]
    size = len(left) if pool is None else pool
    for name, value in (("count", count), ("per_round", per_round), ("pool", size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}; it must be a whole number >= 1.")
    left = left[:size]
    sampling = {key: value for key, value in scores.sampling.items() if key != "prompts"}
    while len(order) < count:
        if not left:
            raise ValueError(
                f"count={count}, but only {len(order)} operators fit beside one another. Raise pool."
            )
        found, now = single, 0.0
        if order:
            sets = [order, *([*order, path] for path in left)]
            plans = [plan_for(paths, scores.operators) for paths in sets]
            scored = score_plans(
                pipe, scores.sampling["prompts"], plans, folder=folder, **{**sampling, **options}
            )
            now, *values = [worth(scores.original, s) if s.is_finite else math.inf for s in scored]
            found = dict(zip(left, values, strict=True))
        price = {path: (found[path] - now) / (macs[path] if per_macs else 1) for path in left}
        candidates = len(left) if order else 0
        room, taken = min(per_round, count - len(order)), []
        for path in sorted(left, key=price.__getitem__):
            if len(taken) < room and math.isfinite(found[path]) and not _touches(path, taken):
                taken.append(path)
        if not taken:
            raise ValueError(
                f"With {len(order)} operators gone, each of the {len(left)} others breaks the model."
            )
        order += taken
        left = [path for path in left if not _touches(path, order)]
        rounds.append(Round(tuple(taken), found[taken[0]], candidates))
    return Greedy(plan_for(order, scores.operators), tuple(order), tuple(rounds))


def _touches(path: str, others: Sequence[str]) -> bool:
    """Whether an operator is one of the others, lies inside one, or holds one."""
    return any(f"{path}.".startswith(f"{o}.") or o.startswith(f"{path}.") for o in others)
