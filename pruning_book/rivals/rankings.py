"""What to hold the scores against: agreement of two rankings, rankings by chance, size and output, and sets together.

A ranking is a list of paths, the first to go at the front. Only the order matters for choosing, so scores from few
latents or another formula are as good as the full ones where they give the same order; and a score that does not beat
chance and size has learned nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruning_lib.checks import check_whole
from pruning_lib.denoisers import denoiser_of
from pruning_lib.interval import Interval, bootstrap_interval
from pruning_lib.operators.find import Operators, find_operators
from pruning_lib.operators.plan import Plan, plan_for
from pruning_lib.operators.replace import replacement
from pruning_lib.operators.score import LatentSampler, score_plans
from pruning_lib.operators.scores import Scores

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def spearman(a: Sequence[float] | Tensor, b: Sequence[float] | Tensor) -> float:
    """Return Spearman's rank correlation, in [-1, 1]: the correlation of the ranks; equal values share their mean rank.

    `a` and `b` are `[n]`, n >= 2.  Infinite values are ranked last, so scores need not be finite.
    """
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2 or a.isnan().any() or b.isnan().any():
        got = f"got shapes {list(a.shape)}, {list(b.shape)}"
        raise ValueError(f"Expected two rows of at least 2 numbers, none NaN; {got}.")
    x, y = (_ranks(v) - (len(v) + 1) / 2 for v in (a, b))
    scale = (x.square().sum() * y.square().sum()).sqrt().item()
    if scale == 0:
        raise ValueError("All values are equal on one side, so they have no order to compare.")
    return (x @ y).item() / scale


def rank_agreement(a: Mapping[str, float], b: Mapping[str, float]) -> Interval:
    """Return the rank correlation of two scorings of the same operators, with a bootstrap interval over operators.

    `a` and `b` are path -> score with the same three or more paths. The interval says how far the figure would move
    with other operators; not how it would move with other latents.

    Example:
        >>> rank_agreement(few.values(), full.values())
        Interval(value=0.97, low=0.94, high=0.98, n=154, level=0.95)
    """
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(f"The scores are of different operators; {len(odd)} are in one only, such as {odd[0]!r}.")
    if len(a) < 3:
        raise ValueError(f"A rank correlation needs at least 3 operators; got {len(a)}.")
    pairs = torch.tensor([(a[path], b[path]) for path in a], dtype=torch.float64)
    spearman(*pairs.T)  # refuses what has no order
    ranks = torch.stack([_ranks(scores) for scores in pairs.T], 1)  # finite, where scores may be infinite

    def correlation(rows: Tensor) -> float:
        try:
            return spearman(*rows.T)
        except ValueError:  # a resample of a single operator, many times over
            return 0.0

    return bootstrap_interval(ranks, correlation)


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place].double()


def overlap(a: Mapping[str, float], b: Mapping[str, float], count: int) -> float:
    """Return the share of the `count` lowest of one scoring that are among the `count` lowest of the other, 0 to 1.

    Two choices by chance have count / n in common.
    """
    if a.keys() != b.keys() or not 1 <= count <= len(a):
        given = f"count={count}, {len(a)} and {len(b)} operators"
        raise ValueError(f"{given}; expected the same operators, and a count from 1 to their number.")
    first, second = (set(sorted(s, key=s.__getitem__)[:count]) for s in (a, b))
    return len(first & second) / count


def random_ranking(operators: Operators, seed: int = 0) -> list[str]:
    """Return the paths in an order drawn by chance."""
    order = torch.randperm(len(operators), generator=torch.Generator().manual_seed(seed)).tolist()
    return [operators[i].path for i in order]


def params_ranking(operators: Operators) -> list[str]:
    """Return the paths by number of parameters, as if size were worth; equal ones in the order in which they run."""
    return [op.path for op in sorted(operators, key=lambda op: op.params)]


@torch.no_grad()
def contributions(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Sequence[int] | None,
    *,
    operators: Operators | None = None,
    **sampling,
) -> dict[str, float]:
    """Measure what each operator adds to the stream while the unpruned pipeline, which is left as it was, generates.

    At every call the operator's default modification gets the same input; the contribution, path -> a number >= 0 in
    the units of the stream there, is the mean of |output - output of the modification| over elements, latents and
    steps.  For a residual branch that is the mean absolute value of the branch.  One generation serves all operators,
    where a score needs one for each; what is not seen is how the rest of the model reacts.

    `prompts` and `sampling` are as in `LatentSampler`; `operators` are by default all of `find_operators`.
    """
    _, denoiser = denoiser_of(pipe)
    sampler = LatentSampler(pipe, prompts, **sampling)
    operators = find_operators(denoiser) if operators is None else operators
    total, count = dict.fromkeys(operators.paths, 0.0), dict.fromkeys(operators.paths, 0)
    busy = False

    def watch(path: str, cheap: torch.nn.Module):
        def compare(module, args, kwargs, output):
            nonlocal busy
            if busy:  # a replacement is running, and calls a module that it shares
                return
            busy = True
            try:
                difference = (_tensor(output).float() - _tensor(cheap(*args, **kwargs)).float()).abs()
            finally:
                busy = False
            total[path] += difference.sum(dtype=torch.float64)  # read at the end: each reading waits
            count[path] += difference.numel()

        return denoiser.get_submodule(path).register_forward_hook(compare, with_kwargs=True)

    # All replacements are made before the first hook: some share inner modules, hooks included, with what they replace.
    made = {op.path: replacement(denoiser.get_submodule(op.path), op.modifications[0]) for op in operators}
    hooks = [watch(path, cheap) for path, cheap in made.items()]
    try:
        sampler.draw()
    finally:
        for hook in hooks:
            hook.remove()
    return {path: float(total[path]) / max(count[path], 1) for path in operators.paths}


def _tensor(output: Tensor | tuple | object) -> Tensor:
    output = getattr(output, "sample", output)  # a transformer of a UNet returns an object by default
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class Round:
    """One round: the path that was taken, the score of the plan with it, and how many candidates were scored."""

    taken: tuple[str, ...]
    score: float
    candidates: int


@dataclass(frozen=True)
class Greedy:
    """A plan, whose paths stand in the order in which they were taken, a ranking for `choose`; and the rounds."""

    plan: Plan
    rounds: tuple[Round, ...]

    @property
    def generations(self) -> int:
        """How many sets of latents were generated, the original's not counted."""
        return sum(found.candidates for found in self.rounds)


