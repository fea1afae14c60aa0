"""Figures of chapter 9: how scores move with latents and steps, whether they add up, and what scoring again brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..rivals.rankings import spearman
from .figure import COLOURS, INK, MARKERS, new_figure

__all__ = ["correlations", "decay", "pairs", "rank_slopes", "sets"]


def rank_slopes(first: Mapping[str, float], second: Mapping[str, float], names: tuple[str, str]) -> Figure:
    """Join each operator's place in one ranking with its place in another.

    Args:
        first, second: path -> score, the same paths.
        names: of the two rankings.
    """
    ranks = [{path: i for i, path in enumerate(sorted(s, key=s.__getitem__))} for s in (first, second)]
    moved = [abs(ranks[0][path] - ranks[1][path]) for path in first]
    found = spearman([first[p] for p in first], [second[p] for p in first])
    alt = f"{len(first)} operators in two rankings, {names[0]} and {names[1]}, joined by lines. Rank correlation "
    alt += f"{found:.3f}; the largest move is {max(moved)} places, {sum(m <= 2 for m in moved)} move by two at most."
    figure, axes = new_figure(6.4, 4.6, alt)
    ax, furthest = axes[0, 0], max(max(moved), 1)
    for path, move in zip(first, moved, strict=True):
        far = move / furthest > 0.6 and move > 2
        colour = COLOURS[1] if far else COLOURS[0]
        ax.plot([0, 1], [ranks[0][path], ranks[1][path]], "o-", color=colour, markersize=3.5, linewidth=1, alpha=0.7)
    ax.set_xticks([0, 1], names)
    ax.set(ylabel="place in the ranking, the lowest score at 0", xlim=(-0.15, 1.15))
    ax.grid(axis="y", alpha=0.25)
    return figure


def decay(
    counts: Sequence[int],
    measured: Mapping[str, Sequence[float]],
    expected: Mapping[str, Sequence[float]] | None = None,
    *,
    ylabel: str,
) -> Figure:
    """Draw scores against the number of latents, both axes logarithmic.

    Args:
        counts: numbers of latents.
        measured: name -> scores, drawn as points.
        expected: name -> what a formula says, drawn as dashed lines in the same colour.
        ylabel: what is drawn.
    """
    ends = "; ".join(f"{name}: {v[0]:.3g} to {v[-1]:.3g}" for name, v in measured.items())
    alt = f"{ylabel} against the number of latents, {counts[0]} to {counts[-1]}, both axes logarithmic. {ends}."
    figure, axes = new_figure(6.8, 3.8, alt)
    ax = axes[0, 0]
    for (name, values), colour, marker in zip(measured.items(), COLOURS, MARKERS, strict=False):
        ax.plot(counts, values, marker, color=colour, markersize=5.5, label=name)
        if expected:
            ax.plot(counts, expected[name], "--", color=colour, linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlabel="latents", ylabel=ylabel)
    ax.minorticks_off()
    ax.set_xticks(list(counts), [str(n) for n in counts])
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def correlations(
    panels: Mapping[str, Sequence[int]],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    dots: Sequence[tuple[int, float]] = (),
) -> Figure:
    """Draw rank correlations with their intervals, one panel for each thing that is varied.

    Args:
        panels: what is varied -> its values.
        curves: name -> for each panel one interval ("value", "low", "high") per value.
        dots: (value, correlation) pairs in the first panel, such as those of groups that share no latent.
    """
    lowest = min(row["low"] for rows in curves.values() for panel in rows for row in panel)
    words = "; ".join(
        f"{name}, {what}: " + ", ".join(f"{row['value']:.3f}" for row in rows)
        for name, parts in curves.items()
        for what, rows in zip(panels, parts, strict=True)
    )
    figure, axes = new_figure(8.4, 3.6, f"Rank correlation to the full score. {words}.", ncols=len(panels), sharey=True)
    for i, (ax, (what, values)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        for k, (name, parts) in enumerate(curves.items()):
            rows = parts[i]
            at = np.array(values, float) * (1 + 0.06 * k)  # side by side, so that the bars can be told apart
            low, high = ([abs(row["value"] - row[end]) for row in rows] for end in ("low", "high"))
            ax.errorbar(
                at,
                [row["value"] for row in rows],
                yerr=[low, high],
                color=COLOURS[k],
                marker=MARKERS[k],
                markersize=5,
                capsize=3,
                linewidth=1.2,
                label=name,
            )
        if i == 0 and dots:
            ax.plot(*zip(*dots, strict=True), "x", color=INK, markersize=4, alpha=0.6, label="two groups apart")
        ax.set(xscale="log", xlabel=what, ylim=(min(lowest, 0.9, *(value for _, value in dots)) - 0.02, 1.01))
        ax.minorticks_off()
        ax.set_xticks(list(values), [str(v) for v in values])
        ax.grid(alpha=0.25)
    axes[0, 0].set_ylabel("rank correlation")
    axes[0, 0].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def pairs(rows: Sequence[Mapping], worst: Mapping | None = None) -> Figure:
    """Draw the score of pairs against two predictions from the single scores.

    Args:
        rows: with "joint", "sum" and "linear".
        worst: one of them to mark.
    """
    titles = {"sum": "sum of the two scores", "linear": "length of the summed shifts"}
    off = {name: np.array([row["joint"] / row[name] for row in rows]) for name in titles}
    words = "; ".join(
        f"joint over {title}: median {np.median(off[name]):.2f}, {off[name].min():.2f} to {off[name].max():.2f}"
        for name, title in titles.items()
    )
    figure, axes = new_figure(8.2, 3.9, f"Joint score of {len(rows)} pairs against predictions. {words}.", ncols=2)
    every = [row[key] for row in rows for key in ("joint", *titles)]
    ends = [0.8 * min(every), 1.3 * max(every)]
    for ax, (name, title), colour in zip(axes[0], titles.items(), COLOURS, strict=False):
        ax.plot(ends, ends, color=INK, linewidth=1, linestyle=":")
        ax.plot(
            [row[name] for row in rows], [row["joint"] for row in rows], "o", color=colour, markersize=4.5, alpha=0.7
        )
        if worst is not None:
            ax.plot(worst[name], worst["joint"], "o", markersize=12, markerfacecolor="none", color=INK)
        ax.set(xscale="log", yscale="log", xlabel=title, ylabel="score of both together", xlim=ends, ylim=ends)
        ax.grid(alpha=0.25)
    return figure


def sets(rows: Sequence[Mapping], names: Mapping[str, str]) -> Figure:
    """Draw what sets of operators cost in quality and what was promised, against the MACs that they save.

    Args:
        rows: with "by", "count", "macs_ratio", "joint", "sum", "linear" and "ssim", an interval.
        names: value of "by" -> how it is called; of the first, what was promised is drawn as well.
    """
    found = {by: sorted((r for r in rows if r["by"] == by), key=lambda r: r["macs_ratio"]) for by in names}
    words = "; ".join(
        f"{names[by]}: {part[0]['ssim']['value']:.3f} at {100 * part[0]['macs_ratio']:.0f} % to "
        f"{part[-1]['ssim']['value']:.3f} at {100 * part[-1]['macs_ratio']:.0f} %"
        for by, part in found.items()
    )
    first = next(iter(names))
    figure, axes = new_figure(10, 3.7, f"SSIM, and score, against MACs removed. SSIM {words}.", ncols=2)
    quality, scores = axes[0]
    for (by, part), colour, marker in zip(found.items(), COLOURS, MARKERS, strict=False):
        x = [100 * row["macs_ratio"] for row in part]
        quality.plot(
            x, [row["ssim"]["value"] for row in part], color=colour, marker=marker, markersize=5, label=names[by]
        )
        low, high = ([row["ssim"][end] for row in part] for end in ("low", "high"))
        quality.fill_between(x, low, high, color=colour, alpha=0.2)
        scores.plot(x, [row["joint"] for row in part], color=colour, marker=marker, markersize=5, label=names[by])
        if by == first:
            scores.plot(x, [row["sum"] for row in part], color=colour, linewidth=1, linestyle="--")
            scores.plot(x, [row["linear"] for row in part], color=colour, linewidth=1, linestyle=":")
    quality.set(xlabel="MACs removed, %", ylabel="SSIM to the unpruned picture")
    scores.set(xlabel="MACs removed, %", ylabel="score of all together", yscale="log")
    for ax in axes[0]:
        ax.grid(alpha=0.25)
    scores.plot([], [], color=INK, linewidth=1, linestyle="--", label="sum of single scores")
    scores.plot([], [], color=INK, linewidth=1, linestyle=":", label="length of summed shifts")
    scores.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
