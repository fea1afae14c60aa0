"""Figures of chapters 7 and 9: what scores measure, how they are spread and move, and whether they add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..rivals.rankings import spearman
from . import draw

PAPER = "#eef1f4"
# Kinds that share a colour and a marker; there are more kinds than a reader can tell apart.
GROUPS: dict[str, tuple[str, ...]] = {
    "resnet": ("resnet",),
    "transformer": ("transformer", "transformer block"),
    "attention": ("self-attention", "cross-attention"),
    "feed-forward": ("feed-forward",),
    "convolution": ("convolution", "linear", "norm"),
    "sampler": ("downsampler", "upsampler"),
}
LOOKS = {group: {"color": c, "marker": m} for group, c, m in zip(GROUPS, draw.COLOURS, draw.MARKERS, strict=True)}


def group_of(kind: str) -> str:
    """Return the group of a kind."""
    return next(group for group, kinds in GROUPS.items() if kind in kinds)


def stage_of(path: str) -> str:
    """Return the stage of a UNet that an operator lies in: "down 0", "mid", "up 3", or the first part of its path."""
    parts = path.split(".")
    if parts[0] in ("down_blocks", "up_blocks") and len(parts) > 1:
        return f"{parts[0].removesuffix('_blocks')} {parts[1]}"
    return parts[0].removesuffix("_block")


def sorted_scores(rows: Sequence[Mapping]) -> Figure:
    """Draw all scores in rising order, on a logarithmic axis, each with the mark of its kind.

    `rows` are of a record or of `Scores.rows()`, with "path", "kind" and "score"; those without a finite score are left
    out, zeros are drawn at the lower edge.
    """
    rows, values = _finite(rows)
    order = np.argsort([row["score"] for row in rows], kind="stable")
    rows, values = [rows[i] for i in order], values[order]
    alt = f"{len(rows)} scores in rising order on a logarithmic axis, from {values[0]:.2g} ({rows[0]['path']}) to "
    alt += f"{values[-1]:.2g} ({rows[-1]['path']}); the median is {np.median(values):.2g}."
    figure, ax = draw.one_panel(8, 3.6, alt)
    _points(ax, rows, np.arange(len(rows)), values)
    legend = {"fontsize": 8, "loc": "lower right", "ncols": 2}
    draw.finish(ax, yscale="log", xlabel="operators, the lowest score first", ylabel="score", grid="y", legend=legend)
    return figure


def scores_by_kind(rows: Sequence[Mapping], kinds: Sequence[str]) -> Figure:
    """Draw one line of points for each of `kinds`, with a bar at the median; `rows` as of `sorted_scores`."""
    rows, values = _finite(rows)
    found = {kind: values[[row["kind"] == kind for row in rows]] for kind in kinds}
    found = {kind: scores for kind, scores in found.items() if len(scores)}
    medians = {kind: float(np.median(scores)) for kind, scores in found.items()}
    alt = f"Scores of {len(found)} kinds of operators on a logarithmic axis. Median scores: "
    alt += ", ".join(f"{kind} {medians[kind]:.2g}" for kind in sorted(medians, key=medians.get)) + "."
    figure, ax = draw.one_panel(8, 0.36 * len(found) + 1.0, alt)
    shifts = np.random.default_rng(0)
    for row, (kind, scores) in enumerate(found.items()):
        at = row + shifts.uniform(-0.22, 0.22, len(scores))
        ax.plot(scores, at, linestyle="none", markersize=4, alpha=0.75, **LOOKS[group_of(kind)])
        ax.plot([medians[kind]] * 2, [row - 0.36, row + 0.36], color=draw.INK, linewidth=2)
    draw.name_rows(ax, [f"{kind} ({len(scores)})" for kind, scores in found.items()], fontsize=9)
    draw.finish(ax, xscale="log", xlabel="score; the bar is the median", grid="x")
    return figure


def scores_in_order(rows: Sequence[Mapping]) -> Figure:
    """Draw scores in the order in which operators run, that of `rows`: down the U, through the middle, and up again."""
    rows, values = _finite(rows)
    stages: dict[str, list[float]] = {}
    for row in rows:
        stages.setdefault(stage_of(row["path"]), []).append(row["score"])
    medians = {stage: float(np.median(scores)) for stage, scores in stages.items()}
    least, most = min(medians, key=medians.get), max(medians, key=medians.get)
    alt = f"Scores of {len(rows)} operators in the order in which they run, on a logarithmic axis, in {len(stages)} "
    alt += f"stages. Lowest median: {least} with {medians[least]:.2g}; highest: {most} with {medians[most]:.2g}."
    figure, ax = draw.one_panel(8, 3.7, alt)
    _points(ax, rows, np.arange(len(rows)), values)
    start, middles = 0, []
    for i, scores in enumerate(stages.values()):
        end = start + len(scores)
        if i % 2:
            ax.axvspan(start - 0.5, end - 0.5, color=PAPER, zorder=0)
        middles.append((start + end - 1) / 2)
        start = end
    ax.set_xticks(middles, list(stages), rotation=35, ha="right", fontsize=8)
    legend = {"fontsize": 8, "ncols": 3, "loc": "upper center", "bbox_to_anchor": (0.5, -0.25)}
    draw.finish(ax, yscale="log", ylabel="score", xlim=(-1, len(rows)), grid="y", legend=legend)
    return figure


def score_against(
    rows: Sequence[Mapping],
    values: Mapping[str, float],
    *,
    ylabel: str,
    marks: Mapping[str, str] | None = None,
    least: float | None = None,
) -> Figure:
    """Draw something else about each operator, path -> number, against its score, both axes logarithmic.

    `rows` are as of `sorted_scores`; `marks` is path -> a short word written beside it. Numbers below the lower edge of
    the vertical axis, `least` or the lowest positive one, are raised to it.
    """
    (rows, xs), marks = _finite(rows), marks or {}
    ys = np.array([values[row["path"]] for row in rows], float)
    agreement = spearman([row["score"] for row in rows], ys.tolist())
    ys = np.maximum(ys, least if least is not None else min((v for v in ys if v > 0), default=1e-9))
    alt = f"{ylabel} against the score of {len(rows)} operators, a point each; rank correlation is {agreement:.2f}."
    if marks:
        alt += f" Marked: {', '.join(f'{word}: {path}' for path, word in marks.items())}."
    figure, ax = draw.one_panel(6.8, 4.0, alt)
    _points(ax, rows, xs, ys, alpha=0.8)
    for row, x, y in zip(rows, xs, ys, strict=True):
        if row["path"] in marks:
            ax.plot(x, y, "o", markersize=11, markerfacecolor="none", color=draw.INK)
            ax.annotate(
                marks[row["path"]], (x, y), textcoords="offset points", xytext=(9, 5), fontsize=9, color=draw.INK
            )
    legend = {"fontsize": 8, "ncols": 3, "loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
    draw.finish(ax, xscale="log", xlabel="score", ylabel=ylabel, yscale="log", legend=legend)
    return figure


def toy_clouds(original: Tensor, modified: Mapping[str, Tensor], scores: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw points before and after each change, their average and, as a box, one standard deviation on each side.

    `original` is `[n, 2]`, `modified` what was changed -> `[n, 2]` from the same seeds, `scores` what was changed ->
    (average part, spread part).
    """
    parts = ", ".join(f"{name} {a:.2f} + {s:.2f}" for name, (a, s) in scores.items())
    alt = f"{len(original)} points in the plane, before and after {len(modified)} changes. Distance of averages + "
    alt += f"distance of spreads: {parts}."
    figure, axes = draw.panels(len(modified), 3.6, 2.7, alt, sharex=True, sharey=True)
    for ax, (name, points) in zip(axes, modified.items(), strict=True):
        for start, end in zip(original.numpy(), points.numpy(), strict=True):
            ax.plot(*zip(start, end, strict=True), color="#c3ccd4", linewidth=0.7, zorder=0)
        # Open squares, so that a point which did not move is seen below.
        for cloud, colour, marker, face, label in (
            (original, draw.COLOURS[0], "o", draw.COLOURS[0], "all operators"),
            (points, draw.COLOURS[1], "s", "none", "without it"),
        ):
            (x, y), (width, height) = cloud.mean(0).tolist(), cloud.std(0).tolist()
            ax.plot(*cloud.T.numpy(), marker, markersize=4, markerfacecolor=face, color=colour, label=label)
            box = (x - width, y - height), 2 * width, 2 * height
            ax.add_patch(Rectangle(*box, fill=False, edgecolor=colour, linewidth=1.3))
            ax.plot(x, y, "+", markersize=11, markeredgewidth=2, color=colour)
        average, spread = scores[name]
        draw.title(ax, f"{name}: {average:.2f} + {spread:.2f} = {average + spread:.2f}", 10)
        ax.set_aspect("equal")
    draw.shared_legend(figure, axes[0], 2)
    return figure


