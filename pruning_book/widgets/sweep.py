"""The sweep explorer: move a slider, see the picture, the numbers and the place on the chart change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from pruning_lib.checks import nearest, place

from .axes import Axis, Metric, Reading
from .base import scrolling, sentences
from .histogram import Histogram
from .pictured import Pictured
from .sheet import data_url


class SweepExplorer(Pictured):
    """Pictures and measurements over a lattice of settings.

    Every combination of stops has one picture and one value per metric, in the order of `itertools.product(*stops)`:
    the last axis varies fastest. Nothing is interpolated.

    Args:
        name: identifies the figure; an address ending in `#name:steps=8` sets it, to the nearest measured stop.
        axes, metrics: settings and quantities, as `Axis` and `Metric` or as mappings with their fields.
        images: one per combination, as `Pictured` takes them.
        start: axis name -> stop shown first; by default the first choice and the middle of each slider.
        baseline: axis name -> stop of the picture on the left; the other settings follow the controls. `{"steps": 50}`
            compares with 50 steps of the same prompt. None leaves the left picture out.
        chart: names of the metrics (or of an axis, for x) on the chart's x and y; by default the first two metrics.
            With one metric, the first slider is x. `()` leaves the chart out.
        histogram: a panel of weights below the pictures, as `Histogram` or as a mapping with its fields.
        options: `title`, `picture`, `passport` and `on_change`, which is called with `{axis name: stop}` where a kernel
            is there; it returns `{"image": PIL image of the same size, "metrics": {name: value}}`, either may be left
            out; with a histogram also `"histogram": {"removed": counts, "cut": (smallest, largest) or None}`.
    """

    module: ClassVar[str] = "sweep_explorer"
    kind: ClassVar[str] = "a sweep"
    fields: ClassVar[tuple[str, ...]] = ("axes", "metrics")

    def __init__(
        self,
        name: str,
        axes: Sequence[Axis | Mapping],
        images: Any,
        metrics: Sequence[Metric | Mapping],
        *,
        start: Mapping[str, Any] | None = None,
        baseline: Mapping[str, Any] | None = None,
        chart: Sequence[str] | None = None,
        histogram: Histogram | Mapping | None = None,
        **options: Any,
    ) -> None:
        self.axes = [axis if isinstance(axis, Axis) else Axis(**axis) for axis in axes]
        self.metrics = [metric if isinstance(metric, Metric) else Metric(**metric) for metric in metrics]
        if not self.axes or not self.metrics:
            given = f"{len(self.axes)} axes and {len(self.metrics)} metrics were given"
            raise ValueError(f"{given}; one of each is the least")
        for kind, parts in (("axes", self.axes), ("metrics", self.metrics)):
            names = [part.name for part in parts]
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} have a name twice: {names}")
        self.combinations = list(itertools.product(*(range(len(axis.stops)) for axis in self.axes)))
        count = len(self.combinations)
        for metric in self.metrics:
            if len(metric.values) != count:
                raise ValueError(f"metric {metric.name!r} has {len(metric.values)} values; {self.shape} make {count}")
        super().__init__(name, images, count, self.shape, **options)
        middle = [len(axis.stops) // 2 if axis.kind == "ordered" else 0 for axis in self.axes]
        given = self._state(start or {}, "start")
        self.start = [middle[k] if stop is None else stop for k, stop in enumerate(given)]
        self.baseline = None if baseline is None else self._state(baseline, "baseline")
        self.chart = self._chart(chart)
        self.histogram = Histogram(**histogram) if isinstance(histogram, Mapping) else histogram
        self.places = self.histogram.fit(self.axes) if self.histogram else []  # of the axes it depends on

    @staticmethod
    def count(data: Mapping[str, Any]) -> int:
        return math.prod(len(axis["stops"]) for axis in data["axes"])

    @classmethod
    def from_record(
        cls, record: str | Path, name: str, *, digits: Mapping[str, int] | None = None, **options: Any
    ) -> SweepExplorer:
        """Make an explorer as `Pictured.from_record` does; `digits`: metric -> decimals, if not the recorded ones."""
        made = super().from_record(record, name, **options)
        for key, count in (digits or {}).items():
            made.metric(key).digits = count
        return made

    def record(self) -> dict[str, Any]:
        return {"axes": [asdict(axis) for axis in self.axes], "metrics": [asdict(metric) for metric in self.metrics]}

    @property
    def shape(self) -> str:
        """Its size in words, as in "2 prompt x 3 steps"."""
        return " x ".join(f"{len(axis.stops)} {axis.name}" for axis in self.axes)

    def axis(self, name: str) -> Axis:
        """Return the axis `name`; a ValueError says that there is none."""
        return self.axes[place(name, [axis.name for axis in self.axes], "axis")]

    def metric(self, name: str) -> Metric:
        """Return the metric `name`; a ValueError says that there is none."""
        return self.metrics[place(name, [metric.name for metric in self.metrics], "metric")]

    def reading(self, metric: str, **stops: Any) -> Reading:
        """Return what was measured at a combination, as in `reading("latency_ms", prompt="lion", steps=8)`."""
        return self.metric(metric).reading(self.index(**stops))

    def index(self, **stops: Any) -> int:
        """Return the place of a combination in `images` and in each metric's values."""
        state = self._state(stops, "index")
        if None in state:
            raise ValueError(f"give a stop for every axis: {[axis.name for axis in self.axes]}")
        return self.combinations.index(tuple(state))

    def _state(self, stops: Mapping[str, Any], what: str) -> list[int | None]:
        names = [axis.name for axis in self.axes]
        for key in stops:
            if key not in names:
                raise ValueError(f"{what} names the axis {key!r}, which is not there. {nearest(key, names)}")
        return [axis.index(stops[axis.name]) if axis.name in stops else None for axis in self.axes]

    def _chart(self, chart: Sequence[str] | None) -> dict | None:
        sliders = [a.name for a in self.axes if a.kind == "ordered" and all(not isinstance(s, str) for s in a.stops)]
        metrics = [metric.name for metric in self.metrics]
        if chart is None:
            chart = metrics[:2] if len(metrics) > 1 else [*sliders[:1], metrics[0]]
            chart = chart if len(chart) == 2 else ()
        if not chart:
            return None
        x, y = chart
        for key, allowed in ((x, metrics + sliders), (y, metrics)):
            if key not in allowed:
                raise ValueError(f"chart names {key!r}, which is not there. {nearest(key, allowed)}")
        return {"x": x, "y": y}

    def data(self) -> dict:
        """Return what the module draws."""
        return {
            **super().data(),
            "axes": [{**asdict(axis), "phrases": axis.phrases} for axis in self.axes],
            "metrics": [asdict(metric) for metric in self.metrics],
            "start": self.start,
            "baseline": self.baseline,
            "chart": self.chart,
            "passport": self.passport,
            "histogram": self.histogram and {**asdict(self.histogram), "places": self.places},
            "sheet": self.tiles(data_url(self.sheet.image)),
        }

    def answer(self, state: dict) -> dict:
        """Return what `on_change` computed for `state`, checked and ready for the page."""
        given = dict(self.on_change(state))
        metrics = {key: v.item() if hasattr(v, "item") else v for key, v in (given.get("metrics") or {}).items()}
        for key in metrics:
            self.metric(key)
        answer: dict[str, Any] = {"metrics": metrics}
        if given.get("image") is not None:
            answer["image"] = self.sheet.url_of(given["image"])
        if self.histogram and given.get("histogram") is not None:
            self.histogram.check(**given["histogram"])
            answer["histogram"] = dict(given["histogram"])
        return answer

    def phrase(self, state: Sequence[int], skip: int | None = None) -> str:
        """Return the stops of `state` in words, without those of axis `skip`."""
        return ", ".join(axis.phrases[state[k]] for k, axis in enumerate(self.axes) if k != skip)

    def fallback_html(self) -> str:
        """Return the pictures and the histogram at the start, and a table of the first slider's stops."""
        start, shown = self.start, []
        states = {"this stop": start}
        if self.baseline is not None:
            base = [own if given is None else given for given, own in zip(self.baseline, start, strict=True)]
            states = {"baseline": base, **states}
        for kind, state in states.items():
            tile = self.sheet.tile(self.combinations.index(tuple(state)))
            shown.append((f"{kind}: {self.phrase(state)}", tile))
        along = next((k for k, axis in enumerate(self.axes) if axis.kind == "ordered"), 0)
        rows = []
        for stop, label in enumerate(self.axes[along].labels):
            index = self.combinations.index((*start[:along], stop, *start[along + 1 :]))
            rows.append([label, *(metric.text(index) for metric in self.metrics)])
        others = self.phrase(start, skip=along)
        intervals = "; ".join(f"{metric.label}: {metric.interval}" for metric in self.metrics if metric.interval)
        caption = sentences(self.title, others and f"Measured for {others}", intervals)
        head = [escape(part.label) for part in (self.axes[along], *self.metrics)]
        below = self.histogram.svg(start, self.axes) if self.histogram else ""
        return f"{self.pair(shown)}{below}{scrolling(self.title, caption, head, rows, self.passport)}"

    def __repr__(self) -> str:
        return f"SweepExplorer({self.name!r}: {self.shape})"
