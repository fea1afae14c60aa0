"""Figures of chapter 11: how alike a denoiser's features are from step to step, and what leaving calls out costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from ..widgets.schedule_editor import short_name
from .figure import COLOURS, INK, columns, error_bars, finish, looks, new_figure, one_panel, title

LEAST = 1e-6  # records keep six places: differences below are drawn as this


def toy_paths(paths: Mapping[str, Tensor], start: Tensor) -> Figure:
    """Draw the paths of one point from `start` under several ways to leave work out; the first is the reference.

    `paths` is name -> places after every step, `[T + 1, 2]`.
    """
    (first, exact), *rest = paths.items()
    off = "; ".join(f"{name} ends {(path[-1] - exact[-1]).norm():.2f} away" for name, path in rest)
    alt = f"Paths in the plane. Against {first}: {off}."
    figure, axes = new_figure(2.6 * len(paths), 2.7, alt, ncols=len(paths), sharex=True, sharey=True)
    for ax, (name, path), colour in zip(axes[0], paths.items(), COLOURS, strict=False):
        ax.plot(*exact.T, color="#b8c0c7", linewidth=3)
        ax.plot(*path.T, color=colour, marker="o", markersize=2.5, linewidth=1)
        ax.plot(*start, "s", color=INK, markersize=5)
        ax.plot(*exact[-1], "*", color=INK, markersize=9)
        title(ax, name)
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
    figure, axes = new_figure(2.75 * len(panels) + 0.9, 3.1, alt, ncols=len(panels))
    every = np.concatenate([a[~np.eye(len(a), dtype=bool)] for a in apart.values()])
    shown = _maps(axes[0], apart, every, xlabel="step")
    axes[0, 0].set_ylabel("step")
    figure.colorbar(shown, ax=axes, label="1 − cosine", shrink=0.85).ax.tick_params(labelsize=8)
    return figure


def changes(panels: Mapping[str, Sequence[Sequence[float]]], units: Sequence[str]) -> Figure:
    """Draw by how much every unit's output changes from one step to the next, relative to its length; title -> `[N, T -
    1]`.
    """
    tables, units = {name: np.array(rows) for name, rows in panels.items()}, [short_name(unit) for unit in units]
    words = "; ".join(
        f"{name}: mean {t.mean():.3f}, most {units[int(t.mean(1).argmax())]}, least {units[int(t.mean(1).argmin())]}"
        for name, t in tables.items()
    )
    alt = f"Change per step of {len(units)} units. {words}."
    figure, axes = new_figure(3.4 * len(panels) + 2.4, 0.17 * len(units) + 0.9, alt, ncols=len(panels), sharey=True)
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
        title(ax, name)
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
    figure, ax = one_panel(5.6, 3.8, alt)
    drawn = {name: np.maximum(place, LEAST) for name, place in units.items()}
    ax.plot(*np.array(list(drawn.values())).T, "o", color=COLOURS[0], markersize=5, alpha=0.8)
    for name, label in marks.items():
        look = {"fontsize": 10, "color": COLOURS[1], "weight": "bold"}
        ax.annotate(label, drawn[name], xytext=(7, 3), textcoords="offset points", **look)
        ax.plot(*drawn[name], "o", markersize=10, markerfacecolor="none", color=COLOURS[1])
    ax.set(xscale="log", yscale="log")
    finish(ax, xlabel="1 − cosine of neighbouring steps", ylabel="1 − SSIM when reused")
    return figure


def rivals(rows: Sequence[Mapping], names: Mapping[str, str], panels: Mapping[int, str]) -> Figure:
    """Draw quality against the share of MACs kept for several ways to leave calls out.

    `rows` have "way", "steps", "macs_ratio" and "figures" with the interval "ssim"; `names` is way -> how it is called,
    `panels` number of steps -> title.
    """
    found = {
        (way, steps): sorted(
            (row for row in rows if (row["way"], row["steps"]) == (way, steps)), key=lambda row: row["macs_ratio"]
        )
        for steps in panels
        for way in names
    }
    words = []
    for way, name in names.items():
        least = found[way, next(iter(panels))][0]
        words.append(f"{name} {least['figures']['ssim']['value']:.2f} at {100 * least['macs_ratio']:.0f} %")
    alt = f"1 − SSIM falls with the MACs kept, {' and '.join(panels.values())}. SSIM at the fewest: {'; '.join(words)}."
    figure, axes = new_figure(4.6 * len(panels), 3.5, alt, ncols=len(panels), sharey=True)
    for ax, (steps, text) in zip(axes[0], panels.items(), strict=True):
        for way, name, look in looks(names):
            # the unpruned has no place on a logarithmic axis
            part = [row for row in found[way, steps] if row["figures"]["ssim"]["value"] < 1]
            x = [100 * row["macs_ratio"] for row in part]
            value, low, high = (1 - np.array(c) for c in columns([row["figures"]["ssim"] for row in part]))
            error_bars(ax, x, value, high, low, markersize=5, linewidth=1.2, capsize=2, label=name, **look)
        ax.set_title(text, fontsize=10)
        finish(ax, yscale="log", xlabel="MACs kept, %")
    axes[0, 0].set_ylabel("1 − SSIM to the unpruned picture")
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure
