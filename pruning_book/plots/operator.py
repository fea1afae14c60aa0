"""Figures of chapter 7: what the score measures, how scores are spread, and what they go with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..rivals.rankings import spearman
from .figure import COLOURS, INK, MARKERS, new_figure

__all__ = ["GROUPS", "score_against", "scores_by_kind", "scores_in_order", "sorted_scores", "stage_of", "toy_clouds"]

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
_LOOKS = {group: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, group in enumerate(GROUPS)}


def group_of(kind: str) -> str:
    """Return the group of a kind."""
    return next(group for group, kinds in GROUPS.items() if kind in kinds)


def stage_of(path: str) -> str:
    """Return the stage of a UNet that an operator lies in: "down 0", "mid", "up 3", or the first part of its path."""
    parts = path.split(".")
    if parts[0] in ("down_blocks", "up_blocks") and len(parts) > 1:
        return f"{parts[0].removesuffix('_blocks')} {parts[1]}"
    return parts[0].removesuffix("_block")


def sorted_scores(rows: Sequence[Mapping], floor: float | None = None) -> Figure:
    """Draw all scores in rising order, on a logarithmic axis, each with the mark of its kind.

    Args:
        rows: of a record or of `Scores.rows()`, with "path", "kind" and "score"; those without a finite score are
            left out, zeros are drawn at the lower edge.
        floor: score below which an operator does nothing that could be seen, drawn as a line.
    """
    rows, lowest = _finite(rows)
    rows = sorted(rows, key=lambda row: row["score"])
    values = np.array([max(row["score"], lowest) for row in rows])
    middle = float(np.median(values))
    alt = f"{len(rows)} scores in rising order on a logarithmic axis, from {values[0]:.2g} ({rows[0]['path']}) to "
    alt += f"{values[-1]:.2g} ({rows[-1]['path']}); the median is {middle:.2g}."
    figure, axes = new_figure(8, 3.6, alt)
    ax = axes[0, 0]
    for group, (places, scores) in _split(rows, range(len(rows)), values).items():
        colour, marker = _LOOKS[group]
        ax.plot(places, scores, marker, markersize=4.5, color=colour, label=group)
    if floor is not None:
        ax.axhline(floor, color=INK, linestyle=":", linewidth=1)
    ax.set(yscale="log", xlabel="operators, the lowest score first", ylabel="score")
    ax.grid(axis="y", alpha=0.25)
    ax.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    return figure


def scores_by_kind(rows: Sequence[Mapping], kinds: Sequence[str]) -> Figure:
    """Draw one line of points for each kind, with a bar at the median.

    Args:
        rows: as of `sorted_scores`.
        kinds: those shown, the first at the top.
    """
    rows, lowest = _finite(rows)
    found = {kind: [max(r["score"], lowest) for r in rows if r["kind"] == kind] for kind in kinds}
    found = {kind: values for kind, values in found.items() if values}
    medians = {kind: float(np.median(values)) for kind, values in found.items()}
    order = sorted(medians, key=medians.get)
    alt = f"Scores of {len(found)} kinds of operators on a logarithmic axis. Median scores: "
    alt += ", ".join(f"{kind} {medians[kind]:.2g}" for kind in order) + "."
    figure, axes = new_figure(8, 0.36 * len(found) + 1.0, alt)
    ax = axes[0, 0]
    shifts = np.random.default_rng(0)
    for row, (kind, values) in enumerate(found.items()):
        colour, marker = _LOOKS[group_of(kind)]
        ax.plot(values, row + shifts.uniform(-0.22, 0.22, len(values)), marker, markersize=4, color=colour, alpha=0.75)
        ax.plot([medians[kind]] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=2)
    ax.set_yticks(range(len(found)), [f"{kind} ({len(values)})" for kind, values in found.items()], fontsize=9)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="score; the bar is the median")
    ax.grid(axis="x", alpha=0.25)
    return figure


def scores_in_order(rows: Sequence[Mapping]) -> Figure:
    """Draw scores in the order in which operators run: down the U, through the middle, and up again.

    Args:
        rows: as of `sorted_scores`, and in this order.
    """
    rows, lowest = _finite(rows)
    stages = list(dict.fromkeys(stage_of(row["path"]) for row in rows))
    medians = {s: float(np.median([r["score"] for r in rows if stage_of(r["path"]) == s])) for s in stages}
    least, most = min(medians, key=medians.get), max(medians, key=medians.get)
    alt = f"Scores of {len(rows)} operators in the order in which they run, on a logarithmic axis, in {len(stages)} "
    alt += f"stages. Lowest median: {least} with {medians[least]:.2g}; highest: {most} with {medians[most]:.2g}."
    figure, axes = new_figure(8, 3.7, alt)
    ax = axes[0, 0]
    values = [max(row["score"], lowest) for row in rows]
    for group, (places, scores) in _split(rows, range(len(rows)), values).items():
        colour, marker = _LOOKS[group]
        ax.plot(places, scores, marker, markersize=4.5, color=colour, label=group)
    start, middles = 0, []
    for i, stage in enumerate(stages):
        count = sum(stage_of(row["path"]) == stage for row in rows)
        if i % 2:
            ax.axvspan(start - 0.5, start + count - 0.5, color=PAPER, zorder=0)
        middles.append(start + (count - 1) / 2)
        start += count
    ax.set_xticks(middles, stages, rotation=35, ha="right", fontsize=8)
    ax.set(yscale="log", ylabel="score", xlim=(-1, len(rows)))
    ax.grid(axis="y", alpha=0.25)
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return figure


def score_against(
    rows: Sequence[Mapping],
    values: Mapping[str, float],
    *,
    ylabel: str,
    log: bool = True,
    marks: Mapping[str, str] | None = None,
    least: float | None = None,
) -> Figure:
    """Draw something else about each operator against its score.

    Args:
        rows: as of `sorted_scores`.
        values: path -> number.
        ylabel: what the number is, with its unit.
        log: a logarithmic vertical axis; then numbers of 0 or less are drawn at the lower edge.
        marks: path -> a short word written beside it.
        least: lower edge of a logarithmic vertical axis, to which smaller numbers are raised.
    """
    rows, lowest = _finite(rows)
    xs = [max(row["score"], lowest) for row in rows]
    ys = np.array([values[row["path"]] for row in rows], float)
    agreement = spearman([row["score"] for row in rows], ys.tolist())
    if log:
        ys = np.maximum(ys, least if least is not None else min((v for v in ys if v > 0), default=1e-9))
    alt = f"{ylabel} against the score of {len(rows)} operators, a point each; rank correlation is {agreement:.2f}."
    if marks:
        alt += f" Marked: {', '.join(f'{word}: {path}' for path, word in marks.items())}."
    figure, axes = new_figure(6.8, 4.0, alt)
    ax = axes[0, 0]
    for group, (x, y) in _split(rows, xs, ys).items():
        colour, marker = _LOOKS[group]
        ax.plot(x, y, marker, markersize=4.5, color=colour, alpha=0.8, label=group)
    for row, x, y in zip(rows, xs, ys, strict=True):
        if row["path"] in (marks or {}):
            ax.plot(x, y, "o", markersize=11, markerfacecolor="none", color=INK)
            ax.annotate(marks[row["path"]], (x, y), textcoords="offset points", xytext=(9, 5), fontsize=9, color=INK)
    ax.set(xscale="log", xlabel="score", ylabel=ylabel, yscale="log" if log else "linear")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def toy_clouds(original: Tensor, modified: Mapping[str, Tensor], scores: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw points before and after each change, their average and, as a box, one standard deviation on each side.

    Args:
        original: `[n, 2]`.
        modified: what was changed -> `[n, 2]`, the same seeds in the same order.
        scores: what was changed -> (average part, spread part).
    """
    parts = ", ".join(f"{name} {a:.2f} + {s:.2f}" for name, (a, s) in scores.items())
    alt = f"{len(original)} points in the plane, before and after {len(modified)} changes. Distance of averages + "
    alt += f"distance of spreads: {parts}."
    across = 2 if len(modified) > 1 else 1
    down = -(-len(modified) // across)
    figure, axes = new_figure(3.6 * across, 2.7 * down, alt, nrows=down, ncols=across, sharex=True, sharey=True)
    for ax in axes.flat[len(modified) :]:
        ax.set_visible(False)
    for ax, (name, points) in zip(axes.flat, modified.items(), strict=False):
        for start, end in zip(original.numpy(), points.numpy(), strict=True):
            ax.plot(*zip(start, end, strict=True), color="#c3ccd4", linewidth=0.7, zorder=0)
        # Open squares, so that a point which did not move is seen below.
        for cloud, colour, marker, face, label in (
            (original, COLOURS[0], "o", COLOURS[0], "all operators"),
            (points, COLOURS[1], "s", "none", "without it"),
        ):
            (x, y), (width, height) = cloud.mean(0).tolist(), cloud.std(0).tolist()
            ax.plot(*cloud.T.numpy(), marker, markersize=4, markerfacecolor=face, color=colour, label=label)
            ax.add_patch(_box(x, y, width, height, colour))
            ax.plot(x, y, "+", markersize=11, markeredgewidth=2, color=colour)
        average, spread = scores[name]
        ax.set_title(f"{name}: {average:.2f} + {spread:.2f} = {average + spread:.2f}", fontsize=10, color=INK)
        ax.set_aspect("equal")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), fontsize=9, frameon=False, loc="outside lower center", ncols=2
    )
    return figure


def _box(x: float, y: float, width: float, height: float, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle((x - width, y - height), 2 * width, 2 * height, fill=False, edgecolor=colour, linewidth=1.3)


def _finite(rows: Sequence[Mapping]) -> tuple[list[Mapping], float]:
    """Return the rows with a finite score, and what a score of zero is drawn as."""
    rows = [row for row in rows if row["score"] is not None and np.isfinite(row["score"])]
    return rows, min((row["score"] for row in rows if row["score"] > 0), default=1e-9) / 2


def _split(rows: Sequence[Mapping], x: Sequence[float], y: Sequence[float]) -> dict[str, tuple[list, list]]:
    """Return group -> (x, y) of its points, in the order of the legend."""
    found: dict[str, tuple[list, list]] = {group: ([], []) for group in GROUPS}
    for row, a, b in zip(rows, x, y, strict=True):
        xs, ys = found[group_of(row["kind"])]
        xs.append(a), ys.append(b)
    return {group: parts for group, parts in found.items() if parts[0]}
