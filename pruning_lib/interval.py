"""Bootstrap intervals: how far a figure would move if the samples, not judge or prompts, had been others.

Efron 1979; percentile method (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .checks import check_number, check_whole


@dataclass(frozen=True)
class Interval:
    """A figure with the range that chance leaves open."""

    value: float  # the statistic of the sample itself
    low: float  # end of the interval, in the unit of `value`
    high: float
    n: int  # number of samples, not of resamples
    level: float = 0.95  # share of intervals made this way that hold the true value, approximately

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields as plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g}, {100 * self.level:g} % interval, n = {self.n})"


def bootstrap_interval(
    values: Tensor | Sequence[float],
    statistic: Callable[[Tensor], float] | None = None,
    *,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a statistic of a sample with its percentile bootstrap interval.

    Where all values are equal its width is 0, which says only that none of the n differed.

    Args:
        values: one finite number per sample `[n]`, n >= 2; or `[n, ...]` with a `statistic` that reads it.
        statistic: maps a resample, same shape as `values`, to a number. Default: the mean.
        n_boot: resamples, >= 100; 1,000 hold the ends of a 95 % interval to about a tenth of its width.
        level: between 0 and 1.
        seed: of the resampling.

    Example:
        >>> bootstrap_interval(psnr(images, pruned))
        Interval(value=31.2, low=30.8, high=31.7, n=256, level=0.95)
    """
    values = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if values.ndim == 0 or (statistic is None and values.ndim != 1):
        raise ValueError(f"Expected one number per sample, shape [n]; got shape {list(values.shape)}.")
    if not values.isfinite().all():
        raise ValueError(
            "Some values are infinite or not a number (PSNR is infinite for equal images). Leave those samples out, "
            "and say so beside the figure."
        )
    check_number("level", level, "(0, 1)")
    draws = resamples(len(values), n_boot=n_boot, seed=seed)
    if statistic is None:
        found, value = torch.cat([values[part].mean(1) for part in draws]), values.mean().item()
    else:
        found = torch.tensor([float(statistic(values[row])) for part in draws for row in part], dtype=torch.float64)
        value = float(statistic(values))
    return Interval(value, *quantile_pair(found, level), len(values), level)


def resamples(n: int, *, n_boot: int, seed: int) -> Iterator[Tensor]:
    """Yield `n_boot` >= 100 rows of indices in batches, int64 `[rows, n]`, n >= 2, drawn with replacement."""
    if n < 2:
        raise ValueError(f"An interval needs at least 2 samples; got {n}.")
    check_whole("n_boot", n_boot, 100)  # of fewer the ends mean little
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, 4_000_000 // n)  # numbers drawn at once: keeps memory below about 64 MiB
    for start in range(0, n_boot, rows):
        yield torch.randint(n, (min(rows, n_boot - start), n), generator=generator)


def quantile_pair(found: Tensor, level: float) -> tuple[float, float]:
    """Return the ends that hold the middle `level` of the numbers `found` `[n_boot]`."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=found.dtype)
    return tuple(torch.quantile(found, ends).tolist())