def greedy_plan(
    pipe: DiffusionPipeline,
    scores: Scores,
    count: int,
    *,
    start: Sequence[str] = (),
    pool: int | None = None,
    per_macs: bool = False,
    **options,
) -> Greedy:
    """Choose `count` operators one after another, each time the one with which the whole plan scores lowest.

    The score stays the distance to the unpruned model.  With nothing gone, the single `scores` are the scores of the
    plans, so the first round costs nothing; later ones cost a generation per candidate.

    Args:
        start: paths that go in any case and count, such as those whose single scores say that they do nothing.
        pool: candidates beside `start`, the lowest by the single scores. Default: all whose score is finite.
        per_macs: take, and order the pool, by what is added to the score for each MAC; else small ones go first mostly.
        options: `folder`, `batch` and `progress`, as in `score_operators`.
    """
    single = scores.values()
    order, rounds = plan_for(start, scores.operators).paths, []
    cost = {op.path: max(op.macs, 1) if per_macs else 1 for op in scores.operators}
    ranking = sorted(single, key=lambda path: single[path] / cost[path])
    left = [p for p in ranking if math.isfinite(single[p]) and not _touches(p, order)]
    size = len(left) if pool is None else pool
    for name, value in (("count", count), ("pool", size)):
        check_whole(name, value, 1)
    left = left[:size]
    while len(order) < count:
        if not left:
            raise ValueError(f"count={count}, but only {len(order)} operators fit beside one another. Raise pool.")
        found, now = single, 0.0
        if order:
            sets = [order, *([*order, path] for path in left)]
            now, *values = [s.score for s in _scored(pipe, scores, sets, options)]
            found = dict(zip(left, values, strict=True))
        price = {path: (found[path] - now) / cost[path] for path in left if math.isfinite(found[path])}
        if not price:
            raise ValueError(f"With {len(order)} operators gone, each of the {len(left)} others breaks the model.")
        taken = min(price, key=price.__getitem__)
        rounds.append(Round((taken,), found[taken], len(left) if order else 0))
        order.append(taken)
        left = [path for path in left if not _touches(path, order)]
    return Greedy(plan_for(order, scores.operators), tuple(rounds))


def _touches(path: str, others: Sequence[str]) -> bool:
    """Whether an operator is one of the others, lies inside one, or holds one."""
    return any(f"{path}.".startswith(f"{other}.") or other.startswith(f"{path}.") for other in others)


def pairs_of(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return all pairs of which neither operator lies inside the other."""
    return [(a, b) for a, b in combinations(paths, 2) if not _touches(a, [b])]


@dataclass(frozen=True)
class Together:
    """The score of operators that were changed together, and two predictions from their single scores.

    `sum` of the single scores is what choosing the lowest takes for granted. `linear` is the norm of the summed shifts:
    exact if each change moves averages and deviations by itself, whatever else is changed; never above `sum`. Where
    `joint`, the score of all changes, lies above `linear` the operators make each other worse; below, they spoil the
    same.
    """

    paths: tuple[str, ...]
    joint: float
    sum: float
    linear: float


def score_together(pipe: DiffusionPipeline, scores: Scores, sets: Sequence[Sequence[str]], **options) -> list[Together]:
    """Score sets of operators that are changed together, on the latents of the single scores.

    `scores` are those of the pipeline's operators, one at a time, with averages and standard deviations. Each of `sets`
    is some paths, none inside another of its set. `options` are as in `greedy_plan`.
    """
    for paths in sets:
        if len(plan_for(paths, scores.operators)) != len(paths):
            raise ValueError(f"{list(paths)}: one of these operators lies inside another.")
    singles = [[scores[path] for path in paths] for paths in sets]
    if any(s.avg is None for some in singles for s in (*some, scores.original)):
        raise ValueError("These scores hold no averages and standard deviations. Score the operators again.")
    found = []
    for paths, some, both in zip(sets, singles, _scored(pipe, scores, sets, options), strict=True):
        avg = torch.stack([s.avg - scores.original.avg for s in some]).sum(0)
        std = torch.stack([s.std - scores.original.std for s in some]).sum(0)
        linear = sum(torch.linalg.vector_norm(shift).item() for shift in (avg, std))
        found.append(Together(tuple(paths), both.score, sum(s.score for s in some), linear))
    return found


def _scored(pipe: DiffusionPipeline, scores: Scores, sets: Sequence[Sequence[str]], options: Mapping) -> list:
    """Return the scores of sets of changes, on the latents of the single scores."""
    plans = [plan_for(paths, scores.operators) for paths in sets]
    return score_plans(pipe, plans=plans, **{**scores.sampling, **options})