def _finite(rows: Sequence[Mapping]) -> tuple[list[Mapping], np.ndarray]:
    """Return the rows with a finite score, and their scores as they are drawn: zeros at half the lowest other."""
    rows = [row for row in rows if row["score"] is not None and np.isfinite(row["score"])]
    lowest = min((row["score"] for row in rows if row["score"] > 0), default=1e-9) / 2
    return rows, np.array([max(row["score"], lowest) for row in rows])


def _points(ax: Axes, rows: Sequence[Mapping], x: np.ndarray, y: np.ndarray, **look) -> None:
    """Draw a point for each operator, in the order of the legend, with the mark of its group."""
    for group, mark in LOOKS.items():
        chosen = [group_of(row["kind"]) == group for row in rows]
        if any(chosen):
            ax.plot(x[chosen], y[chosen], linestyle="none", markersize=4.5, label=group, **mark, **look)


def rank_slopes(first: Mapping[str, float], second: Mapping[str, float], names: tuple[str, str]) -> Figure:
    """Join each operator's place in one ranking with its place in another; `first`, `second`: path -> score."""
    ranks = [{path: i for i, path in enumerate(sorted(s, key=s.__getitem__))} for s in (first, second)]
    moved = [abs(ranks[0][path] - ranks[1][path]) for path in first]
    found = spearman([first[p] for p in first], [second[p] for p in first])
    alt = f"{len(first)} operators in two rankings, {names[0]} and {names[1]}, joined by lines. Rank correlation "
    alt += f"{found:.3f}; the largest move is {max(moved)} places, {sum(m <= 2 for m in moved)} move by two at most."
    figure, ax = draw.one_panel(6.4, 4.6, alt)
    furthest = max(*moved, 1)
    for path, move in zip(first, moved, strict=True):
        colour = draw.COLOURS[1] if move / furthest > 0.6 and move > 2 else draw.COLOURS[0]
        ax.plot([0, 1], [rank[path] for rank in ranks], "o-", color=colour, markersize=3.5, linewidth=1, alpha=0.7)
    ax.set_xticks([0, 1], names)
    draw.finish(ax, ylabel="place in the ranking, the lowest score at 0", xlim=(-0.15, 1.15), grid="y")
    return figure


def decay(
    counts: Sequence[int],
    measured: Mapping[str, Sequence[float]],
    expected: Mapping[str, Sequence[float]] | None = None,
    *,
    ylabel: str,
) -> Figure:
    """Draw scores against the number of latents, both axes logarithmic.

    `measured` is name -> a score for each of `counts`, as points; `expected` name -> what a formula says, dashed.
    """
    ends = "; ".join(f"{name}: {v[0]:.3g} to {v[-1]:.3g}" for name, v in measured.items())
    alt = f"{ylabel} against the number of latents, {counts[0]} to {counts[-1]}, both axes logarithmic. {ends}."
    figure, ax = draw.one_panel(6.8, 3.8, alt)
    for name, values, look in draw.looks(measured):
        ax.plot(counts, values, linestyle="none", markersize=5.5, label=name, **look)
        if expected:
            ax.plot(counts, expected[name], "--", color=look["color"], linewidth=1.2)
    ax.set_yscale("log")
    draw.log_places(ax, counts)
    draw.finish(ax, xlabel="latents", ylabel=ylabel, legend={"fontsize": 8, **draw.BESIDE})
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
    figure, axes = draw.new_figure(
        8.4, 3.6, f"Rank correlation to the full score. {words}.", ncols=len(panels), sharey=True
    )
    bottom = min(lowest, 0.9, *(value for _, value in dots)) - 0.02
    for i, (ax, (what, values)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        for k, (name, parts, look) in enumerate(draw.looks(named)):
            at = np.array(values, float) * (1 + 0.06 * k)  # side by side, so that the bars can be told apart
            draw.error_bars(ax, at, *draw.columns(parts[i]), markersize=5, capsize=3, linewidth=1.2, label=name, **look)
        if i == 0 and dots:
            ax.plot(*zip(*dots, strict=True), "x", color=draw.INK, markersize=4, alpha=0.6, label="two groups apart")
        draw.log_places(ax, values)
        draw.finish(ax, xlabel=what, ylim=(bottom, 1.01))
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
    figure, axes = draw.new_figure(8.2, 3.9, f"Joint score of {len(rows)} pairs against predictions. {words}.", ncols=2)
    every = [row[key] for row in rows for key in ("joint", *titles)]
    ends = [0.8 * min(every), 1.3 * max(every)]
    joint = [row["joint"] for row in rows]
    for ax, (name, title), colour in zip(axes[0], titles.items(), draw.COLOURS, strict=False):
        ax.plot(ends, ends, color=draw.INK, linewidth=1, linestyle=":")
        ax.plot([row[name] for row in rows], joint, "o", color=colour, markersize=4.5, alpha=0.7)
        if worst is not None:
            ax.plot(worst[name], worst["joint"], "o", markersize=12, markerfacecolor="none", color=draw.INK)
        both = {"xscale": "log", "yscale": "log", "xlim": ends, "ylim": ends}
        draw.finish(ax, xlabel=title, ylabel="score of both together", **both)
    return figure


def sets(rows: Sequence[Mapping], names: Mapping[str, str]) -> Figure:
    """Draw what sets of operators cost in quality and what was promised, against the MACs that they save.

    `rows` have "by", "macs_ratio", "joint", "sum", "linear" and "ssim", an interval; `names` is value of "by" -> how it
    is called, and for the first of them what was promised is drawn as well.
    """
    rows = sorted(rows, key=lambda row: row["macs_ratio"])
    found = {name: [row for row in rows if row["by"] == by] for by, name in names.items()}
    told = {
        name: [f"{r['ssim']['value']:.3f} at {100 * r['macs_ratio']:.0f} %" for r in p] for name, p in found.items()
    }
    words = "; ".join(f"{name}: {part[0]} to {part[-1]}" for name, part in told.items())
    figure, axes = draw.new_figure(10, 3.7, f"SSIM, and score, against MACs removed. SSIM {words}.", ncols=2)
    quality, scores = axes[0]
    promised = {"sum": ("--", "sum of single scores"), "linear": (":", "length of summed shifts")}
    for i, (name, part, look) in enumerate(draw.looks(found)):
        x = [100 * row["macs_ratio"] for row in part]
        value, low, high = draw.columns([row["ssim"] for row in part])
        quality.plot(x, value, markersize=5, label=name, **look)
        quality.fill_between(x, low, high, color=look["color"], alpha=0.2)
        scores.plot(x, [row["joint"] for row in part], markersize=5, label=name, **look)
        for key, (style, _) in promised.items() if i == 0 else ():
            scores.plot(x, [row[key] for row in part], color=look["color"], linewidth=1, linestyle=style)
    for style, label in promised.values():
        scores.plot([], [], color=draw.INK, linewidth=1, linestyle=style, label=label)
    draw.finish(quality, xlabel="MACs removed, %", ylabel="SSIM to the unpruned picture")
    legend = {"fontsize": 8, **draw.BESIDE}
    draw.finish(scores, xlabel="MACs removed, %", ylabel="score of all together", yscale="log", legend=legend)
    return figure
