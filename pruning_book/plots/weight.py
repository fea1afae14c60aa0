"""Figures of chapter 4: weights and their cut, quality against sparsity, sensitivity, and patterns of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .figure import COLOURS, INK, MARKERS, new_figure

__all__ = ["histograms", "mask_patterns", "matrix_cut", "quality_curves", "sensitivity_strip"]

GONE = "#e3e8ec"


def matrix_cut(matrix: Tensor, mask: Tensor, cut: float) -> Figure:
    """Draw a small matrix, its magnitudes in order, and what the mask leaves.

    Args:
        matrix: `[rows, columns]`, a few of each.
        mask: the same shape, True = kept.
        cut: the threshold, drawn as a line.
    """
    values, kept = matrix.numpy(), mask.numpy()
    rows, columns = values.shape
    lost = int((~kept).sum())
    order = np.argsort(np.abs(values).ravel(), kind="stable")
    alt = f"Left, a {rows} by {columns} matrix; middle, its magnitudes in rising order, {lost} of {values.size} at or "
    alt += f"below the cut at {cut:g}, which are removed; right, the matrix with zeros in their places."
    figure, axes = new_figure(8.4, 2.9, alt, ncols=3, width_ratios=(1, 1.25, 1))
    for ax, shown, title in ((axes[0, 0], None, "weights"), (axes[0, 2], kept, "pruned")):
        alive = np.ones_like(kept) if shown is None else shown
        ax.imshow(np.where(alive, 1.0, 0.0), cmap="gray", vmin=-6, vmax=1)
        for i, j in np.ndindex(rows, columns):
            text = f"{values[i, j]:.1f}" if alive[i, j] else "0"
            ax.text(j, i, text, ha="center", va="center", fontsize=9, color=INK if alive[i, j] else "#8895a1")
        ax.set_xticks(np.arange(-0.5, columns), [])
        ax.set_yticks(np.arange(-0.5, rows), [])
        ax.grid(color=GONE), ax.tick_params(length=0)
        ax.set_title(title, fontsize=10, color=INK)
    ax = axes[0, 1]
    sizes, alive = np.abs(values).ravel()[order], kept.ravel()[order]
    ax.bar(range(values.size), sizes, color=np.where(alive, COLOURS[0], "#b3bdc7"), edgecolor=INK, linewidth=0.4)
    ax.axhline(cut, color=COLOURS[1], linestyle="--", linewidth=1.2, label=f"cut at {cut:g}")
    ax.set(xlabel="weights in order of size", ylabel="magnitude", xticks=[])
    ax.legend(fontsize=9, frameon=False, loc="upper left")
    return figure


def histograms(groups: Mapping[str, Tensor], *, cuts: Mapping[str, float] | None = None, bins: int = 81) -> Figure:
    """Draw one histogram of weights for each group, with logarithmic counts, all over the same range.

    Args:
        groups: name -> weights of any shape.
        cuts: name of a cut -> its threshold, drawn on both sides.
        bins: of each histogram.
    """
    values = {name: weights.detach().flatten().float().cpu().numpy() for name, weights in groups.items()}
    end = max(np.quantile(np.abs(v), 0.999) for v in values.values())
    spread = ", ".join(f"{name} {v.std():.3f}" for name, v in values.items())
    count = sum(v.size for v in values.values())
    alt = f"{len(values)} histograms of {count:,} weights, each a peak at zero. Standard deviations: {spread}."
    across = 2 if len(values) > 1 else 1
    down = -(-len(values) // across)
    figure, axes = new_figure(8, 1.75 * down + 0.4, alt, nrows=down, ncols=across, sharex=True)
    for (name, v), ax, colour in zip(values.items(), axes.flat, [*COLOURS, *COLOURS], strict=False):
        ax.hist(np.clip(v, -end, end), bins=np.linspace(-end, end, bins + 1), color=colour)
        ax.set_yscale("log")
        ax.set_title(f"{name}, {v.size:,}", fontsize=9, color=INK, loc="left")
        for (label, cut), style in zip((cuts or {}).items(), ("--", ":", "-."), strict=False):
            ax.axvline(cut, color=INK, linestyle=style, linewidth=1, label=label)
            ax.axvline(-cut, color=INK, linestyle=style, linewidth=1)
    for ax in axes.flat[len(values) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("weight")
    if cuts:
        axes[0, 0].legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def quality_curves(
    curves: Mapping[str, Sequence[Mapping[str, float]]], *, ylabel: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """Draw a quality with its interval against sparsity.

    Args:
        curves: name -> points in rising order, each with "sparsity", "value", "low" and "high".
        ylabel: name of the quality, with its unit.
        marks: name of a curve -> sparsity at which a vertical line marks it.
    """
    parts = []
    for name, points in curves.items():
        middle = min(points, key=lambda p: abs(p["sparsity"] - 0.5))
        parts.append(f"{name} {middle['value']:.3g} at {middle['sparsity']:g}, {points[-1]['value']:.3g} at the end")
    alt = f"{ylabel} against sparsity. {'; '.join(parts)}."
    figure, axes = new_figure(6.8, 3.8, alt)
    ax = axes[0, 0]
    for (name, points), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        x = [p["sparsity"] for p in points]
        ax.fill_between(x, [p["low"] for p in points], [p["high"] for p in points], color=colour, alpha=0.18, lw=0)
        ax.plot(x, [p["value"] for p in points], color=colour, marker=marker, markersize=5, label=name)
        if name in (marks or {}):
            ax.axvline(marks[name], color=colour, linestyle=":", linewidth=1.2)
    ax.set(xlabel="sparsity", ylabel=ylabel)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, frameon=False)
    return figure


def sensitivity_strip(errors: Mapping[str, float], blocks: Mapping[str, str], *, ylabel: str) -> Figure:
    """Draw one point for every layer, in the order of the data's way through the model, coloured by block.

    Args:
        errors: layer -> error when only it is pruned; values of 0 or less are drawn at the lower edge.
        blocks: layer -> name of its block.
        ylabel: what the error is.
    """
    names = list(dict.fromkeys(blocks[layer] for layer in errors))
    most, least = max(errors, key=errors.get), min(errors, key=errors.get)
    alt = f"{len(errors)} layers in {len(names)} blocks, error on a logarithmic axis. "
    alt += f"Most sensitive: {most} with {errors[most]:.2g}; least: {least} with {errors[least]:.2g}."
    figure, axes = new_figure(8, 3.6, alt)
    ax = axes[0, 0]
    floor = min((e for e in errors.values() if e > 0), default=1e-9) / 2
    start = 0
    for index, block in enumerate(names):
        found = [max(e, floor) for layer, e in errors.items() if blocks[layer] == block]
        ax.plot(
            range(start, start + len(found)),
            found,
            MARKERS[index % len(MARKERS)],
            markersize=3.5,
            color=COLOURS[index % len(COLOURS)],
        )
        ax.axvline(start - 0.5, color=GONE, linewidth=0.8, zorder=0)
        start += len(found)
    counts = [sum(b == block for b in blocks.values()) for block in names]
    middles = np.cumsum(counts) - np.array(counts) / 2
    ax.set_xticks(middles, names, rotation=35, ha="right", fontsize=8)
    ax.set(yscale="log", ylabel=ylabel)
    ax.grid(axis="y", alpha=0.25)
    return figure


def mask_patterns(masks: Mapping[str, Tensor]) -> Figure:
    """Draw a corner of some masks, kept weights dark.

    Args:
        masks: name -> bool `[rows, columns]`, True = kept.
    """
    shares = "; ".join(f"{name}: {100 * mask.float().mean():.0f} % kept" for name, mask in masks.items())
    regular = [name for name, mask in masks.items() if _is_regular(mask)]
    alt = f"Patterns of kept weights, dark squares. {shares}."
    alt += f" Two in every four neighbours: {', '.join(regular)}." if regular else ""
    rows, columns = next(iter(masks.values())).shape
    figure, axes = new_figure(2.9 * len(masks), 2.6 * rows / columns + 0.5, alt, ncols=len(masks))
    for (name, mask), ax in zip(masks.items(), axes[0], strict=True):
        ax.imshow(mask.cpu(), cmap="Blues", vmin=-0.3, vmax=1.1, interpolation="nearest")
        ax.set_xticks(np.arange(-0.5, columns, 4), []), ax.set_yticks([])
        ax.grid(axis="x", color=COLOURS[1], linewidth=0.8), ax.tick_params(length=0)
        ax.set_title(name, fontsize=10, color=INK)
    return figure


def _is_regular(mask: Tensor) -> bool:
    return mask.shape[1] % 4 == 0 and bool((mask.reshape(-1, 4).sum(1) == 2).all())
