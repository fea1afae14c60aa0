"""What a sweep is made of: axes with measured stops, and one value of each metric for every combination of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .base import number


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
        stops: the measured values, numbers in ascending order or names; at least one, none twice.
        label: what readers see; by default the name.
        unit: of numeric stops.
        kind: "ordered" (a slider) or "choice" (radio buttons, a select above eight); by default "ordered" for numbers.
        labels: one text per stop; by default the stop itself.
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
        """Return the place of `stop`; a ValueError says that it was not measured."""
        if stop not in self.stops:
            raise ValueError(f"{stop!r} is no stop of axis {self.name!r}; measured: {self.stops}")
        return self.stops.index(stop)


@dataclass
class Metric:
    """One measured quantity, for every combination of stops; the last axis varies fastest.

    Args:
        name: identifier.
        values: one number per combination; None where nothing was measured.
        label: what readers see; by default the name.
        unit: such as "ms".
        low, high: ends of the intervals, one per combination, or None for no intervals.
        interval: what low and high are, such as "95 % interval" or "p10 to p90"; wanted where they are given.
        n: sample count, one number for all or one per combination.
        digits: decimals shown.
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
        for i in range(len(self.values)):
            self._check(i)

    def _check(self, i: int) -> None:
        found = self.reading(i)
        value, low, high = found.value, found.low, found.high
        if any(v is not None and not (isinstance(v, Real) and math.isfinite(v)) for v in (value, low, high)):
            raise ValueError(
                f"metric {self.name!r} at {i}: {value!r}, {low!r} to {high!r}; give finite numbers or None"
            )
        if None not in (value, low, high) and not low <= value <= high:
            raise ValueError(f"metric {self.name!r} at {i}: {value} is not between low {low} and high {high}")

    def reading(self, index: int) -> Reading:
        """Return the value at `index` with its interval and sample count."""
        low, high, n = (None if ends is None else ends[index] for ends in (self.low, self.high, self.n))
        return Reading(self.values[index], low, high, n)

    def text(self, index: int) -> str:
        """Return the value at `index` with its interval, as text."""
        found = self.reading(index)
        text = number(found.value, self.digits, self.unit)
        if found.low is None or found.high is None:
            return text
        return f"{text} ({number(found.low, self.digits)} to {number(found.high, self.digits)})"
