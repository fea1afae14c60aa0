"""Figures of chapter 9: how scores move with latents and steps, whether they add up, and what scoring again brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..rivals.rankings import spearman
from .figure import BESIDE, COLOURS, INK, columns, error_bars, finish, log_places, looks, new_figure, one_panel


def rank_slopes(first: Mapping[str, float], second: Mapping[str, float], names: tuple[str, str]) -> Figure:
    """Join each operator's place in one ranking with its place in another; `first`, `second`: path -> score."""
    ranks = [{path: i for i, path in enumerate(sorted(s, key=s.__getitem__))} for s in (first, second)]
    moved = [abs(ranks[0][path] - ranks[1][path]) for path in first]
    found = spearman([first[p] for p in first], [second[p] for p in first])
    alt = f"{len(first)} operators in two rankings, {names[0]} and {names[1]}, joined by lines. Rank correlation "
    alt += f"{found:.3f}; the largest move is {max(moved)} places, {sum(m <= 2 for m in moved)} move by two at most."
    figure, ax = one_panel(6.4, 4.6, alt)
    furthest = max(*moved, 1)
    for path, move in zip(first, moved, strict=True):
        colour = COLOURS[1] if move / furthest > 0.6 and move > 2 else COLOURS[0]
        ax.plot([0, 1], [rank[path] for rank in ranks], "o-", color=colour, markersize=3.5, linewidth=1, alpha=0.7)
    ax.set_xticks([0, 1], names)
    finish(ax, ylabel="place in the ranking, the lowest score at 0", xlim=(-0.15, 1.15), grid="y")
    return figure


def decay(
    counts: Sequence[int],
    measured: Mapping[str, Sequence[float]],
    expected: Mapping[str, Sequence[float]] | None = None,
    *,
    ylabel: str,
) -> Figure:
    """Draw scores against the number of latents, both axes logarithmic.

    `measured` is name -> a score for each of `counts`, drawn as points; `expected` is name -> what a formula says,
    drawn as dashed lines in the same colour.
    """
    ends = "; ".join(f"{name}: {v[0]:.3g} to {v[-1]:.3g}" for name, v in measured.items())
    alt = f"{ylabel} against the number of latents, {counts[0]} to {counts[-1]}, both axes logarithmic. {ends}."
    figure, ax = one_panel(6.8, 3.8, alt)
    for name, values, look in looks(measured):
        ax.plot(counts, values, linestyle="none", markersize=5.5, label=name, **look)
        if expected:
            ax.plot(counts, expected[name], "--", color=look["color"], linewidth=1.2)
    ax.set_yscale("log")
    log_places(ax, counts)
    finish(ax, xlabel="latents", ylabel=ylabel, legend={"fontsize": 8, **BESIDE})
    return figure


