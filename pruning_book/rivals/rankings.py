"""Do two ways of scoring agree?  Spearman's rank correlation with an interval, and how much two choices have in common.

Only the order matters for choosing, so scores from few latents, few steps or another formula are as good as the full
ones where they put the operators in the same order.

Rankings to hold a score against: chance, size, and how much an operator adds.

A ranking is a list of paths, the first to go at the front, as `choose` and `Scores.ranked` have it.  A score that does
not beat these has learned nothing from the latents it was computed with.

Greedy re-scoring: after each operator that goes, score the others again with it gone.

The score stays the distance to the unpruned model, so what is compared in each round is the whole plan.  It costs one
generation per candidate and round; taking several a round, or looking at the lowest of the single scores only, costs
less.

Do scores add up?  Two operators are changed together, and the score is held against the sum of the single ones.

Choosing the lowest scores takes for granted that harm adds up.  Three predictions can be compared:

- `sum`, what that choice assumes;
- `linear`, the norm of the summed shifts: exact if each change moves averages and deviations by itself, whatever else
  is changed; by the triangle inequality it is never above `sum`;
- the truth, `joint`.

Above `linear` the two make each other worse; below it, they spoil the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning_lib.denoisers import denoiser_of
from pruning_lib.interval import Interval, bootstrap_interval
from pruning_lib.operators.find import Operators, find_operators
from pruning_lib.operators.plan import Plan, plan_for
from pruning_lib.operators.replace import replacement
from pruning_lib.operators.score import score_plans
from pruning_lib.operators.scores import Formula, OperatorScore, Scores, formula_of
from pruning_lib.sampling import LatentSampler

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "Greedy",
    "Round",
    "Together",
    "contributions",
    "greedy_plan",
    "output_ranking",
    "overlap",
    "pairs_of",
    "params_ranking",
    "random_ranking",
    "rank_agreement",
    "score_together",
    "spearman",
]


def spearman(a: Sequence[float] | Tensor, b: Sequence[float] | Tensor) -> float:
    """Return Spearman's rank correlation, in [-1, 1]: the correlation of the ranks; equal values share their mean rank.

    Args:
        a, b: `[n]`, n >= 2; infinite values are ranked last, so scores need not be finite.

    Raises:
        ValueError: other shapes, NaN, or values that are all equal, which have no order.
    """
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2 or a.isnan().any() or b.isnan().any():
        raise ValueError(
            f"Expected two rows of at least 2 numbers, none NaN; got shapes {list(a.shape)}, {list(b.shape)}."
        )
    x, y = (_ranks(v) - (len(v) + 1) / 2 for v in (a, b))
    scale = (x.square().sum() * y.square().sum()).sqrt().item()
    if scale == 0:
        raise ValueError("All values are equal on one side, so they have no order to compare.")
    return (x @ y).item() / scale


def rank_agreement(
    a: Mapping[str, float], b: Mapping[str, float], *, n_boot: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the rank correlation of two scorings of the same operators, with a bootstrap interval over operators.

    The interval says how far the figure would move with other operators; not how it would move with other latents.

    Args:
        a, b: path -> score, as `Scores.values` gives them, with the same paths.
        n_boot, level, seed: as in `measure.bootstrap_interval`.

    Raises:
        ValueError: different operators, fewer than three, or options out of range.

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
    spearman(pairs[:, 0], pairs[:, 1])  # refuses what has no order
    ranks = torch.stack([_ranks(pairs[:, 0]), _ranks(pairs[:, 1])], 1)  # finite, where scores may be infinite
    return bootstrap_interval(ranks, _correlation, n_boot=n_boot, level=level, seed=seed)


def overlap(a: Mapping[str, float], b: Mapping[str, float], count: int) -> float:
    """Return the share of the `count` lowest of one scoring that are among the `count` lowest of the other, 0 to 1.

    Two choices by chance have count / n in common.

    Raises:
        ValueError: count out of range, or different operators.
    """
    if a.keys() != b.keys() or not 1 <= count <= len(a):
        raise ValueError(
            f"count={count}, {len(a)} and {len(b)} operators; expected the same operators, and a count from 1 to their "
            "number."
        )
    first, second = (set(sorted(s, key=s.__getitem__)[:count]) for s in (a, b))
    return len(first & second) / count


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place].double()


def _correlation(pairs: Tensor) -> float:
    try:
        return spearman(pairs[:, 0], pairs[:, 1])
    except ValueError:  # a resample of a single operator, many times over
        return 0.0


def random_ranking(operators: Operators, seed: int = 0) -> list[str]:
    """Return the paths in an order drawn by chance.

    Args:
        operators: as `find_operators` lists them.
        seed: of the order.
    """
    order = torch.randperm(len(operators), generator=torch.Generator().manual_seed(seed)).tolist()
    return [operators[i].path for i in order]


def params_ranking(operators: Operators, *, largest_first: bool = False) -> list[str]:
    """Return the paths by number of parameters; equal ones in the order in which they run.

    Args:
        operators: as `find_operators` lists them.
        largest_first: False removes small operators first, as if size were worth; True the large ones, as if it were
            only cost.
    """
    sign = -1 if largest_first else 1
    return [op.path for op in sorted(operators, key=lambda op: sign * op.params)]


def output_ranking(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Sequence[int] | None,
    *,
    operators: Operators | None = None,
    **sampling,
) -> list[str]:
    """Return the paths by what each operator adds, least first; arguments as in `contributions`."""
    found = contributions(pipe, prompts, operators=operators, **sampling)
    return sorted(found, key=found.__getitem__)


@torch.no_grad()
def contributions(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Sequence[int] | None,
    *,
    operators: Operators | None = None,
    **sampling,
) -> dict[str, float]:
    """Measure what each operator adds to the stream while the unpruned pipeline generates.

    At every call the operator's default modification gets the same input; the contribution is the mean of
    |output - output of the modification| over elements, latents and steps.  For a residual branch that is the mean
    absolute value of the branch.  One generation serves all operators, where a score needs one for each; what is not
    seen is how the rest of the model reacts.

    Args:
        pipe: a diffusers pipeline whose denoiser is of a known family; left as it was.
        prompts: as in `score_operators`; equal arguments mean equal latents.
        operators: which ones. Default: all of `find_operators`.
        sampling: `num_latents`, `steps`, `guidance_scale`, `seed`, `batch` and `options`, as in `LatentSampler`.

    Returns:
        Path -> contribution >= 0, in the units of the stream there, in the order of `operators`.

    Raises:
        TypeError: not a pipeline with a denoiser of a known family.
        ValueError: no prompts, or numbers out of range.

    Example:
        >>> added = contributions(pipe, ["lion", "pizza"], num_latents=2, steps=4)
        >>> min(added, key=added.get)
    """
    _, denoiser = denoiser_of(pipe)
    sampler = LatentSampler(pipe, prompts, **sampling)
    operators = find_operators(denoiser) if operators is None else operators
    with _Meter(denoiser, operators) as meter:
        sampler.draw()
    return {path: float(meter.total[path]) / max(meter.count[path], 1) for path in operators.paths}


class _Meter:
    """Hooks that compare every operator with its modification on the inputs it gets."""

    def __init__(self, denoiser: nn.Module, operators: Operators):
        self.total = dict.fromkeys(operators.paths, 0.0)
        self.count = dict.fromkeys(operators.paths, 0)
        self._busy, self._hooks = False, []
        # All replacements are made first: some share inner modules, hooks included, with what they replace.
        pairs = {op.path: denoiser.get_submodule(op.path) for op in operators}
        made = {op.path: replacement(pairs[op.path], op.modifications[0]) for op in operators}
        for path, module in pairs.items():
            self._hooks.append(module.register_forward_hook(self._hook(path, made[path]), with_kwargs=True))

    def _hook(self, path: str, cheap: nn.Module):
        def compare(module, args, kwargs, output):
            if self._busy:  # a replacement is running, and calls a module that it shares
                return
            self._busy = True
            try:
                difference = (_tensor(output).float() - _tensor(cheap(*args, **kwargs)).float()).abs()
            finally:
                self._busy = False
            self.total[path] += difference.sum(dtype=torch.float64)  # read at the end: each reading waits
            self.count[path] += difference.numel()

        return compare

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()


def _tensor(output: Tensor | tuple | object) -> Tensor:
    output = getattr(output, "sample", output)  # a transformer of a UNet returns an object by default
    return output[0] if isinstance(output, tuple) else output


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
    pipe: DiffusionPipeline,
    scores: Scores,
    count: int,
    *,
    start: Sequence[str] = (),
    per_round: int = 1,
    pool: int | None = None,
    per_macs: bool = False,
    formula: str | Formula = "paper",
    folder: str | Path | None = None,
    **options,
) -> Greedy:
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
            raise ValueError(f"count={count}, but only {len(order)} operators fit beside one another. Raise pool.")
        found, now = single, 0.0
        if order:
            sets = [order, *([*order, path] for path in left)]
            plans = [plan_for(paths, scores.operators) for paths in sets]
            scored = score_plans(pipe, scores.sampling["prompts"], plans, folder=folder, **{**sampling, **options})
            now, *values = [worth(scores.original, s) if s.is_finite else math.inf for s in scored]
            found = dict(zip(left, values, strict=True))
        price = {path: (found[path] - now) / (macs[path] if per_macs else 1) for path in left}
        candidates = len(left) if order else 0
        room, taken = min(per_round, count - len(order)), []
        for path in sorted(left, key=price.__getitem__):
            if len(taken) < room and math.isfinite(found[path]) and not _touches(path, taken):
                taken.append(path)
        if not taken:
            raise ValueError(f"With {len(order)} operators gone, each of the {len(left)} others breaks the model.")
        order += taken
        left = [path for path in left if not _touches(path, order)]
        rounds.append(Round(tuple(taken), found[taken[0]], candidates))
    return Greedy(plan_for(order, scores.operators), tuple(order), tuple(rounds))


def _touches(path: str, others: Sequence[str]) -> bool:
    """Whether an operator is one of the others, lies inside one, or holds one."""
    return any(f"{path}.".startswith(f"{o}.") or o.startswith(f"{path}.") for o in others)


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
    return [(a, b) for a, b in combinations(paths, 2) if not a.startswith(f"{b}.") and not b.startswith(f"{a}.")]


def score_together(pipe: DiffusionPipeline, scores: Scores, sets: Sequence[Sequence[str]], **options) -> list[Together]:
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
            tuple(paths),
            both.avg_dist + both.std_dist,
            sum(s.avg_dist + s.std_dist for s in some),
            _linear(scores.original, some),
        )
        for paths, some, both in zip(sets, singles, joint, strict=True)
    ]


def _linear(original: OperatorScore, some: Sequence[OperatorScore]) -> float:
    def shifted(name: str) -> Tensor:
        return torch.stack([getattr(s, name) - getattr(original, name) for s in some]).sum(0)

    return sum(torch.linalg.vector_norm(shifted(name)).item() for name in ("avg", "std"))
