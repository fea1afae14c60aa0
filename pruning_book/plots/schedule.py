"""Figures of schedules: which cells of the grid are computed, dead or used again; and who reads whom.

Each function returns a matplotlib Figure with an opaque background and its words in `figure.alt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Patch
from torch import Tensor

from ..widgets.editor_grid import short_name
from .figure import COLOURS, INK, new_figure

if TYPE_CHECKING:
    from pruning_lib.steps.schedule import Schedule
    from pruning_lib.steps.units import Units

__all__ = ["schedule_map", "schedule_maps", "table_maps", "wiring_arcs"]

# Used again, computed for nobody, computed; told apart by lightness as well.
CELLS = ("#edeae2", "#aaa69b", COLOURS[0])
WORDS = ("used again", "dead work", "computed")
NAMED = 60  # more rows than this have no names


def table_maps(
    tables: Mapping[str, tuple[Tensor, Tensor]], names: Sequence[str], *, size: float = 0.2, step: str = "step"
) -> Figure:
    """Draw tables of units by calls side by side.

    Args:
        tables: title -> (cells that are on, those of them that are live), both bool `[T, N]`; all of the same N.
        names: of the N units.
        size: inches per cell at most; many calls are drawn narrower.
        step: name of the horizontal axis.

    Raises:
        ValueError: no tables.
    """
    if not tables:
        raise ValueError("There is no table to draw.")
    counts = "; ".join(
        f"{title}: {int(live.sum())} computed, {int((on & ~live).sum())} dead, {int((~on).sum())} used again"
        for title, (on, live) in tables.items()
    )
    alt = f"{len(names)} units (rows) by {step} (columns), which cells are computed. {counts}."
    widths = [min(size * len(on), 6 / len(tables) + 1) for on, _ in tables.values()]
    height = min(size * len(names), 7) + 1.1
    grid = {"nrows": 1, "ncols": len(tables), "sharey": True, "gridspec_kw": {"width_ratios": widths}}
    figure, axes = new_figure(max(sum(widths) + 1.3, 4.2), height, alt, **grid)
    for ax, (title, (on, live)) in zip(axes[0], tables.items(), strict=True):
        _cells(ax, on, live)
        ax.set_title(title, fontsize=9, color=INK)
        ax.set_xlabel(step, fontsize=9)
    if len(names) <= NAMED:
        axes[0, 0].set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=7.5)
    shown = [any(bool(part.any()) for part in parts) for parts in _kinds(tables)]
    handles = [
        Patch(facecolor=colour, edgecolor="#7b8794", label=word)
        for colour, word, there in zip(CELLS, WORDS, shown, strict=True)
        if there
    ]
    figure.legend(handles=handles[::-1], loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def schedule_map(schedule: Schedule, *, title: str | None = None) -> Figure:
    """Draw one schedule: the kept and removed map over calls and units.

    Args:
        schedule: what to draw.
        title: by default its method and its share of the MACs.
    """
    return schedule_maps({title or f"{schedule.label}, {100 * schedule.macs_ratio():.0f} % of MACs": schedule})


def schedule_maps(schedules: Mapping[str, Schedule]) -> Figure:
    """Draw several schedules of the same units side by side, title -> schedule.

    Raises:
        ValueError: none, or schedules of other units.
    """
    names = {schedule.grid.names for schedule in schedules.values()}
    if len(names) != 1:
        raise ValueError(f"{len(schedules)} schedules of {len(names)} lists of units; draw those of one.")
    return table_maps({title: (s.on, s.live()) for title, s in schedules.items()}, names.pop())


def wiring_arcs(units: Units) -> Figure:
    """Draw who reads whom: units along a line, a short step to the next one, an arc for every connection across.

    Args:
        units: of any denoiser, at any grain.
    """
    wiring, n = units.wiring, len(units)
    across = [
        (source, reader) for reader, read in enumerate(wiring.inputs) for source in sorted(read) if reader - source > 1
    ]
    beside = sum(reader - 1 in read for reader, read in enumerate(wiring.inputs) if reader)
    longest = max(across, key=lambda pair: pair[1] - pair[0], default=None)
    alt = f"{n} units of {units.class_name} on a line: {beside} read the one before, "
    alt += f"{len(across)} connections reach across"
    alt += f", the longest from {units.names[longest[0]]} to {units.names[longest[1]]}." if longest else "."
    figure, axes = new_figure(7.6, 3.6, alt)
    ax = axes[0, 0]
    for reader, read in enumerate(wiring.inputs):
        if reader and reader - 1 in read:
            ax.plot([reader - 1, reader], [0, 0], color=INK, linewidth=1.2)
    for source, reader in across:
        width = reader - source
        arc = Arc(((source + reader) / 2, 0), width, 0.9 * width, theta1=0, theta2=180, color=COLOURS[0], linewidth=1.3)
        ax.add_patch(arc)
    ends = sorted(wiring.output)
    ax.plot(range(n), [0] * n, "o", color=INK, markersize=5)
    ax.plot(ends, [0] * len(ends), "s", color=COLOURS[1], markersize=8, label="read by the output")
    ax.set(xlim=(-0.7, n - 0.3), ylim=(-0.6, 0.46 * max([reader - s for s, reader in across], default=1) + 0.5))
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if n <= NAMED:
        ax.set_xticks(range(n), [short_name(name) for name in units.names], rotation=90, fontsize=7.5)
    ax.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def _cells(ax: Axes, on: Tensor, live: Tensor) -> None:
    """Draw one table: light, grey, dark; dead work is crossed as well."""
    state = (on.int() + live.int()).T.numpy()  # 0 off, 1 on but dead, 2 live
    units, calls = state.shape
    ax.imshow(state, cmap=ListedColormap(CELLS), vmin=0, vmax=2, aspect="auto", interpolation="none")
    ax.set_xticks(np.arange(calls - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(units - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=0.6 if calls <= 30 else 0.3)
    ax.tick_params(which="both", length=0)
    far = 1 if calls <= 12 else 5 if calls <= 30 else 10
    ax.set_xticks(range(far - 1, calls, far), [str(t + 1) for t in range(far - 1, calls, far)], fontsize=8)
    for unit, call in zip(*np.where(state == 1), strict=True):
        ax.plot([call - 0.3, call + 0.3], [unit + 0.3, unit - 0.3], color="white", linewidth=0.8)


def _kinds(tables: Mapping[str, tuple[Tensor, Tensor]]) -> list[list[Tensor]]:
    """Return, for each kind of cell, where it is in each table."""
    pairs = list(tables.values())
    return [[~on for on, _ in pairs], [on & ~live for on, live in pairs], [live for _, live in pairs]]
