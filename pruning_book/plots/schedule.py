"""Figures of schedules: which cells of the grid are computed, dead or used again; and who reads whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Patch
from torch import Tensor

from ..widgets.schedule_editor import short_name
from .figure import COLOURS, INK, count_calls, new_figure, one_panel, title

if TYPE_CHECKING:
    from pruning_lib.steps.schedule import Schedule
    from pruning_lib.steps.units import Unit
    from pruning_lib.steps.wiring import Wiring

# Used again, computed for nobody, computed; told apart by lightness as well.
CELLS = ("#edeae2", "#aaa69b", COLOURS[0])
WORDS = ("used again", "dead work", "computed")
NAMED = 60  # more rows than this have no names


def table_maps(tables: Mapping[str, tuple[Tensor, Tensor]], names: Sequence[str], *, size: float = 0.2) -> Figure:
    """Draw tables of units by calls side by side; none is a ValueError.

    `tables` is title -> (cells that are on, those of them that are live), both bool `[T, N]` of the same N units,
    `names`. A cell takes at most `size` inches; many calls are drawn narrower.
    """
    if not tables:
        raise ValueError("There is no table to draw.")
    states = {name: (on.int() + live.int()).T.numpy() for name, (on, live) in tables.items()}  # 0 off, 1 dead, 2 live
    counts = "; ".join(
        f"{name}: {(state == 2).sum()} computed, {(state == 1).sum()} dead, {(state == 0).sum()} used again"
        for name, state in states.items()
    )
    alt = f"{len(names)} units (rows) by step (columns), which cells are computed. {counts}."
    widths = [min(size * len(on), 6 / len(tables) + 1) for on, _ in tables.values()]
    grid = {"ncols": len(tables), "sharey": True, "gridspec_kw": {"width_ratios": widths}}
    figure, axes = new_figure(max(sum(widths) + 1.3, 4.2), min(size * len(names), 7) + 1.1, alt, **grid)
    for ax, (name, state) in zip(axes[0], states.items(), strict=True):
        _cells(ax, state)
        title(ax, name)
        ax.set_xlabel("step", fontsize=9)
    if len(names) <= NAMED:
        axes[0, 0].set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=7.5)
    there = [kind for kind in (2, 1, 0) if any((state == kind).any() for state in states.values())]
    handles = [Patch(facecolor=CELLS[kind], edgecolor="#7b8794", label=WORDS[kind]) for kind in there]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _cells(ax: Axes, state: np.ndarray) -> None:
    """Draw one table: light, grey, dark; dead work is crossed as well."""
    units, calls = state.shape
    ax.imshow(state, cmap=ListedColormap(CELLS), vmin=0, vmax=2, aspect="auto", interpolation="none")
    ax.set_xticks(np.arange(calls - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(units - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=0.6 if calls <= 30 else 0.3)
    ax.tick_params(which="both", length=0)
    count_calls(ax, calls)
    for unit, call in zip(*np.where(state == 1), strict=True):
        ax.plot([call - 0.3, call + 0.3], [unit + 0.3, unit - 0.3], color="white", linewidth=0.8)


def schedule_map(schedule: Schedule, *, title: str | None = None) -> Figure:
    """Draw one schedule: the kept and removed map over calls and units; titled by its method and share of the MACs."""
    return schedule_maps({title or f"{schedule.label}, {100 * schedule.macs_ratio():.0f} % of MACs": schedule})


def schedule_maps(schedules: Mapping[str, Schedule]) -> Figure:
    """Draw several schedules side by side, title -> schedule; none, or some of other units, are a ValueError."""
    names = {schedule.grid.names for schedule in schedules.values()}
    if len(names) != 1:
        raise ValueError(f"{len(schedules)} schedules of {len(names)} lists of units; draw those of one.")
    return table_maps({title: (s.on, s.live()) for title, s in schedules.items()}, names.pop())


def wiring_arcs(units: Sequence[Unit], wiring: Wiring) -> Figure:
    """Draw who reads whom: units along a line, a short step to the next one, an arc for every connection across."""
    names, n = [unit.name for unit in units], len(units)
    pairs = [(source, reader) for reader, read in enumerate(wiring.inputs) for source in sorted(read)]
    across = [(source, reader) for source, reader in pairs if reader - source > 1]
    beside = [(source, reader) for source, reader in pairs if reader - source == 1]
    longest = max(across, key=lambda pair: pair[1] - pair[0], default=None)
    alt = f"{n} units on a line: {len(beside)} read the one before, {len(across)} connections reach across"
    alt += f", the longest from {names[longest[0]]} to {names[longest[1]]}." if longest else "."
    figure, ax = one_panel(7.6, 3.6, alt)
    for pair in beside:
        ax.plot(pair, [0, 0], color=INK, linewidth=1.2)
    for source, reader in across:
        middle, width = (source + reader) / 2, reader - source
        arc = {"theta1": 0, "theta2": 180, "color": COLOURS[0], "linewidth": 1.3}
        ax.add_patch(Arc((middle, 0), width, 0.9 * width, **arc))
    ends = sorted(wiring.output)
    ax.plot(range(n), [0] * n, "o", color=INK, markersize=5)
    ax.plot(ends, [0] * len(ends), "s", color=COLOURS[1], markersize=8, label="read by the output")
    height = longest[1] - longest[0] if longest else 1
    ax.set(xlim=(-0.7, n - 0.3), ylim=(-0.6, 0.46 * height + 0.5), yticks=[])
    ax.spines["left"].set_visible(False)
    if n <= NAMED:
        ax.set_xticks(range(n), [short_name(name) for name in names], rotation=90, fontsize=7.5)
    ax.legend(fontsize=8, frameon=False, loc="upper right")
    return figure
