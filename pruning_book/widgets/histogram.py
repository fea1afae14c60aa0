"""The panel below a sweep: a histogram of weights, what is removed of each bar at a stop, and where the cut lies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from .axes import Axis

__all__ = ["Histogram", "WeightBins"]

Cut = Sequence[float] | None
WIDTH, HEIGHT = 640, 150


@dataclass(frozen=True)
class WeightBins:
    """Equal bins around zero for the weights of many tensors; what lies beyond is counted in the first and last.

    Args:
        edges: increasing, one more than there are bins.
    """

    edges: tuple[float, ...]

    @classmethod
    def around(cls, weights: Mapping[str, Tensor], bins: int = 61, share: float = 0.995) -> WeightBins:
        """Return bins that hold `share` of all weights.

        Args:
            weights: name -> tensor.
            bins: how many; an odd number has one in the middle.
            share: in (0, 1); the rest lies beyond.
        """
        sizes = torch.cat([weight.detach().abs().flatten().float().cpu() for weight in weights.values()])
        end = torch.kthvalue(sizes, max(1, math.ceil(share * len(sizes)))).values.item() or 1.0
        return cls(tuple(round(float(e), 6) for e in torch.linspace(-end, end, bins + 1)))

    @torch.no_grad()
    def count(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> list[int]:
        """Return how many weights each bin holds; with masks, how many of them are removed.

        Args:
            weights: name -> tensor, unpruned.
            masks: name -> bool tensor, True = kept.
        """
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

    Args:
        edges: of the bins, one more than there are counts.
        counts: weights in each bin, unpruned.
        axes: names of the sweep's axes on which the removal depends.
        removed: for every combination of their stops, the last axis varying fastest: removed weights of each bin.
        cuts: for every combination: smallest and largest threshold among the layers, or None where nothing is cut by
            size. A weight between -threshold and threshold is removed.
        label: of the values, as in "weight".
        title: above the panel.

    Raises:
        ValueError: lists of wrong lengths, more removed than there is, or edges that do not increase.
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
        """Return the places of its axes among those of a sweep.

        Raises:
            ValueError: an axis is not there, or the combinations are not all there.
        """
        names = [axis.name for axis in axes]
        for name in self.axes:
            if name not in names:
                raise ValueError(f"the histogram depends on the axis {name!r}, which is not there; axes: {names}")
        places = [names.index(name) for name in self.axes]
        wanted = math.prod(len(axes[k].stops) for k in places)
        if wanted != len(self.removed):
            raise ValueError(f"the histogram has {len(self.removed)} combinations; its axes make {wanted}")
        return places

    @staticmethod
    def index(stops: Sequence[tuple[int, int]]) -> int:
        """Return the place of a combination, given (stop, number of stops) for each of the axes."""
        place = 0
        for stop, count in stops:
            place = place * count + stop
        return place

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

    def to_dict(self) -> dict[str, Any]:
        """Return what `Histogram(**…)` takes."""
        return {
            "edges": list(self.edges),
            "counts": list(self.counts),
            "axes": list(self.axes),
            "removed": [list(row) for row in self.removed],
            "cuts": [None if cut is None else list(cut) for cut in self.cuts],
            "label": self.label,
            "title": self.title,
        }

    def svg(self, index: int) -> str:
        """Return one combination as a static picture, drawn as the ES module draws it."""
        removed, cut = self.removed[index], self.cuts[index]
        top = math.log10(max(self.counts) + 1)
        wide = WIDTH / len(self.counts)

        def bars(values: Sequence[int], colour: str) -> str:
            heights = [HEIGHT * math.log10(value + 1) / top for value in values]
            parts = (
                f'<rect x="{i * wide:.1f}" y="{HEIGHT - height:.1f}" width="{wide - 1:.1f}" height="{height:.1f}"/>'
                for i, height in enumerate(heights)
                if height
            )
            return f'<g fill="var({colour})">{"".join(parts)}</g>'

        kept = [c - r for c, r in zip(self.counts, removed, strict=True)]
        words = f"{self.title}: {self.words(removed, cut)}"
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}" style="width:100%">'
            f"{bars(self.counts, '--pl-line')}{bars(kept, '--pl-accent')}</svg>"
            f'<p class="pl-passport">{escape(words)}. Blue bars are kept; heights count logarithmically.</p>'
        )
