"""The panel below a sweep: a histogram of weights, what is removed of each bar at a stop, and where the cut lies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from .axes import Axis

Cut = Sequence[float] | None
WIDTH, HEIGHT = 640, 150


@dataclass(frozen=True)
class WeightBins:
    """Bins, one fewer than increasing `edges`; the first and the last count what lies beyond too."""

    edges: tuple[float, ...]

    @classmethod
    def around(cls, weights: Mapping[str, Tensor], bins: int = 61, share: float = 0.995) -> WeightBins:
        """Return bins that hold a share in (0, 1) of all weights; an odd number of them has one in the middle."""
        sizes = torch.cat([weight.detach().abs().flatten().float().cpu() for weight in weights.values()])
        end = torch.kthvalue(sizes, max(1, math.ceil(share * len(sizes)))).values.item() or 1.0
        return cls(tuple(round(float(e), 6) for e in torch.linspace(-end, end, bins + 1)))

    @torch.no_grad()
    def count(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> list[int]:
        """Return how many weights, name -> tensor, each bin holds; with masks, True = kept, how many are removed."""
        inner = torch.tensor(self.edges[1:-1])
        total = torch.zeros(len(self.edges) - 1, dtype=torch.int64)
        for name, weight in weights.items():
            values = weight if masks is None else weight[~masks[name]]
            places = torch.bucketize(values.detach().flatten().float().cpu(), inner)
            total += torch.bincount(places, minlength=len(total))
        return total.tolist()


@dataclass
class Histogram:
    """A histogram and what each combination of stops removes of it.

    `edges` of the bins are increasing, one more than there are `counts`, of unpruned weights. The removal depends on
    the sweep's `axes` of these names. For every combination of their stops, the last axis varying fastest, `removed`
    has the removed weights of each bin, and `cuts` the smallest and largest threshold among the layers, or None where
    nothing is cut by size: a weight between -threshold and threshold is removed. `label` is of the values, `title`
    stands above.
    """

    edges: Sequence[float]
    counts: Sequence[int]
    axes: Sequence[str]
    removed: Sequence[Sequence[int]]
    cuts: Sequence[Cut]
    label: str = "weight"
    title: str = "Histogram of the weights"

    def __post_init__(self) -> None:
        edges, counts = list(self.edges), list(self.counts)
        if len(edges) != len(counts) + 1 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(f"a histogram of {len(counts)} bins needs {len(counts) + 1} increasing edges: {edges}")
        if not counts or min(counts) < 0 or not sum(counts):
            raise ValueError(f"counts are {counts}; give at least one bin, none negative, not all empty")
        if len(self.removed) != len(self.cuts):
            raise ValueError(f"there are {len(self.removed)} lists of removed counts and {len(self.cuts)} cuts")
        for removed, cut in zip(self.removed, self.cuts, strict=True):
            self.check(removed, cut)

    def check(self, removed: Sequence[int], cut: Cut) -> None:
        """Raise ValueError unless one combination's values fit the bins."""
        if len(removed) != len(self.counts) or any(not 0 <= r <= c for r, c in zip(removed, self.counts, strict=False)):
            raise ValueError("removed counts must have one number per bin, from 0 to the bin's count")
        if cut is not None and not (len(cut) == 2 and 0 <= cut[0] <= cut[1] < math.inf):
            raise ValueError(f"a cut is {cut}; give (smallest, largest) threshold, or None")

    def fit(self, axes: Sequence[Axis]) -> list[int]:
        """Return the places of its axes among those of a sweep, which must have all of its combinations."""
        names = [axis.name for axis in axes]
        for name in self.axes:
            if name not in names:
                raise ValueError(f"the histogram depends on the axis {name!r}, which is not there; axes: {names}")
        places = [names.index(name) for name in self.axes]
        wanted = math.prod(len(axes[k].stops) for k in places)
        if wanted != len(self.removed):
            raise ValueError(f"the histogram has {len(self.removed)} combinations; its axes make {wanted}")
        return places

    def words(self, removed: Sequence[int], cut: Cut) -> str:
        """Say what one combination removes."""
        gone, n = sum(removed), sum(self.counts)
        text = f"{gone:,} of {n:,} removed ({100 * gone / n:.1f} %)"
        if not gone:
            return "nothing is removed"
        if cut is None:
            return f"{text}, whatever their size"
        where = f"{cut[0]:.3g}" if cut[0] == cut[1] else f"{cut[0]:.3g} to {cut[1]:.3g}, by layer"
        return f"{text}; cut at a size of {where}"

    def svg(self, stops: Sequence[int], axes: Sequence[Axis]) -> str:
        """Return a static picture of one stop of each of a sweep's axes, drawn as the ES module draws it."""
        index = 0
        for k in self.fit(axes):
            index = index * len(axes[k].stops) + stops[k]
        removed = self.removed[index]
        top, wide = math.log10(max(self.counts) + 1), WIDTH / len(self.counts)

        def bars(values: Sequence[int], colour: str) -> str:
            parts = []
            for i, value in enumerate(values):
                height = HEIGHT * math.log10(value + 1) / top
                box = f'x="{i * wide:.1f}" y="{HEIGHT - height:.1f}" width="{wide - 1:.1f}" height="{height:.1f}"'
                parts.append(f"<rect {box}/>" if height else "")
            return f'<g fill="var({colour})">{"".join(parts)}</g>'

        kept = [c - r for c, r in zip(self.counts, removed, strict=True)]
        words = f"{self.title}: {self.words(removed, self.cuts[index])}"
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}" style="width:100%">'
            f"{bars(self.counts, '--pl-line')}{bars(kept, '--pl-accent')}</svg>"
            f'<p class="pl-passport">{escape(words)}. Blue bars are kept; heights count logarithmically.</p>'
        )
