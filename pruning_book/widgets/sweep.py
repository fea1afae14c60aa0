"""The sweep explorer: move a slider, see the picture, the numbers and the place on the chart change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from pruning_lib.checks import nearest, place

from .axes import Axis, Metric, Reading
from .base import TwinWidget, passport_line
from .histogram import Histogram
from .html import MAX_ALT, scrolling, sentences
from .recorded import load_pictured, save_pictured
from .sheet import Sheet, data_url

__all__ = ["SweepExplorer"]

DATA_VERSION = 1


class SweepExplorer(TwinWidget):
    """Pictures and measurements over a lattice of settings.

    Every combination of stops has one picture and one value per metric, in the order of
    `itertools.product(*stops)`: the last axis varies fastest. Nothing is interpolated.

    Args:
        name: identifies the figure in its page; an address ending in `#name:steps=8` sets it, to the nearest
            measured stop.
        axes: the settings, as `Axis` or as mappings with its fields; or a mapping name -> stops.
        images: one per combination: PIL images, uint8 `[n, h, w, 3]`, a tensor `[n, 3, h, w]`, or a `Sheet`.
        metrics: the quantities, as `Metric` or as mappings with its fields.
        title: one line above the controls.
        picture: what the pictures are, for those who do not see them, as in "image from emoji-sd".
        start: axis name -> stop shown first; by default the first choice and the middle of each slider.
        baseline: axis name -> stop of the picture on the left; the other settings follow the controls.
            `{"steps": 50}` compares with 50 steps of the same prompt. None leaves the left picture out.
        chart: names of the metrics (or of an axis, for x) on the chart's x and y; by default the first two metrics.
            With one metric, the first slider is x. `()` leaves the chart out.
        passport: of the record, or a sentence; shown below.
        sheet_url: where the site serves the sheet, relative to its root, for sheets too large to sit in the page;
            save it with `explorer.sheet.save("assets/…")`. Such a figure has no pictures outside of the site.
        histogram: a panel of weights below the pictures, as `Histogram` or as a mapping with its fields.
        on_change: called with `{axis name: stop}` where a kernel is there; returns
            `{"image": PIL image of the same size, "metrics": {name: value}}`, either may be left out; with a histogram
            also `"histogram": {"removed": counts, "cut": (smallest, largest) or None}`.

    Raises:
        ValueError: the lattice is not complete, a name is unknown, or a part is malformed; the message says which.

    Example:
        >>> SweepExplorer("steps", {"steps": [2, 4]}, images, [Metric("ms", [30, 61], unit="ms")], title="Steps")
    """

    module: ClassVar[str] = "sweep_explorer"

    def __init__(
        self,
        name: str,
        axes: Mapping[str, Sequence] | Sequence[Axis | Mapping],
        images: Any,
        metrics: Sequence[Metric | Mapping],
        *,
        title: str,
        picture: str = "generated image",
        start: Mapping[str, Any] | None = None,
        baseline: Mapping[str, Any] | None = None,
        chart: Sequence[str] | None = None,
        passport: Mapping | str | None = None,
        sheet_url: str | None = None,
        histogram: Histogram | Mapping | None = None,
        on_change: Callable[[dict], Mapping] | None = None,
    ) -> None:
        super().__init__(name, on_change=on_change)
        if isinstance(axes, Mapping):
            axes = [Axis(key, stops) for key, stops in axes.items()]
        self.axes = [axis if isinstance(axis, Axis) else Axis(**axis) for axis in axes]
        self.metrics = [metric if isinstance(metric, Metric) else Metric(**metric) for metric in metrics]
        self.title, self.picture, self.passport, self.sheet_url = title, picture, passport_line(passport), sheet_url
        if not self.axes or not self.metrics:
            raise ValueError(
                f"{len(self.axes)} axes and {len(self.metrics)} metrics were given; one of each is the least"
            )
        for kind, names in (("axes", [a.name for a in self.axes]), ("metrics", [m.name for m in self.metrics])):
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} have a name twice: {names}")
        self.combinations = list(itertools.product(*(range(len(axis.stops)) for axis in self.axes)))
        count, shape = len(self.combinations), " x ".join(f"{len(a.stops)} {a.name}" for a in self.axes)
        for metric in self.metrics:
            if len(metric.values) != count:
                raise ValueError(f"metric {metric.name!r} has {len(metric.values)} values; {shape} make {count}")
        self.sheet = images if isinstance(images, Sheet) else Sheet.pack(images)
        if self.sheet.count != count:
            raise ValueError(f"there are {self.sheet.count} images; {shape} make {count}. Every combination needs one.")
        self.start = self._state(start or {}, "start")
        middle = [len(axis.stops) // 2 if axis.kind == "ordered" else 0 for axis in self.axes]
        self.start = [middle[k] if stop is None else stop for k, stop in enumerate(self.start)]
        self.baseline = None if baseline is None else self._state(baseline, "baseline")
        self.chart = self._chart(chart)
        self.histogram = Histogram(**histogram) if isinstance(histogram, Mapping) else histogram
        self.histogram_places = self.histogram.fit(self.axes) if self.histogram else []

    @classmethod
    def from_record(
        cls, record: str | Path, name: str, *, digits: Mapping[str, int] | None = None, **options: Any
    ) -> SweepExplorer:
        """Make an explorer from a record that `save` wrote.

        Args:
            record: the record's name or file, as `measure.load_record` takes it; the sheet lies beside it.
            name: as for the class.
            digits: metric -> decimals to show, where they are not to be the recorded ones.
            options: as for the class; `passport` comes from the record.

        Raises:
            RecordError: the record cannot be read, or its sheet is missing or not the one that was recorded.
            ValueError: a part does not fit.
        """
        data, sheet, passport = load_pictured(record, "a sweep", ("axes", "metrics"), _combinations)
        options.setdefault("passport", passport)
        metrics = [dict(metric) for metric in data["metrics"]]
        for key, count in (digits or {}).items():
            metrics[place(key, [metric["name"] for metric in metrics], "metric")]["digits"] = count
        return cls(name, data["axes"], sheet, metrics, **options)

    def save(self, path: str | Path, experiment: str, passport: Mapping, **more: Any) -> Path:
        """Write axes, metrics and pictures as a record, `<path>.json`, and a sheet beside it.

        Args:
            path: the record's file, ending in .json.
            experiment: its name.
            passport: as `measure.passport` returns it.
            more: further data, JSON-ready.

        Raises:
            RecordError: the place cannot be written to.
        """
        parts = {"axes": self.axes, "metrics": self.metrics}
        data = {key: [part.to_dict() for part in found] for key, found in parts.items()}
        return save_pictured(path, experiment, {**data, **more}, self.sheet, passport)

    def axis(self, name: str) -> Axis:
        """Return the axis `name`.

        Raises:
            ValueError: there is none.
        """
        return self.axes[place(name, [axis.name for axis in self.axes], "axis")]

    def reading(self, metric: str, **stops: Any) -> Reading:
        """Return what was measured at a combination, as in `reading("latency_ms", prompt="lion", steps=8)`.

        Raises:
            ValueError: an unknown metric or axis, a stop that was not measured, or an axis without a stop.
        """
        found = self.metrics[place(metric, [one.name for one in self.metrics], "metric")]
        return found.reading(self.index(**stops))

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
        source = {"src": self.sheet_url, "site": True} if self.sheet_url else {"src": data_url(self.sheet.image)}
        return {
            "version": DATA_VERSION,
            "name": self.name,
            "title": self.title,
            "picture": self.picture,
            "axes": [{**axis.to_dict(), "phrases": axis.phrases} for axis in self.axes],
            "metrics": [metric.to_dict() for metric in self.metrics],
            "start": self.start,
            "baseline": self.baseline,
            "chart": self.chart,
            "passport": self.passport,
            "histogram": self.histogram and {**self.histogram.to_dict(), "places": self.histogram_places},
            "sheet": {**source, "columns": self.sheet.columns, "width": self.sheet.width, "height": self.sheet.height},
        }

    def answer(self, state: dict) -> dict:
        """Return what `on_change` computed for `state`, checked and ready for the page."""
        given = dict(self.on_change(state))
        metrics = {
            key: getattr(value, "item", lambda v=value: v)() for key, value in (given.get("metrics") or {}).items()
        }
        names = [metric.name for metric in self.metrics]
        for key in metrics:
            if key not in names:
                raise ValueError(f"on_change returned the metric {key!r}, which is not there. {nearest(key, names)}")
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
        return sweep_fallback(self)

    def __repr__(self) -> str:
        return f"SweepExplorer({self.name!r}: {' x '.join(f'{len(a.stops)} {a.name}' for a in self.axes)})"


def _combinations(data: Mapping[str, Any]) -> int:
    return math.prod(len(axis["stops"]) for axis in data["axes"])


def sweep_fallback(explorer: SweepExplorer) -> str:
    """Return the pictures at the start of a sweep, and a table of the stops of its first slider."""
    axes, metrics, start = explorer.axes, explorer.metrics, explorer.start
    along = next((k for k, axis in enumerate(axes) if axis.kind == "ordered"), 0)
    states = {"this stop": start}
    if explorer.baseline is not None:
        base = [own if given is None else given for given, own in zip(explorer.baseline, start, strict=True)]
        states = {"baseline": base, **states}
    figures = ""
    for kind, state in states.items():
        picture = explorer.sheet.tile(explorer.combinations.index(tuple(state)))
        alt = f"{explorer.picture}, {kind}: {explorer.phrase(state)}"[:MAX_ALT]
        figures += (
            f'<figure><img src="{data_url(picture)}" width="{picture.width}" height="{picture.height}" '
            f'alt="{escape(alt)}"><figcaption>{escape(f"{kind}: {explorer.phrase(state)}")}</figcaption></figure>'
        )
    rows = []
    for stop, label in enumerate(axes[along].labels):
        index = explorer.combinations.index((*start[:along], stop, *start[along + 1 :]))
        cells = "".join(f"<td>{escape(metric.text(index))}</td>" for metric in metrics)
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    others = explorer.phrase(start, skip=along)
    intervals = "; ".join(f"{metric.label}: {metric.interval}" for metric in metrics if metric.interval)
    caption = sentences(explorer.title, others and f"Measured for {others}", intervals)
    head = [escape(text) for text in (axes[along].label, *(metric.label for metric in metrics))]
    panel = explorer.histogram
    below = panel.svg(panel.index([(start[k], len(axes[k].stops)) for k in explorer.histogram_places])) if panel else ""
    pictures = f'<div class="pl-pair">{figures}</div>{below}'
    return pictures + scrolling(explorer.title, caption, head, rows, explorer.passport)
