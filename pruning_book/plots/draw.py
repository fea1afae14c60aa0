"""The common ground of every figure: paper, ink, colours, the words that go with it, and the forms that recur."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..widgets.schedule_editor import short_name

INK = "#1f2933"
COLOURS = ("#0b6e99", "#d1495b", "#6c9a3b", "#8a5a9e", "#c98a1b", "#4d5b66")
MARKERS = "osD^vP"
CHARACTERS = 248  # of alt text
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # where a legend would hide curves


def new_figure(width: float, height: float, alt: str, **grid) -> tuple[Figure, np.ndarray]:
    """Return a figure, in inches, on white, with alternative text, and its axes `[rows, columns]`."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.subplots(squeeze=False, **grid)
    for ax in axes.flat:
        ax.set_facecolor("white")
        ax.tick_params(colors=INK, labelsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    figure.alt = alt if len(alt) <= CHARACTERS else alt[: CHARACTERS - 1] + "…"
    return figure, axes


def one_panel(width: float, height: float, alt: str) -> tuple[Figure, Axes]:
    """Return a figure and its only axes; see `new_figure`."""
    figure, axes = new_figure(width, height, alt)
    return figure, axes[0, 0]


def panels(count: int, width: float, height: float, alt: str, room: float = 0, **grid) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels, two side by side, each so wide and high in inches, and room for a legend."""
    rows, across = (count + 1) // 2, min(count, 2)
    figure, axes = new_figure(across * width, rows * height + room, alt, nrows=rows, ncols=across, **grid)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def looks(named: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict]]:
    """Yield each name, its value, and a colour and a marker of its own."""
    for (name, value), colour, marker in zip(named.items(), COLOURS, MARKERS, strict=False):
        yield name, value, {"color": colour, "marker": marker}


def finish(ax: Axes, *, legend: Mapping | None = None, grid: str = "both", **labels) -> None:
    """Label the axes, as `Axes.set` does, and add a faint grid and, with options for one, a legend."""
    ax.set(**labels)
    ax.grid(axis=grid, alpha=0.25)
    if legend is not None:
        ax.legend(**{"fontsize": 9, "frameon": False, **legend})


def shared_legend(figure: Figure, ax: Axes, across: int) -> None:
    """Put the legend of a panel below the whole figure, in so many columns."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, frameon=False, loc="outside lower center", ncols=across)


def log_places(ax: Axes, places: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with ticks at these places alone."""
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.set_xticks(list(places), [f"{place:g}" for place in places])


def columns(intervals: Sequence[Mapping[str, float]]) -> tuple[list, list, list]:
    """Return the values, the lower and the upper ends of some intervals."""
    value, low, high = ([found[key] for found in intervals] for key in ("value", "low", "high"))
    return value, low, high


def curves(ax: Axes, named: Mapping[str, tuple], *, band: float = 0.15, **line) -> None:
    """Draw name -> (x, y), or (x, y, low, high) with a band around the curve, each in a look of its own."""
    for name, (x, y, *ends), look in looks(named):
        ax.plot(x, y, label=name, **look, **line)
        if ends:
            ax.fill_between(x, *ends, color=look["color"], alpha=band, linewidth=0)


def error_bars(ax: Axes, x: Sequence[float], y: Sequence[float], low: Sequence, high: Sequence, **look) -> None:
    """Draw points with their intervals."""
    y, low, high = (np.asarray(values, float) for values in (y, low, high))
    ax.errorbar(x, y, yerr=np.clip([y - low, high - y], 0, None), **look)


def name_rows(ax: Axes, names: Sequence[str], **font) -> None:
    """Name horizontal bars or rows, the first at the top."""
    ax.set_yticks(range(len(names)), names, **font)
    ax.invert_yaxis()


def title(ax: Axes, text: str, size: float = 9, **place) -> None:
    """Write a title over a panel."""
    ax.set_title(text, fontsize=size, color=INK, **place)


def name_units(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows of a table of units, shortly."""
    ax.set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=7.5)


def count_calls(ax: Axes, calls: int) -> None:
    """Number a horizontal axis of calls, every fifth or tenth of many."""
    far = 1 if calls <= 12 else 5 if calls <= 30 else 10
    ax.set_xticks(range(far - 1, calls, far), [str(t + 1) for t in range(far - 1, calls, far)], fontsize=8)


def beside(ax: Axes, name: str, size: float = 9) -> None:
    """Write the name of a panel on its left."""
    ax.set_ylabel(name, fontsize=size, color=INK, rotation=0, ha="right", va="center")
