"""The block explorer: a drawn denoiser, with the share that each block has of parameters, MACs, time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, ClassVar

from pruning_lib.checks import nearest

from .base import TwinWidget, number, passport_line, refuse, scrolling, sentences


@dataclass(frozen=True)
class Measure:
    """What is measured of a block, as readers see it; `one` of its unit; peaks of memory are not `additive`."""

    name: str
    label: str
    unit: str
    one: float
    additive: bool = True


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("params", "parameters", "M", 1e6),
        Measure("macs", "MACs, with attention products", "G", 1e9),
        Measure("macs_without_attention", "MACs, without attention products", "G", 1e9),
        Measure("latency_ms", "latency", "ms", 1),
        Measure("activation_mib", "peak activation memory", "MiB", 1, additive=False),
    )
}


@dataclass
class BlockModel:
    """One model of a `BlockExplorer`.

    `blocks` are named in the order in which data flows; `values` is measure (a key of `MEASURES`) -> one value per
    block, in single parameters, single MACs, ms or MiB, None for a block or for a whole measure that was not measured;
    `spread` measure -> (low, high) per block; `notes` measure -> a sentence shown with it: what the spread is, or why
    it was not measured.
    """

    label: str
    blocks: Sequence[str]
    values: Mapping[str, Sequence[float | None] | None]
    spread: Mapping[str, Sequence[tuple[float, float] | None]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = list(self.blocks)
        twice = len(set(self.blocks)) < max(1, len(self.blocks))
        refuse(f"{self.label}:", (twice, f"blocks are {self.blocks}; give at least one, each with a name of its own"))
        for measure in (*self.values, *self.spread, *self.notes):
            unknown = f"measure {measure!r} is unknown. {nearest(str(measure), MEASURES)}"
            refuse(f"{self.label}:", (measure not in MEASURES, unknown))
        self.values = {key: self._checked(key, values) for key, values in self.values.items() if values is not None}
        refuse(f"{self.label}:", (not self.values, f"no measure was given; allowed: {', '.join(MEASURES)}"))
        for key, ends in self.spread.items():
            alone = key not in self.values or len(ends) != len(self.blocks)
            refuse(f"{self.label}:", (alone, f"the spread of {key} needs values and one (low, high) per block"))

    def _checked(self, measure: str, given: Sequence[float | None]) -> list[float | None]:
        values = [None if value is None else float(value) for value in given]
        wrong = any(value is not None and not 0 <= value < math.inf for value in values)
        refuse(
            f"{self.label}:",
            (len(values) != len(self.blocks), f"{len(values)} values of {measure} for {len(self.blocks)} blocks"),
            (wrong, f"{measure} must be finite and not negative: {values}"),
            (not any(values), f"{measure} is zero or missing everywhere; give None for 'not measured'"),
        )
        return values

    def scaled(self, measure: str) -> list[float | None] | None:
        """Return the values in the unit that is shown, None where the measure is missing."""
        values, one = self.values.get(measure), MEASURES[measure].one
        return None if values is None else [None if value is None else value / one for value in values]

    def sum(self, measure: str) -> float:
        """Return the sum over the blocks, in the unit that is shown."""
        return sum(value for value in self.scaled(measure) if value is not None)

    def digits(self, measure: str) -> int:
        """Return the decimals that show three figures of the largest block."""
        largest = max(value for value in self.scaled(measure) if value is not None)
        return min(6, max(0, 2 - math.floor(math.log10(largest))))

    def to_dict(self) -> dict:
        """Return what the module draws, in the units that are shown."""
        spread = {}
        for key, ends in self.spread.items():
            one = MEASURES[key].one
            spread[key] = [end and [end[0] / one, end[1] / one] for end in ends]
        told = {"label": self.label, "blocks": self.blocks, "notes": dict(self.notes), "spread": spread}
        shown = {"values": self.scaled, "sums": self.sum, "digits": self.digits}
        return {**told, **{name: {key: read(key) for key in self.values} for name, read in shown.items()}}


class BlockExplorer(TwinWidget):
    """Where parameters, multiplications, time and memory are, block by block.

    `name` identifies the figure; an address ending in `#name:model=sd-1.5&measure=macs` sets it. Each of `models` has a
    label of its own; `title` stands above the controls, `passport`, of the record with the measured values or a
    sentence, below. `start` are the label of the model and the name of the measure shown first, by default the first of
    each.
    """

    module: ClassVar[str] = "block_explorer"

    def __init__(
        self,
        name: str,
        models: Sequence[BlockModel],
        *,
        title: str,
        start: tuple[str, str] | None = None,
        passport: Mapping | str | None = None,
    ) -> None:
        super().__init__(name)
        self.models = list(models)
        labels = [model.label for model in self.models]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"models are {labels}; give at least one, each with a label of its own")
        self.measures = [measure for key, measure in MEASURES.items() if any(key in m.values for m in self.models)]
        self.title, self.passport = title, passport_line(passport)
        known = [measure.name for measure in self.measures]
        label, measure = start or (labels[0], known[0])
        if label not in labels or measure not in known:
            raise ValueError(f"start is {(label, measure)}; models: {labels}, measures: {known}")
        first = self.models[labels.index(label)]
        values = first.values.get(measure) or next(iter(first.values.values()))
        largest = max(range(len(values)), key=lambda i: values[i] or 0)
        self.start = [labels.index(label), known.index(measure), largest]

    @classmethod
    def from_reports(
        cls, name: str, reports: Mapping[str, Any], *, title: str, latency: Mapping | None = None, **options: Any
    ) -> BlockExplorer:
        """Make an explorer from counted models, and a record of their blocks' times.

        `reports` is label -> `MacsReport`; `latency` the record `block_latency`, as `load_record` returns it, with the
        blocks of the models, and gives the `passport`; None leaves the time out. The rest is as for the class.
        """
        timed = {}
        if latency:
            timed, line = latency["data"]["models"], passport_line(latency["passport"])
            options.setdefault("passport", f"Times: {line[:1].lower()}{line[1:]}")
        models = [block_model(label, report, timed.get(label)) for label, report in reports.items()]
        return cls(name, models, title=title, **options)

    def data(self) -> dict:
        """Return what the module draws."""
        measures = [{key: v for key, v in asdict(m).items() if key != "one"} for m in self.measures]
        told = {"version": 2, "name": self.name, "title": self.title, "passport": self.passport, "start": self.start}
        return {**told, "models": [model.to_dict() for model in self.models], "measures": measures}

    def fallback_html(self) -> str:
        """Return a table with every measure of the model shown first, and bars for the measure shown first."""
        model, first = self.models[self.start[0]], self.measures[self.start[1]]
        head = ["block"]
        columns = []  # the cells of each
        for measure in self.measures:
            values = model.scaled(measure.name) or [None] * len(model.blocks)
            digits = model.digits(measure.name) if measure.name in model.values else 0
            columns.append([number(value, digits) for value in values])
            head.append(escape(f"{measure.label}, {measure.unit}"))
            if measure is first:
                most = max(value or 0 for value in values) or 1
                widths = [round(100 * (value or 0) / most) for value in values]
                bar = '<td aria-hidden="true" style="min-width:6rem"><i style="width:{}%"></i></td>'
                columns.append([bar.format(width) for width in widths])
                head.append("")
        rows = list(zip(model.blocks, *columns, strict=True))
        table = scrolling(self.title, sentences(self.title, f"{model.label}, block by block"), head, rows)
        totals = []
        for model in self.models:
            added = [measure for measure in self.measures if measure.additive and measure.name in model.values]
            sums = (f"{m.label} {number(model.sum(m.name), model.digits(m.name), m.unit)}" for m in added)
            totals.append(f"{model.label}: {', '.join(sums)}")
        told = sentences("In all: " + "; ".join(totals))
        return f'{table}<p class="pl-passport">{told} {escape(self.passport)}</p>'

    def __repr__(self) -> str:
        return f"BlockExplorer({self.name!r}: {', '.join(model.label for model in self.models)})"


def block_model(label: str, report: Any, timed: Mapping | None = None) -> BlockModel:
    """Return a `BlockModel` from a `MacsReport`, with the recorded times of its blocks, or None: only counted."""
    costs = report.by_block()
    counted = ("params", "macs", "macs_without_attention")
    values: dict[str, Any] = {key: [getattr(cost, key) for cost in costs.values()] for key in counted}
    if timed is None:
        why = "Counted without weights, so there is nothing to time."
        return BlockModel(label, list(costs), values, notes={"latency_ms": why})
    unknown = sorted(set(timed["blocks"]) - set(costs))
    if unknown:
        raise ValueError(f"{label}: the record times {unknown}, which the model lacks; its blocks: {list(costs)}")
    blocks = [timed["blocks"].get(name) for name in costs]
    values["latency_ms"] = [found and found["median_ms"] for found in blocks]
    spread = {"latency_ms": [found and (found["p10_ms"], found["p90_ms"]) for found in blocks]}
    note = f"Median of {timed['n']} calls, and p10 to p90."
    return BlockModel(label, list(costs), values, spread, {"latency_ms": note})
