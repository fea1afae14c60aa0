"""What a sweep is made of: axes with measured stops, and one value of each metric for every combination of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from .base import number, refuse


def _plain(value: Any) -> Any:
    """Return NumPy scalars as Python's, NaN as None (NaN is no JSON)."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


class Reading(NamedTuple):
    """One measured value with the ends of its interval and its sample count; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass
class Axis:
    """One thing that a sweep varies.

    `name` is an identifier, used in links and given to `on_change`; `stops` the measured values, numbers in ascending
    order or names, at least one, none twice; `label` what readers see, by default the name; `unit` of numeric stops. A
    `kind` is "ordered" (a slider) or "choice" (radio buttons, a select above eight), by default "ordered" for numbers;
    `labels` has one text per stop, by default the stop itself.
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
        count, falls = len(self.stops), numeric and self.kind == "ordered" and self.stops != sorted(self.stops)
        known = all(isinstance(stop, str | Real) for stop in self.stops)
        refuse(
            f"axis {self.name!r}",
            (not self.name.isidentifier(), "is no identifier, such as 'steps' (label= is what readers see)"),
            (not self.stops, "has no stops"),
            (len(set(self.stops)) < count, f"has a stop twice: {self.stops}"),
            (not known, f"has the stops {self.stops}; numbers and strings are allowed"),
            (self.kind not in ("ordered", "choice"), f"has kind {self.kind!r}; allowed: 'ordered' or 'choice'"),
            (falls, f"is a slider and its stops are not ascending: {self.stops}"),
            (len(self.labels) != count, f"has {count} stops and {len(self.labels)} labels"),
        )

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
    """One measured quantity: `values` has a number for every combination of stops, the last axis varying fastest.

    None stands where nothing was measured. `label` is what readers see, by default the name; `low` and `high` are the
    ends of intervals, and `interval` says what they are, as "95 % interval" or "p10 to p90"; `n` is the sample count,
    for all or one per combination; `digits` are decimals shown.
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
        count, called = len(self.values), f"metric {self.name!r}"
        if isinstance(self.n, Real):
            self.n = [self.n] * count
        for key in ("low", "high", "n"):
            given = getattr(self, key)
            if given is not None:
                setattr(self, key, [_plain(value) for value in given])
                refuse(called, (len(given) != count, f"has {count} values and {len(given)} in {key}"))
        unsaid = self.low is not None and not self.interval
        refuse(
            called,
            ((self.low is None) != (self.high is None), "has only one of low and high; give both or none"),
            (unsaid, "has low and high; say what they are, as in interval='95 % interval'"),
            (all(value is None for value in self.values), "has no measured value; leave it out"),
        )
        for i in range(count):
            found = self.reading(i)
            given = [end for end in (found.low, found.value, found.high) if end is not None]
            wrong = not all(isinstance(end, Real) and math.isfinite(end) for end in given)
            refuse(called, (wrong, f"at {i}: {given}; give finite numbers or None"))
            outside = len(given) == 3 and given != sorted(given)
            refuse(called, (outside, f"at {i}: {found.value} is not between low {found.low} and high {found.high}"))

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
