"""Figures of chapters 11 to 15: steps that are alike, who reads whom, and which cells of a grid are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Patch
from torch import Tensor

from ..widgets.schedule_editor import short_name
from . import draw

if TYPE_CHECKING:
    from pruning_lib.steps.schedule import Schedule
    from pruning_lib.steps.units import Unit
    from pruning_lib.steps.wiring import Wiring

# Used again, computed for nobody, computed; told apart by lightness as well.
CELLS = ("#edeae2", "#aaa69b", draw.COLOURS[0])
WORDS = ("used again", "dead work", "computed")
NAMED = 60  # more rows than this have no names
LEAST = 1e-6  # records keep six places: differences below are drawn as this


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
    figure, axes = draw.new_figure(max(sum(widths) + 1.3, 4.2), min(size * len(names), 7) + 1.1, alt, **grid)
    for ax, (name, state) in zip(axes[0], states.items(), strict=True):
        _cells(ax, state)
        draw.title(ax, name)
        ax.set_xlabel("step", fontsize=9)
    if len(names) <= NAMED:
        draw.name_units(axes[0, 0], names)
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
    draw.count_calls(ax, calls)
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
    across, beside = ([p for p in pairs if (p[1] - p[0] > 1) == far and p[1] > p[0]] for far in (True, False))
    longest = max(across, key=lambda pair: pair[1] - pair[0], default=None)
    alt = f"{n} units on a line: {len(beside)} read the one before, {len(across)} connections reach across"
    alt += f", the longest from {names[longest[0]]} to {names[longest[1]]}." if longest else "."
    figure, ax = draw.one_panel(7.6, 3.6, alt)
    for pair in beside:
        ax.plot(pair, [0, 0], color=draw.INK, linewidth=1.2)
    for source, reader in across:
        middle, width = (source + reader) / 2, reader - source
        arc = {"theta1": 0, "theta2": 180, "color": draw.COLOURS[0], "linewidth": 1.3}
        ax.add_patch(Arc((middle, 0), width, 0.9 * width, **arc))
    ends = sorted(wiring.output)
    ax.plot(range(n), [0] * n, "o", color=draw.INK, markersize=5)
    ax.plot(ends, [0] * len(ends), "s", color=draw.COLOURS[1], markersize=8, label="read by the output")
    height = longest[1] - longest[0] if longest else 1
    ax.set(xlim=(-0.7, n - 0.3), ylim=(-0.6, 0.46 * height + 0.5), yticks=[])
    ax.spines["left"].set_visible(False)
    if n <= NAMED:
        ax.set_xticks(range(n), [short_name(name) for name in names], rotation=90, fontsize=7.5)
    ax.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def toy_paths(paths: Mapping[str, Tensor], start: Tensor) -> Figure:
    """Draw paths `[T + 1, 2]` of a point from `start`, way to leave work out -> path; the first is the reference."""
    (first, exact), *rest = paths.items()
    off = "; ".join(f"{name} ends {(path[-1] - exact[-1]).norm():.2f} away" for name, path in rest)
    alt = f"Paths in the plane. Against {first}: {off}."
    figure, axes = draw.new_figure(2.6 * len(paths), 2.7, alt, ncols=len(paths), sharex=True, sharey=True)
    for ax, (name, path), colour in zip(axes[0], paths.items(), draw.COLOURS, strict=False):
        ax.plot(*exact.T, color="#b8c0c7", linewidth=3)
        ax.plot(*path.T, color=colour, marker="o", markersize=2.5, linewidth=1)
        ax.plot(*start, "s", color=draw.INK, markersize=5)
        ax.plot(*exact[-1], "*", color=draw.INK, markersize=9)
        draw.title(ax, name)
        ax.set(xticks=[], yticks=[])
    return figure


def similarity_maps(panels: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw 1 - cosine of the features of all pairs of steps, title -> cosines `[T, T]`, on one logarithmic scale."""
    apart = {name: np.clip(1 - np.array(rows), LEAST, None) for name, rows in panels.items()}
    words = "; ".join(
        f"{name}: neighbours {np.diagonal(a, 1).mean():.1g}, first and last {a[0, -1]:.1g}".replace("\n", " ")
        for name, a in apart.items()
    )
    alt = f"1 − cosine of features over pairs of steps. {words}."
    figure, axes = draw.new_figure(2.75 * len(panels) + 0.9, 3.1, alt, ncols=len(panels))
    every = np.concatenate([a[~np.eye(len(a), dtype=bool)] for a in apart.values()])
    shown = _maps(axes[0], apart, every, xlabel="step")
    axes[0, 0].set_ylabel("step")
    figure.colorbar(shown, ax=axes, label="1 − cosine", shrink=0.85).ax.tick_params(labelsize=8)
    return figure


def changes(panels: Mapping[str, Sequence[Sequence[float]]], units: Sequence[str]) -> Figure:
    """Draw each unit's relative change of output from one step to the next; title -> `[N, T - 1]` of N `units`."""
    tables, units = {name: np.array(rows) for name, rows in panels.items()}, [short_name(unit) for unit in units]
    words = "; ".join(
        f"{name}: mean {t.mean():.3f}, most {units[int(t.mean(1).argmax())]}, least {units[int(t.mean(1).argmin())]}"
        for name, t in tables.items()
    )
    alt = f"Change per step of {len(units)} units. {words}."
    figure, axes = draw.new_figure(
        3.4 * len(panels) + 2.4, 0.17 * len(units) + 0.9, alt, ncols=len(panels), sharey=True
    )
    every = np.concatenate([table.ravel() for table in tables.values()])
    shown = _maps(axes[0], tables, every, xlabel="from step to step", aspect="auto")
    axes[0, 0].set_yticks(range(len(units)), units, fontsize=7.5)
    figure.colorbar(shown, ax=axes, label="relative change", shrink=0.8).ax.tick_params(labelsize=8)
    return figure


def _maps(axes: Sequence, tables: Mapping[str, np.ndarray], every: np.ndarray, *, xlabel: str, **image):
    """Draw tables as shades on one logarithmic scale that holds `every` value; return the last image."""
    scale = LogNorm(every.min(), every.max())
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        shown = ax.imshow(table, cmap="cividis_r", norm=scale, interpolation="nearest", **image)
        draw.title(ax, name)
        ax.set_xlabel(xlabel)
    return shown


def likeness_and_harm(units: Mapping[str, tuple[float, float]], marks: Mapping[str, str]) -> Figure:
    """Draw what reusing each unit does to the picture against how alike its outputs are.

    `units` is name -> (1 - cosine of neighbouring steps, 1 - SSIM when it is reused), `marks` some names -> labels.
    """
    words = "; ".join(
        f"{label}, {name}: {units[name][0]:.1g} and {units[name][1]:.1g}" for name, label in marks.items()
    )
    alt = f"Harm of reusing each of {len(units)} units against 1 − cosine, both logarithmic. {words}."
    figure, ax = draw.one_panel(5.6, 3.8, alt)
    drawn = {name: np.maximum(place, LEAST) for name, place in units.items()}
    ax.plot(*np.array(list(drawn.values())).T, "o", color=draw.COLOURS[0], markersize=5, alpha=0.8)
    for name, label in marks.items():
        look = {"fontsize": 10, "color": draw.COLOURS[1], "weight": "bold"}
        ax.annotate(label, drawn[name], xytext=(7, 3), textcoords="offset points", **look)
        ax.plot(*drawn[name], "o", markersize=10, markerfacecolor="none", color=draw.COLOURS[1])
    ax.set(xscale="log", yscale="log")
    draw.finish(ax, xlabel="1 − cosine of neighbouring steps", ylabel="1 − SSIM when reused")
    return figure


def rivals(rows: Sequence[Mapping], names: Mapping[str, str], panels: Mapping[int, str]) -> Figure:
    """Draw quality against the share of MACs kept for several ways to leave calls out.

    `rows` have "way", "steps", "macs_ratio" and "figures" with the interval "ssim"; `names` is way -> how it is called,
    `panels` number of steps -> title.
    """
    rows = sorted(rows, key=lambda row: row["macs_ratio"])
    found = {(w, steps): [r for r in rows if (r["way"], r["steps"]) == (w, steps)] for steps in panels for w in names}
    words = []
    for way, name in names.items():
        least = found[way, next(iter(panels))][0]
        words.append(f"{name} {least['figures']['ssim']['value']:.2f} at {100 * least['macs_ratio']:.0f} %")
    alt = f"1 − SSIM falls with the MACs kept, {' and '.join(panels.values())}. SSIM at the fewest: {'; '.join(words)}."
    figure, axes = draw.new_figure(4.6 * len(panels), 3.5, alt, ncols=len(panels), sharey=True)
    for ax, (steps, text) in zip(axes[0], panels.items(), strict=True):
        for way, name, look in draw.looks(names):
            # the unpruned has no place on a logarithmic axis
            part = [row for row in found[way, steps] if row["figures"]["ssim"]["value"] < 1]
            x = [100 * row["macs_ratio"] for row in part]
            value, low, high = (1 - np.array(c) for c in draw.columns([row["figures"]["ssim"] for row in part]))
            draw.error_bars(ax, x, value, high, low, markersize=5, linewidth=1.2, capsize=2, label=name, **look)
        ax.set_title(text, fontsize=10)
        draw.finish(ax, yscale="log", xlabel="MACs kept, %")
    axes[0, 0].set_ylabel("1 − SSIM to the unpruned picture")
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure
