"""Do scores add up?  Two operators are changed together, and the score is held against the sum of the single ones.

Choosing the lowest scores takes for granted that harm adds up.  Three predictions can be compared:

- `sum`, what that choice assumes;
- `linear`, the norm of the summed shifts: exact if each change moves averages and deviations by itself, whatever else
  is changed; by the triangle inequality it is never above `sum`;
- the truth, `joint`.

Above `linear` the two make each other worse; below it, they spoil the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .distance import Scored
from .plan import plan_for
from .score import score_plans
from .scores import Scores

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Together", "pairs_of", "score_together"]


@dataclass(frozen=True)
class Together:
    """The score of operators that were changed together, and what their single scores promised.

    Attributes:
        paths: the operators.
        joint: score of the change of all of them, by the paper's formula.
        sum: of the single scores.
        linear: score if every shift were what it is alone.
    """

    paths: tuple[str, ...]
    joint: float
    sum: float
    linear: float


def pairs_of(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return all pairs of which neither operator lies inside the other."""
    return [
        (a, b) for a, b in combinations(paths, 2) if not a.startswith(f"{b}.") and not b.startswith(f"{a}.")
    ]


def score_together(
    pipe: DiffusionPipeline, scores: Scores, sets: Sequence[Sequence[str]], **options
) -> list[Together]:  # fmt: skip
    """Score sets of operators that are changed together, on the latents of the single scores.

    Args:
        pipe: that was scored.
        scores: of its operators, one at a time, with averages and standard deviations.
        sets: each some paths, such as those of `pairs_of`; none inside another of its set.
        options: `folder`, `batch`, `share_mib` and `progress`, as in `score_operators`.

    Raises:
        KeyError: a path that was not scored.
        ValueError: a set with an operator inside another, or scores without their parts.
    """
    plans = [plan_for(paths, scores.operators) for paths in sets]
    for paths, plan in zip(sets, plans, strict=True):
        if len(plan) != len(paths):
            raise ValueError(f"{list(paths)}: one of these operators lies inside another.")
    singles = [[scores[path] for path in paths] for paths in sets]
    if any(s.avg is None for some in singles for s in (*some, scores.original)):
        raise ValueError("These scores hold no averages and standard deviations. Save them with parts=True.")
    sampling = dict(scores.sampling)
    joint = score_plans(pipe, sampling.pop("prompts"), plans, **{**sampling, **options})
    return [
        Together(
            tuple(paths), both.avg_dist + both.std_dist, sum(s.avg_dist + s.std_dist for s in some),
            _linear(scores.original, some),
        )
        for paths, some, both in zip(sets, singles, joint, strict=True)
    ]  # fmt: skip


def _linear(original: Scored, some: Sequence[Scored]) -> float:
    def shifted(name: str) -> Tensor:
        return torch.stack([getattr(s, name) - getattr(original, name) for s in some]).sum(0)

    return sum(torch.linalg.vector_norm(shifted(name)).item() for name in ("avg", "std"))
