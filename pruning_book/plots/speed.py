"""Figures of the chapter "Zeros are not speed": bytes on disk and times of layers with zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from torch import Tensor

from . import draw

BYTES_A_LINE = 50
VALUES = {"facecolor": draw.COLOURS[0], "edgecolor": "white"}
PLACES = {"facecolor": draw.COLOURS[1], "edgecolor": "white", "hatch": "////"}
Points = Sequence[tuple[float, float, float, float]]  # sparsity, times as fast, low, high


def byte_strips(layouts: Mapping[str, tuple[int, int]]) -> Figure:
    """Draw every byte that some layouts take, as a square; name -> (bytes of values, bytes that say where they are)."""
    said = "; ".join(f"{name} {sum(parts)}" for name, parts in layouts.items())
    lines = [-(-sum(parts) // BYTES_A_LINE) for parts in layouts.values()]
    figure, ax = draw.one_panel(7.4, 0.24 * sum(lines) + 0.35 * len(layouts) + 0.5, f"Bytes as squares. {said}.")
    top, middles = 0.0, []
    for (values, places), high in zip(layouts.values(), lines, strict=True):
        for i in range(values + places):
            place = (i % BYTES_A_LINE, top + i // BYTES_A_LINE - 0.5)
            ax.add_patch(Rectangle(place, 0.86, 0.8, **(VALUES if i < values else PLACES)))
        middles.append(top + high / 2 - 0.5)
        top += high + 0.9
    ax.set(xlim=(0, BYTES_A_LINE), ylim=(top - 0.6, -0.9), xticks=[])
    ax.set_yticks(middles, [f"{name}\n{sum(parts)} bytes" for name, parts in layouts.items()], fontsize=9)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(left=False)
    kinds = [Rectangle((0, 0), 1, 1, facecolor=draw.COLOURS[0]), Rectangle((0, 0), 1, 1, **PLACES)]
    figure.legend(kinds, ["values", "where they are"], fontsize=9, frameon=False, ncols=2, loc="outside lower right")
    return figure


def sizes(sparsity: Sequence[float], named: Mapping[str, Sequence[float]], *, dense: str) -> Figure:
    """Draw the sizes of a file as shares of the dense file's, which is named `dense`, over the share of zeros."""
    middle = int(np.argmin(np.abs(np.asarray(sparsity) - 0.5)))
    said = ", ".join(f"{name} {100 * values[middle]:.0f} %" for name, values in named.items())
    alt = f"File size against sparsity {sparsity[0]:g} to {sparsity[-1]:g}. "
    alt += f"At {sparsity[middle]:g}, of the dense file: {said}."
    figure, ax = draw.one_panel(6.6, 3.8, alt)
    ax.plot([0, 1], [100, 0], color=draw.INK, linewidth=0.9, linestyle=":", label="if zeros cost nothing")
    draw.curves(ax, {name: (sparsity, 100 * np.asarray(values)) for name, values in named.items()}, markersize=4.5)
    ax.set_xticks(np.linspace(0, 1, 11))
    draw.finish(ax, xlabel="sparsity", ylabel=f"% of {dense}", xlim=(-0.02, 1.0), ylim=(0, 160), legend={})
    return figure