def correlations(
    panels: Mapping[str, Sequence[int]],
    named: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    dots: Sequence[tuple[int, float]] = (),
) -> Figure:
    """Draw rank correlations with their intervals, one panel for each thing that is varied.

    `panels` is what is varied -> its values, `named` name -> for each panel one interval per value. `dots` are (value,
    correlation) pairs in the first panel, such as those of groups that share no latent.
    """
    lowest = min(row["low"] for rows in named.values() for panel in rows for row in panel)
    words = "; ".join(
        f"{name}, {what}: " + ", ".join(f"{row['value']:.3f}" for row in rows)
        for name, parts in named.items()
        for what, rows in zip(panels, parts, strict=True)
    )
    figure, axes = new_figure(8.4, 3.6, f"Rank correlation to the full score. {words}.", ncols=len(panels), sharey=True)
    bottom = min(lowest, 0.9, *(value for _, value in dots)) - 0.02
    for i, (ax, (what, values)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        for k, (name, parts, look) in enumerate(looks(named)):
            at = np.array(values, float) * (1 + 0.06 * k)  # side by side, so that the bars can be told apart
            error_bars(ax, at, *columns(parts[i]), markersize=5, capsize=3, linewidth=1.2, label=name, **look)
        if i == 0 and dots:
            ax.plot(*zip(*dots, strict=True), "x", color=INK, markersize=4, alpha=0.6, label="two groups apart")
        log_places(ax, values)
        finish(ax, xlabel=what, ylim=(bottom, 1.01))
    axes[0, 0].set_ylabel("rank correlation")
    axes[0, 0].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def pairs(rows: Sequence[Mapping], worst: Mapping | None = None) -> Figure:
    """Draw the scores of pairs ("joint") against two predictions ("sum", "linear"); `worst`, one of them, is marked."""
    titles = {"sum": "sum of the two scores", "linear": "length of the summed shifts"}
    off = {name: np.array([row["joint"] / row[name] for row in rows]) for name in titles}
    words = "; ".join(
        f"joint over {title}: median {np.median(off[name]):.2f}, {off[name].min():.2f} to {off[name].max():.2f}"
        for name, title in titles.items()
    )
    figure, axes = new_figure(8.2, 3.9, f"Joint score of {len(rows)} pairs against predictions. {words}.", ncols=2)
    every = [row[key] for row in rows for key in ("joint", *titles)]
    ends = [0.8 * min(every), 1.3 * max(every)]
    joint = [row["joint"] for row in rows]
    for ax, (name, title), colour in zip(axes[0], titles.items(), COLOURS, strict=False):
        ax.plot(ends, ends, color=INK, linewidth=1, linestyle=":")
        ax.plot([row[name] for row in rows], joint, "o", color=colour, markersize=4.5, alpha=0.7)
        if worst is not None:
            ax.plot(worst[name], worst["joint"], "o", markersize=12, markerfacecolor="none", color=INK)
        both = {"xscale": "log", "yscale": "log", "xlim": ends, "ylim": ends}
        finish(ax, xlabel=title, ylabel="score of both together", **both)
    return figure


def sets(rows: Sequence[Mapping], names: Mapping[str, str]) -> Figure:
    """Draw what sets of operators cost in quality and what was promised, against the MACs that they save.

    `rows` have "by", "macs_ratio", "joint", "sum", "linear" and "ssim", an interval; `names` is value of "by" -> how it
    is called, and for the first of them what was promised is drawn as well.
    """
    found = {
        name: sorted((r for r in rows if r["by"] == by), key=lambda r: r["macs_ratio"]) for by, name in names.items()
    }

    def place(row: Mapping) -> str:
        return f"{row['ssim']['value']:.3f} at {100 * row['macs_ratio']:.0f} %"

    words = "; ".join(f"{name}: {place(part[0])} to {place(part[-1])}" for name, part in found.items())
    figure, axes = new_figure(10, 3.7, f"SSIM, and score, against MACs removed. SSIM {words}.", ncols=2)
    quality, scores = axes[0]
    promised = {"sum": ("--", "sum of single scores"), "linear": (":", "length of summed shifts")}
    for i, (name, part, look) in enumerate(looks(found)):
        x = [100 * row["macs_ratio"] for row in part]
        value, low, high = columns([row["ssim"] for row in part])
        quality.plot(x, value, markersize=5, label=name, **look)
        quality.fill_between(x, low, high, color=look["color"], alpha=0.2)
        scores.plot(x, [row["joint"] for row in part], markersize=5, label=name, **look)
        for key, (style, _) in promised.items() if i == 0 else ():
            scores.plot(x, [row[key] for row in part], color=look["color"], linewidth=1, linestyle=style)
    for style, label in promised.values():
        scores.plot([], [], color=INK, linewidth=1, linestyle=style, label=label)
    finish(quality, xlabel="MACs removed, %", ylabel="SSIM to the unpruned picture")
    legend = {"fontsize": 8, **BESIDE}
    finish(scores, xlabel="MACs removed, %", ylabel="score of all together", yscale="log", legend=legend)
    return figure
