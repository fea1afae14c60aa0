"""Do two ways of scoring agree?  Spearman's rank correlation with an interval, and how much two choices have in common.

Only the order matters for choosing, so scores from few latents, few steps or another formula are as good as the full
ones where they put the operators in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..measure.interval import Interval, bootstrap_interval

__all__ = ["overlap", "rank_agreement", "spearman"]


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
        raise ValueError(
            f"The scores are of different operators; {len(odd)} are in one only, such as {odd[0]!r}."
        )
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
