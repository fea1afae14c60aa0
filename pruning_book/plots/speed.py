"""Figures of the chapter "Zeros are not speed": bytes on disk and times of layers with zeros.

As in `chapter_plots`, each function returns a matplotlib Figure whose words, `figure.alt`, are made from the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from torch import Tensor

from .figure import COLOURS, INK, MARKERS, new_figure

__all__ = ["byte_strips", "expected_and_measured", "patterns", "sizes", "speeds"]

BYTES_A_LINE = 50


def byte_strips(layouts: Mapping[str, tuple[int, int]]) -> Figure:
    """Draw every byte that some layouts take, as a square: bytes of values, and bytes that say where they are.

    Args:
        layouts: name -> (bytes of values, bytes of positions).
    """
    said = "; ".join(f"{name} {values + places}" for name, (values, places) in layouts.items())
    lines = {name: -(-sum(parts) // BYTES_A_LINE) for name, parts in layouts.items()}
    figure, axes = new_figure(7.4, 0.24 * sum(lines.values()) + 0.35 * len(layouts) + 0.5, f"Bytes as squares. {said}.")
    ax, y, ticks = axes[0, 0], 0.0, []
    for name, (values, places) in layouts.items():
        ticks.append((y + lines[name] / 2 - 0.5, f"{name}\n{values + places} bytes"))
        for i in range(values + places):
            at = (i % BYTES_A_LINE, y + i // BYTES_A_LINE - 0.5)
            colour = COLOURS[0] if i < values else COLOURS[1]
            ax.add_patch(
                Rectangle(at, 0.86, 0.8, facecolor=colour, hatch=None if i < values else "////", edgecolor="white")
            )
        y += lines[name] + 0.9
    ax.set(xlim=(0, BYTES_A_LINE), ylim=(y - 0.6, -0.9))
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=9)
    ax.set_xticks([])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(left=False)
    kinds = [
        Rectangle((0, 0), 1, 1, facecolor=COLOURS[0]),
        Rectangle((0, 0), 1, 1, facecolor=COLOURS[1], hatch="////", edgecolor="white"),
    ]
    figure.legend(kinds, ["values", "where they are"], fontsize=9, frameon=False, ncols=2, loc="outside lower right")
    return figure


def sizes(sparsity: Sequence[float], curves: Mapping[str, Sequence[float]], *, dense: str) -> Figure:
    """Draw the sizes of a file over the share of zeros, in per cent of the dense file.

    Args:
        sparsity: shares of zeros, rising.
        curves: name -> sizes as shares of the dense file's.
        dense: what the dense file is, for the axis.
    """
    middle = int(np.argmin(np.abs(np.asarray(sparsity) - 0.5)))
    said = ", ".join(f"{name} {100 * values[middle]:.0f} %" for name, values in curves.items())
    alt = f"File size against sparsity {sparsity[0]:g} to {sparsity[-1]:g}. "
    alt += f"At {sparsity[middle]:g}, of the dense file: {said}."
    figure, axes = new_figure(6.6, 3.8, alt)
    ax = axes[0, 0]
    ax.plot([0, 1], [100, 0], color=INK, linewidth=0.9, linestyle=":", label="if zeros cost nothing")
    for (name, values), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        ax.plot(sparsity, 100 * np.asarray(values), color=colour, marker=marker, markersize=4.5, label=name)
    ax.set(xlabel="sparsity", ylabel=f"% of {dense}", xlim=(-0.02, 1.0), ylim=(0, 160))
    ax.set_xticks(np.linspace(0, 1, 11))
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, frameon=False)
    return figure


def speeds(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]], columns: int = 2) -> Figure:
    """Draw how many times as fast as dense each form runs, over sparsity; below the line at 1 it is slower.

    Args:
        panels: title -> form -> points (sparsity, times as fast, low, high), sparsities above 0 and below 1.
        columns: of panels.
    """
    slowest = min(
        (p[1], form, title, p[0]) for title, forms in panels.items() for form, points in forms.items() for p in points
    )
    at_half = [p[1] for forms in panels.values() for p in forms.get("dense kernel with zeros", []) if p[0] == 0.5]
    alt = f"{len(panels)} panel{'s' * (len(panels) > 1)}: times as fast as dense, against sparsity, both logarithmic. "
    span = f"{min(at_half):.2f}" + (f" to {max(at_half):.2f}" if len(at_half) > 1 else "") if at_half else ""
    alt += f"Zeros in the dense kernel at 0.5: {span}. " if at_half else ""
    alt += f"Slowest: {slowest[1]}, {slowest[2]}, sparsity {slowest[3]:g}, {slowest[0]:.2g} times."
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(
        3.7 * columns if columns > 1 else 5.6,
        2.35 * rows + (0.4 if rows > 1 else 1.0),
        alt,
        nrows=rows,
        ncols=columns,
        sharex=True,
    )
    low = min(p[1] for forms in panels.values() for points in forms.values() for p in points)
    high = max(p[1] for forms in panels.values() for points in forms.values() for p in points)
    for ax, (title, forms) in zip(axes.flat, panels.items(), strict=False):
        _speed_panel(ax, forms, (low / 1.5, high * 1.5))
        ax.set_title(title, fontsize=9, color=INK)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for row in range(rows):
        axes[row, 0].set_ylabel("times as fast", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("sparsity", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=9, frameon=False, ncols=len(names), loc="outside lower center")
    return figure


def _speed_panel(ax: Axes, forms: Mapping[str, Sequence[tuple]], limits: tuple[float, float]) -> None:
    ax.axhspan(limits[0], 1, color=COLOURS[1], alpha=0.07, linewidth=0)
    ax.axhline(1, color=INK, linewidth=0.9)
    for (form, points), colour, marker in zip(forms.items(), COLOURS, MARKERS, strict=False):
        if not points:
            continue
        sparsity, value, low, high = np.array(points).T
        spread = np.clip([value - low, high - value], 0, None)
        ax.errorbar(
            1 - sparsity,
            value,
            yerr=spread,
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.3,
            elinewidth=0.8,
            capsize=1.5,
            label=form,
        )
    ax.set(xscale="log", yscale="log", ylim=limits)
    ax.set_xlim(0.6, 0.008)  # to the right there is less and less left
    ticks = (0.5, 0.8, 0.9, 0.95, 0.99)
    ax.set_xticks([1 - s for s in ticks], [f"{s:g}" for s in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    fine = (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5) if limits[1] / limits[0] < 20 else ()
    marks = [m for m in fine or (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300) if limits[0] <= m <= limits[1]]
    ax.set_yticks(marks, [f"{m:g}" for m in marks])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(alpha=0.2)


def patterns(masks: Mapping[str, Tensor]) -> Figure:
    """Draw masks side by side: kept weights dark, zeros light.

    Args:
        masks: title -> bool `[rows, columns]`, True = kept.
    """
    said = "; ".join(f"{t}: {100 * (1 - m.float().mean().item()):.0f} % zeros" for t, m in masks.items())
    figure, axes = new_figure(2.5 * len(masks), 2.0, f"{len(masks)} masks of a small matrix. {said}.", ncols=len(masks))
    for ax, (title, mask) in zip(axes.flat, masks.items(), strict=True):
        ax.pcolormesh(mask.flip(0).float().numpy(), cmap="Blues", vmin=-0.1, vmax=1.4, edgecolors="white", linewidth=1)
        ax.set_title(title, fontsize=9, color=INK)
        ax.set_aspect("equal")
        ax.set_xticks([]), ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
        for group in range(4, mask.shape[1], 4):
            ax.axvline(group, color=COLOURS[4], linewidth=1)
    return figure


def expected_and_measured(rows: Mapping[str, tuple[float, tuple[float, float, float]]]) -> Figure:
    """Draw, for each form, how many times fewer multiplications it does and how many times as fast it is.

    Args:
        rows: name -> (times fewer multiplications, (times as fast, low, high)).
    """
    best = max(rows, key=lambda name: rows[name][1][0])
    worst = min(rows, key=lambda name: rows[name][1][0])
    alt = f"Bars for {len(rows)} forms: fewer multiplications beside speed. "
    alt += (
        "; ".join(f"{n}: {rows[n][0]:.2f} times fewer, {rows[n][1][0]:.2f} times as fast" for n in (worst, best)) + "."
    )
    figure, axes = new_figure(7.0, 0.42 * len(rows) + 1.0, alt)
    ax, at = axes[0, 0], np.arange(len(rows))
    expected = np.array([e for e, _ in rows.values()])
    value, low, high = np.array([m for _, m in rows.values()]).T
    ax.barh(at - 0.2, expected, height=0.36, color=COLOURS[5], alpha=0.55, label="times fewer multiplications")
    ax.barh(
        at + 0.2,
        value,
        height=0.36,
        color=COLOURS[0],
        label="times as fast, measured",
        xerr=np.clip([value - low, high - value], 0, None),
        ecolor=INK,
        error_kw={"linewidth": 0.9},
    )
    ax.axvline(1, color=INK, linewidth=0.9)
    ax.set_yticks(at, list(rows), fontsize=9)
    ax.invert_yaxis()
    ax.set_xlabel("compared with the dense model")
    ax.grid(axis="x", alpha=0.25)
    ax.legend(fontsize=9, frameon=False, loc="lower right")
    return figure
