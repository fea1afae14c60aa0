"""What a sweep is made of: axes with measured stops, and one value of each metric for every combination of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from numbers import Real
from typing import Any

__all__ = ["Axis", "Metric", "Reading", "number"]


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Return a value as the widgets write it: fixed decimals, commas between thousands; "not measured" for None.

    Halves of the shortest decimal form are rounded up, as browsers do (1.005 becomes 1.01), so that the static table
    and the moving one show the same digits.
    """
    if value is None:
        return "not measured"
    rounded = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{rounded if rounded else abs(rounded):,}" + (f"\u00a0{unit}" if unit else "")


def _plain(value: Any) -> Any:
    """Return NumPy scalars as Python's, NaN as None (NaN is no JSON)."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True)
class Reading:
    """One measured value with the ends of its interval and its sample count; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass
class Axis:
    """One thing that a sweep varies.

    Args:
        name: identifier, used in links and given to `on_change`.
        stops: the measured values, numbers in ascending order or names.
        label: what readers see; by default the name.
        unit: of numeric stops.
        kind: "ordered" (a slider) or "choice" (radio buttons, a select above eight); by default "ordered" for numbers.
        labels: one text per stop; by default the stop itself.

    Raises:
        ValueError: no stops, a stop twice, numbers out of order, or a wrong number of labels.
    """

    name: str
    stops: Sequence
    label: str = ""
    unit: str = ""
    kind: str = ""
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.stops = [_plain(stop) for stop in self.stops]
        numeric = bool(self.stops) and all(isinstance(s, Real) and not isinstance(s, bool) for s in self.stops)
        self.label = self.label or self.name
        self.kind = self.kind or ("ordered" if numeric else "choice")
        self.labels = [str(text) for text in self.labels] or [f"{s:g}" if numeric else str(s) for s in self.stops]
        if not self.name.isidentifier():
            raise ValueError(
                f"axis name is {self.name!r}; give an identifier, such as 'steps' (label= is what readers see)"
            )
        if not self.stops:
            raise ValueError(f"axis {self.name!r} has no stops")
        if len(set(self.stops)) != len(self.stops):
            raise ValueError(f"axis {self.name!r} has a stop twice: {self.stops}")
        if not all(isinstance(stop, str | Real) for stop in self.stops):
            raise ValueError(f"axis {self.name!r} has the stops {self.stops}; numbers and strings are allowed")
        if self.kind not in ("ordered", "choice"):
            raise ValueError(f"axis {self.name!r} has kind {self.kind!r}; allowed: 'ordered' or 'choice'")
        if self.kind == "ordered" and numeric and self.stops != sorted(self.stops):
            raise ValueError(f"axis {self.name!r} is a slider and its stops are not ascending: {self.stops}")
        if len(self.labels) != len(self.stops):
            raise ValueError(f"axis {self.name!r} has {len(self.stops)} stops and {len(self.labels)} labels")

    @property
    def phrases(self) -> list[str]:
        """The stops in words: "steps 8", "ratio 40 %", or the name alone for a choice."""
        if self.kind == "choice":
            return list(self.labels)
        unit = f" {self.unit}" if self.unit else ""
        return [f"{self.label.lower()} {label}{unit}" for label in self.labels]

    def index(self, stop: Any) -> int:
        """Return the place of `stop`.

        Raises:
            ValueError: it was not measured.
        """
        if stop not in self.stops:
            raise ValueError(f"{stop!r} is no stop of axis {self.name!r}; measured: {self.stops}")
        return self.stops.index(stop)

    def to_dict(self) -> dict:
        """Return what `Axis(**…)` takes."""
        return {
            "name": self.name,
            "stops": self.stops,
            "label": self.label,
            "unit": self.unit,
            "kind": self.kind,
            "labels": self.labels,
        }


@dataclass
class Metric:
    """One measured quantity, for every combination of stops; the last axis varies fastest.

    Args:
        name: identifier.
        values: one number per combination; None where nothing was measured.
        label: what readers see; by default the name.
        unit: such as "ms".
        low: lower ends of the intervals, one per combination, or None for no intervals.
        high: upper ends.
        interval: what low and high are, such as "95 % interval" or "p10 to p90"; wanted where they are given.
        n: sample count, one number for all or one per combination.
        digits: decimals shown.

    Raises:
        ValueError: lists of different lengths, intervals that do not hold their value, or no word for what they are.
    """

    name: str
    values: Sequence[float | None]
    label: str = ""
    unit: str = ""
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    interval: str = ""
    n: int | Sequence[int | None] | None = None
    digits: int = 2

    def __post_init__(self) -> None:
        self.label = self.label or self.name
        self.values = [_plain(value) for value in self.values]
        if isinstance(self.n, Real):
            self.n = [_plain(self.n)] * len(self.values)
        for key in ("low", "high", "n"):
            given = getattr(self, key)
            if given is None:
                continue
            setattr(self, key, [_plain(value) for value in given])
            if len(given) != len(self.values):
                raise ValueError(f"metric {self.name!r} has {len(self.values)} values and {len(given)} in {key}")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"metric {self.name!r} has only one of low and high; give both or none")
        if self.low is not None and not self.interval:
            raise ValueError(
                f"metric {self.name!r} has low and high; say what they are, as in interval='95 % interval'"
            )
        if all(value is None for value in self.values):
            raise ValueError(f"metric {self.name!r} has no measured value; leave it out")
        for i, value in enumerate(self.values):
            ends = (self.low[i], self.high[i]) if self.low is not None else (None, None)
            if any(v is not None and not (isinstance(v, Real) and math.isfinite(v)) for v in (value, *ends)):
                raise ValueError(f"metric {self.name!r} at {i}: {value!r}, {ends}; finite numbers or None are allowed")
            if None not in (value, *ends) and not ends[0] <= value <= ends[1]:
                raise ValueError(
                    f"metric {self.name!r} at {i}: {value} is not between low {ends[0]} and high {ends[1]}"
                )

    def reading(self, index: int) -> Reading:
        """Return the value at `index` with its interval and sample count."""
        low, high, n = (None if ends is None else ends[index] for ends in (self.low, self.high, self.n))
        return Reading(self.values[index], low, high, n)

    def text(self, index: int) -> str:
        """Return the value at `index` with its interval, as text."""
        text = number(self.values[index], self.digits, self.unit)
        if self.low is None or self.low[index] is None or self.high[index] is None:
            return text
        return f"{text} ({number(self.low[index], self.digits)} to {number(self.high[index], self.digits)})"

    def to_dict(self) -> dict:
        """Return what `Metric(**…)` takes."""
        return {
            "name": self.name,
            "values": self.values,
            "label": self.label,
            "unit": self.unit,
            "low": self.low,
            "high": self.high,
            "interval": self.interval,
            "n": self.n,
            "digits": self.digits,
        }
