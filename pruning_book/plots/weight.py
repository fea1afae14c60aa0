"""Figures of chapter 4: weights and their cut, quality against sparsity, sensitivity, and patterns of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .figure import COLOURS, INK, MARKERS, columns, curves, finish, new_figure, one_panel, panels, title

GONE = "#e3e8ec"


def matrix_cut(matrix: Tensor, mask: Tensor, cut: float) -> Figure:
    """Draw a small matrix `[rows, columns]`, its magnitudes in order with the threshold `cut`, and what the mask (True
    = kept) leaves.
    """
    values, kept = matrix.numpy(), mask.numpy()
    rows, across = values.shape
    size, lost = f"{rows} by {across}", f"{(~kept).sum()} of {values.size}"
    alt = (
        f"Left, a {size} matrix; middle, its magnitudes in rising order, {lost} at or below the cut at {cut:g}, which "
    )
    alt += "are removed; right, the matrix with zeros in their places."
    figure, axes = new_figure(8.4, 2.9, alt, ncols=3, width_ratios=(1, 1.25, 1))
    left, middle, right = axes[0]
    for ax, alive, name in ((left, np.ones_like(kept), "weights"), (right, kept, "pruned")):
        ax.imshow(np.where(alive, 1.0, 0.0), cmap="gray", vmin=-6, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            text, colour = (f"{value:.1f}", INK) if alive[i, j] else ("0", "#8895a1")
            ax.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
        ax.set_xticks(np.arange(-0.5, across), [])
        ax.set_yticks(np.arange(-0.5, rows), [])
        ax.grid(color=GONE), ax.tick_params(length=0)
        title(ax, name, 10)
    order = np.argsort(np.abs(values).ravel(), kind="stable")
    sizes, alive = np.abs(values).ravel()[order], kept.ravel()[order]
    middle.bar(range(values.size), sizes, color=np.where(alive, COLOURS[0], "#b3bdc7"), edgecolor=INK, linewidth=0.4)
    middle.axhline(cut, color=COLOURS[1], linestyle="--", linewidth=1.2, label=f"cut at {cut:g}")
    middle.set(xlabel="weights in order of size", ylabel="magnitude", xticks=[])
    middle.legend(fontsize=9, frameon=False, loc="upper left")
    return figure


def histograms(groups: Mapping[str, Tensor], *, cuts: Mapping[str, float] | None = None) -> Figure:
    """Draw one histogram of weights for each group, with logarithmic counts, all over the same range.

    `groups` is name -> weights of any shape, `cuts` name -> threshold, drawn on both sides.
    """
    values = {name: weights.detach().flatten().float().cpu().numpy() for name, weights in groups.items()}
    end = max(np.quantile(np.abs(v), 0.999) for v in values.values())
    spread = ", ".join(f"{name} {v.std():.3f}" for name, v in values.items())
    count = sum(v.size for v in values.values())
    alt = f"{len(values)} histograms of {count:,} weights, each a peak at zero. Standard deviations: {spread}."
    figure, axes = panels(len(values), 4, 1.75, alt, 0.4, sharex=True)
    for (name, v), ax, colour in zip(values.items(), axes, [*COLOURS, *COLOURS], strict=False):
        ax.hist(np.clip(v, -end, end), bins=np.linspace(-end, end, 82), color=colour)
        ax.set_yscale("log")
        title(ax, f"{name}, {v.size:,}", loc="left")
        for (label, cut), style in zip((cuts or {}).items(), ("--", ":", "-."), strict=False):
            ax.axvline(cut, color=INK, linestyle=style, linewidth=1, label=label)
            ax.axvline(-cut, color=INK, linestyle=style, linewidth=1)
    for ax in axes[(len(axes) - 1) // 2 * 2 :]:
        ax.set_xlabel("weight")
    if cuts:
        axes[0].legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def quality_curves(
    named: Mapping[str, Sequence[Mapping[str, float]]], *, ylabel: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """Draw a quality with its interval against sparsity.

    `named` is name -> points in rising order, each with "sparsity", "value", "low" and "high"; `marks` name of a curve
    -> sparsity at which a vertical line marks it.
    """
    parts = []
    for name, points in named.items():
        middle = min(points, key=lambda p: abs(p["sparsity"] - 0.5))
        parts.append(f"{name} {middle['value']:.3g} at {middle['sparsity']:g}, {points[-1]['value']:.3g} at the end")
    figure, ax = one_panel(6.8, 3.8, f"{ylabel} against sparsity. {'; '.join(parts)}.")
    found = {name: ([p["sparsity"] for p in points], *columns(points)) for name, points in named.items()}
    curves(ax, found, band=0.18, markersize=5)
    for name, colour in zip(named, COLOURS, strict=False):
        if name in (marks or {}):
            ax.axvline(marks[name], color=colour, linestyle=":", linewidth=1.2)
    finish(ax, xlabel="sparsity", ylabel=ylabel, legend={})
    return figure


def sensitivity_strip(errors: Mapping[str, float], blocks: Mapping[str, str], *, ylabel: str) -> Figure:
    """Draw one point for every layer, in the order of the data's way through the model, coloured by block.

    `errors` is layer -> error when only it is pruned, those of 0 or less drawn at the lower edge; `blocks` layer ->
    block.
    """
    names = list(dict.fromkeys(blocks[layer] for layer in errors))
    most, least = max(errors, key=errors.get), min(errors, key=errors.get)
    alt = f"{len(errors)} layers in {len(names)} blocks, error on a logarithmic axis. "
    alt += f"Most sensitive: {most} with {errors[most]:.2g}; least: {least} with {errors[least]:.2g}."
    figure, ax = one_panel(8, 3.6, alt)
    floor = min((e for e in errors.values() if e > 0), default=1e-9) / 2
    start, middles = 0, []
    for index, block in enumerate(names):
        found = [max(e, floor) for layer, e in errors.items() if blocks[layer] == block]
        marker, colour = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]
        ax.plot(range(start, start + len(found)), found, marker, markersize=3.5, color=colour)
        ax.axvline(start - 0.5, color=GONE, linewidth=0.8, zorder=0)
        middles.append(start + len(found) / 2)
        start += len(found)
    ax.set_xticks(middles, names, rotation=35, ha="right", fontsize=8)
    finish(ax, yscale="log", ylabel=ylabel, grid="y")
    return figure


def mask_patterns(masks: Mapping[str, Tensor]) -> Figure:
    """Draw a corner of some masks, name -> bool `[rows, columns]`, kept weights dark."""

    def is_regular(mask: Tensor) -> bool:
        return mask.shape[1] % 4 == 0 and bool((mask.reshape(-1, 4).sum(1) == 2).all())

    shares = "; ".join(f"{name}: {100 * mask.float().mean():.0f} % kept" for name, mask in masks.items())
    regular = [name for name, mask in masks.items() if is_regular(mask)]
    alt = f"Patterns of kept weights, dark squares. {shares}."
    alt += f" Two in every four neighbours: {', '.join(regular)}." if regular else ""
    rows, across = next(iter(masks.values())).shape
    figure, axes = new_figure(2.9 * len(masks), 2.6 * rows / across + 0.5, alt, ncols=len(masks))
    for (name, mask), ax in zip(masks.items(), axes[0], strict=True):
        ax.imshow(mask.cpu(), cmap="Blues", vmin=-0.3, vmax=1.1, interpolation="nearest")
        ax.set_xticks(np.arange(-0.5, across, 4), []), ax.set_yticks([])
        ax.grid(axis="x", color=COLOURS[1], linewidth=0.8), ax.tick_params(length=0)
        title(ax, name, 10)
    return figure