def speeds(titled: Mapping[str, Mapping[str, Points]]) -> Figure:
    """Draw times as fast as dense over sparsity: title -> form -> points above 0 and below 1; below 1 is slower."""
    panels = [(form, name, points) for name, forms in titled.items() for form, points in forms.items()]
    every = [(fast, form, name, zeros) for form, name, points in panels for zeros, fast, *_ in points]
    fast, form, name, sparsity = min(every)
    at_half = [speed for speed, kind, _, s in every if kind == "dense kernel with zeros" and s == 0.5]
    alt = f"{len(titled)} panel{'s' * (len(titled) > 1)}: times as fast as dense, against sparsity, both logarithmic. "
    if at_half:
        span = f" to {max(at_half):.2f}" if len(at_half) > 1 else ""
        alt += f"Zeros in the dense kernel at 0.5: {min(at_half):.2f}{span}. "
    alt += f"Slowest: {form}, {name}, sparsity {sparsity:g}, {fast:.2g} times."
    width, room = 3.7 if len(titled) > 1 else 5.6, 0.4 if len(titled) > 2 else 1.0
    figure, axes = draw.panels(len(titled), width, 2.35, alt, room, sharex=True)
    limits = (fast / 1.5, max(every)[0] * 1.5)
    for ax, (what, forms) in zip(axes, titled.items(), strict=True):
        _speed_panel(ax, forms, limits)
        draw.title(ax, what)
    for ax in axes[::2]:
        ax.set_ylabel("times as fast", fontsize=9)
    for ax in axes[(len(axes) - 1) // 2 * 2 :]:
        ax.set_xlabel("sparsity", fontsize=9)
    draw.shared_legend(figure, axes[0], len(axes[0].get_legend_handles_labels()[1]))
    return figure


def _speed_panel(ax: Axes, forms: Mapping[str, Points], limits: tuple[float, float]) -> None:
    ax.axhspan(limits[0], 1, color=draw.COLOURS[1], alpha=0.07, linewidth=0)
    ax.axhline(1, color=draw.INK, linewidth=0.9)
    for form, points, look in draw.looks(forms):
        if points:
            sparsity, *speed = np.array(points).T
            look |= {"markersize": 4, "linewidth": 1.3, "elinewidth": 0.8, "capsize": 1.5}
            draw.error_bars(ax, 1 - sparsity, *speed, label=form, **look)
    ax.set(xscale="log", yscale="log", ylim=limits)
    ax.set_xlim(0.6, 0.008)  # to the right there is less and less left
    ticks = (0.5, 0.8, 0.9, 0.95, 0.99)
    ax.set_xticks([1 - s for s in ticks], [f"{s:g}" for s in ticks])
    fine, coarse = (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5), (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
    marks = [m for m in (fine if limits[1] / limits[0] < 20 else coarse) if limits[0] <= m <= limits[1]]
    ax.set_yticks(marks, [f"{m:g}" for m in marks])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.grid(alpha=0.2)


def patterns(masks: Mapping[str, Tensor]) -> Figure:
    """Draw masks side by side, title -> bool `[rows, columns]`: kept weights dark, zeros light."""
    said = "; ".join(f"{t}: {100 * (1 - m.float().mean().item()):.0f} % zeros" for t, m in masks.items())
    alt = f"{len(masks)} masks of a small matrix. {said}."
    figure, axes = draw.new_figure(2.5 * len(masks), 2.0, alt, ncols=len(masks))
    for ax, (name, mask) in zip(axes.flat, masks.items(), strict=True):
        ax.pcolormesh(mask.flip(0).float().numpy(), cmap="Blues", vmin=-0.1, vmax=1.4, edgecolors="white", linewidth=1)
        draw.title(ax, name)
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        for group in range(4, mask.shape[1], 4):
            ax.axvline(group, color=draw.COLOURS[4], linewidth=1)
    return figure


def expected_and_measured(rows: Mapping[str, tuple[float, tuple[float, float, float]]]) -> Figure:
    """Draw name -> (times fewer multiplications, (times as fast, low, high)) as pairs of bars."""
    order = sorted(rows, key=lambda name: rows[name][1][0])
    ends = [(name, rows[name][0], rows[name][1][0]) for name in (order[0], order[-1])]
    said = "; ".join(f"{name}: {fewer:.2f} times fewer, {fast:.2f} times as fast" for name, fewer, fast in ends)
    alt = f"Bars for {len(rows)} forms: fewer multiplications beside speed. {said}."
    figure, ax = draw.one_panel(7.0, 0.42 * len(rows) + 1.0, alt)
    at = np.arange(len(rows))
    expected = [fewer for fewer, _ in rows.values()]
    value, low, high = np.array([measured for _, measured in rows.values()]).T
    ax.barh(at - 0.2, expected, height=0.36, color=draw.COLOURS[5], alpha=0.55, label="times fewer multiplications")
    spread = {"xerr": np.clip([value - low, high - value], 0, None), "ecolor": draw.INK, "error_kw": {"linewidth": 0.9}}
    ax.barh(at + 0.2, value, height=0.36, color=draw.COLOURS[0], label="times as fast, measured", **spread)
    ax.axvline(1, color=draw.INK, linewidth=0.9)
    draw.name_rows(ax, list(rows), fontsize=9)
    draw.finish(ax, xlabel="compared with the dense model", grid="x", legend={"loc": "lower right"})
    return figure
