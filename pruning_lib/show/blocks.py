"""The block explorer: for a model and a measure, the share of every block, as bars that are a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar

from .lattice import number
from .twin import TwinWidget, passport_line

__all__ = ["BlockExplorer", "BlockModel", "MEASURES"]

DATA_VERSION = 1

# name -> label, unit, what one unit is, whether blocks add up to the model
MEASURES: dict[str, tuple[str, str, float, bool]] = {
    "params": ("parameters", "M", 1e6, True),
    "macs": ("MACs, with attention products", "G", 1e9, True),
    "macs_without_attention": ("MACs, without attention products", "G", 1e9, True),
    "latency_ms": ("latency", "ms", 1, True),
    "activation_mib": ("peak activation memory", "MiB", 1, False),
}


@dataclass
class BlockModel:
    """One model of a `BlockExplorer`.

    Args:
        label: its name, as in "emoji-sd".
        blocks: names of the blocks, in the order in which data flows.
        values: measure (a key of `MEASURES`) -> one value per block, in single parameters, single MACs, ms or MiB;
            None for a block or for a whole measure that was not measured.
        why: measure -> why it was not measured, as in "Counted without weights, so there is nothing to time."

    Raises:
        ValueError: an unknown measure, a wrong number of values, a negative value, or no measure at all.
    """

    label: str
    blocks: Sequence[str]
    values: Mapping[str, Sequence[float | None] | None]
    why: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = list(self.blocks)
        known = {}
        for measure, values in self.values.items():
            if measure not in MEASURES:
                raise ValueError(f"{self.label}: measure {measure!r} is unknown; allowed: {', '.join(MEASURES)}")
            if values is None:
                continue
            values = [None if v is None else float(v) for v in values]
            if len(values) != len(self.blocks):
                raise ValueError(f"{self.label}: {len(values)} values of {measure} for {len(self.blocks)} blocks")
            if any(v is not None and (v < 0 or not math.isfinite(v)) for v in values):
                raise ValueError(f"{self.label}: {measure} must be finite and not negative: {values}")
            if not any(values):
                raise ValueError(f"{self.label}: {measure} is zero or missing everywhere; give None for 'not measured'")
            known[measure] = values
        if not known:
            raise ValueError(f"{self.label}: no measure was given; allowed: {', '.join(MEASURES)}")
        self.values = known

    def scaled(self, measure: str) -> list[float | None] | None:
        """Return the values in the unit that is shown."""
        values, one = self.values.get(measure), MEASURES[measure][2]
        return None if values is None else [None if v is None else v / one for v in values]

    def digits(self, measure: str) -> int:
        """Return the decimals that show three figures of the largest block."""
        largest = max(v for v in self.scaled(measure) if v is not None)
        return min(6, max(0, 2 - math.floor(math.log10(largest))))


class BlockExplorer(TwinWidget):
    """Where parameters, multiplications, time and memory are, block by block.

    Args:
        name: identifies the figure in its page; `<a href="#name:model=sd-1.5&measure=macs">` sets it.
        models: the `BlockModel`s, or mappings with their fields.
        title: one line above the controls.
        start: label of the model and name of the measure shown first; by default the first of each.
        passport: of the record with the measured values, or a sentence; shown below.

    Raises:
        ValueError: no models, one label twice, or an unknown start.
    """

    module: ClassVar[str] = "block_explorer"

    def __init__(
        self, name: str, models: Sequence[BlockModel | Mapping], *, title: str, start: tuple[str, str] | None = None,
        passport: Mapping | str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name)
        self.models = [model if isinstance(model, BlockModel) else BlockModel(**model) for model in models]
        labels = [model.label for model in self.models]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"models are {labels}; give at least one, each with a label of its own")
        self.measures = [m for m in MEASURES if any(m in model.values for model in self.models)]
        self.title, self.passport = title, passport_line(passport)
        label, measure = start or (labels[0], self.measures[0])
        if label not in labels or measure not in self.measures:
            raise ValueError(f"start is {(label, measure)}; models: {labels}, measures: {self.measures}")
        self.start = [labels.index(label), self.measures.index(measure)]

    @staticmethod
    def model(label: str, report: Any, why: Mapping[str, str] | None = None, **measured: Sequence[float]) -> BlockModel:
        """Make a `BlockModel` from a `MacsReport`, with measured values beside the counts.

        Args:
            label: the model's name.
            report: as `count_macs` returns it; its `by_block()` names blocks and their costs.
            why: measure -> why it was not measured.
            measured: `latency_ms=` or `activation_mib=`, one value per block.
        """
        by_block = report.by_block()
        values = {key: [getattr(cost, key) for cost in by_block.values()] for key in ("params", "macs", "macs_without_attention")}
        return BlockModel(label, list(by_block), {**values, **measured}, why or {})

    def data(self) -> dict:
        """Return what the module draws."""
        return {
            "version": DATA_VERSION, "name": self.name, "title": self.title, "passport": self.passport, "start": self.start,
            "measures": [dict(zip(("label", "unit", "one", "additive"), MEASURES[m], strict=True), name=m) for m in self.measures],
            "models": [
                {
                    "label": model.label, "blocks": model.blocks, "why": dict(model.why),
                    "values": {m: model.scaled(m) for m in model.values}, "digits": {m: model.digits(m) for m in model.values},
                }
                for model in self.models
            ],
        }  # fmt: skip

    def fallback_html(self) -> str:
        """Return a table with every measure of the model shown first, with bars for the measure shown first."""
        model, first = self.models[self.start[0]], self.measures[self.start[1]]
        shown = model.scaled(first)
        most = max(v for v in shown if v is not None) if shown else None
        head = "".join(
            f'<th scope="col">{escape(f"{MEASURES[m][0]}, {MEASURES[m][1]}")}</th>' + ("<td></td>" if m == first else "")
            for m in self.measures
        )
        rows = ""
        for i, block in enumerate(model.blocks):
            cells = ""
            for m in self.measures:
                values = model.scaled(m)
                cells += f"<td>{number(values[i], model.digits(m)) if values else 'not measured'}</td>"
                if m == first:
                    width = round(100 * (shown[i] or 0) / most) if shown else 0
                    cells += f'<td aria-hidden="true" style="min-width:6rem"><i style="width:{width}%"></i></td>'
            rows += f'<tr><th scope="row">{escape(block)}</th>{cells}</tr>'
        return (
            f'<div class="pl-scroll" tabindex="0" role="region" aria-label="{escape(self.title)}"><table>'
            f"<caption>{escape(self.title)}. {escape(model.label)}, block by block.</caption>"
            f"<thead><tr><th scope=\"col\">block</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
            f'<p class="pl-passport">{escape(self.passport)}</p>'
        )

    def __repr__(self) -> str:
        return f"BlockExplorer({self.name!r}: {', '.join(model.label for model in self.models)})"
