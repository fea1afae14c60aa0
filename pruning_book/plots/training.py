"""Figures of chapters 6 and 8: training from a pruned model, cutting operators, and what their records hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from pruning_lib.records import load_record, record_path

from ..widgets.sheet import Sheet
from . import draw

Row = Mapping[str, Any]
CHANCE = "chance"


def recorded_tiles(record: str | Path, size: int = 64) -> list[Image.Image]:
    """Return the pictures, `size` pixels wide, of the sheet that a record names as "sheet", row by row."""
    path = record_path(record)
    with Image.open(path.with_name(load_record(record)["data"]["sheet"])) as image:
        count = (image.width // size) * (image.height // size)
        sheet = Sheet(image.copy(), size, size, count)
    return [sheet.tile(index) for index in range(count)]


def toy_losses(losses: Mapping[str, Sequence[float]], floors: Mapping[str, float]) -> Figure:
    """Draw losses of the toy over its steps, name -> loss after each, and the floors that the formula predicts."""
    ends = "; ".join(f"{name} ends at {v[-1]:.2g}" for name, v in losses.items())
    figure, ax = draw.one_panel(6.4, 3.4, f"Loss against step, logarithmic: {ends}.")
    for (name, values), colour in zip(losses.items(), draw.COLOURS, strict=False):
        ax.plot(values, color=colour, label=name, linewidth=1.8)
    for name, height in floors.items():
        ax.axhline(height, color=draw.INK, linestyle=":", linewidth=1.2, label=name)
    draw.finish(ax, yscale="log", xlabel="step", ylabel="loss of the new task", legend=draw.BESIDE)
    return figure


def recovery(runs: Sequence[Mapping], figure_name: str, *, ylabel: str) -> Figure:
    """Draw how a quality, as in "ssim", comes back during training: runs of the record `finetune_recovery`."""
    found = {run["label"]: (run["steps"], *draw.columns([j[figure_name] for j in run["judged"]])) for run in runs}
    ends = "; ".join(f"{label} from {y[0]:.2f} to {y[-1]:.2f}" for label, (_, y, *_) in found.items())
    figure, ax = draw.one_panel(6.6, 3.6, f"{ylabel} against training steps: {ends}.")
    draw.curves(ax, found, markersize=5)
    draw.finish(ax, xlabel="training steps", ylabel=ylabel, legend={})
    return figure


def starts(rows: Sequence[Mapping], figure_name: str, *, xlabel: str) -> Figure:
    """Draw, for every start, what it learned and what it remembers: a point for each seed, a bar for the interval.

    `rows` are of the record `new_concept`, from top to bottom.
    """
    titles = {"new": "new things, against the real pictures", "old": "old things, against the unpruned model"}
    words = []
    for which in titles:
        order = sorted(rows, key=lambda row, which=which: row[which][figure_name]["value"])
        worst, best = (f"{row['label']} {row[which][figure_name]['value']:.2f}" for row in (order[0], order[-1]))
        words.append(f"{which} things: best {best}, worst {worst}")
    alt = f"{xlabel} of {len(rows)} starts. {'; '.join(words)}."
    figure, axes = draw.new_figure(7.4, 0.42 * len(rows) + 1.0, alt, ncols=2, sharey=True)
    for ax, which, colour in zip(axes[0], titles, draw.COLOURS, strict=False):
        for y, row in enumerate(rows):
            found = row[which][figure_name]
            ax.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
            ax.plot(found["by_seed"], [y] * len(found["by_seed"]), "o", color=colour, markersize=4.5)
        ax.axvline(rows[0][which][figure_name]["value"], color=draw.INK, linestyle=":", linewidth=1)
        draw.title(ax, titles[which], loc="left")
        draw.finish(ax, xlabel=xlabel, grid="x")
    draw.name_rows(axes[0, 0], [row["label"] for row in rows], fontsize=9)
    return figure


def toy_branches(names: Sequence[str], said: Sequence[float], heard: Sequence[float]) -> Figure:
    """Draw, for each branch of the toy, the size of what it adds and how the answer changes without it, both means."""
    loud, vital = (names[max(range(len(names)), key=values.__getitem__)] for values in (said, heard))
    alt = f"Bars for {len(names)} branches. {loud} adds most, {max(said):.2f}; the answer changes most without {vital}"
    figure, axes = draw.new_figure(6.4, 2.6, f"{alt}, by {max(heard):.2f}.", ncols=2, sharey=True)
    titles = ("what it adds to the stream", "change of the answer without it")
    for ax, values, what, colour in zip(axes[0], (said, heard), titles, draw.COLOURS, strict=False):
        ax.barh(range(len(names)), values, color=colour, height=0.65)
        draw.title(ax, what, loc="left")
        draw.finish(ax, grid="x")
    draw.name_rows(axes[0, 0], names, fontsize=9)
    return figure


def curve_of(rows: Sequence[Row], ranking: str, *, budget: str, scope: str = "all") -> list[Row]:
    """Return the points of one ranking in the record `operator_removal`, by what was asked for; none is a ValueError.

    The ranking "chance" takes every one drawn by chance. `budget` is "count" or "macs_ratio", `scope` "all", or
    "outside" of the blocks that are free to remove.
    """
    chosen = {row["ranking"] for row in rows if row["ranking"] == ranking}
    if ranking in (CHANCE, "random"):
        chosen = {row["ranking"] for row in rows if row["ranking"].startswith("random")}
    found = [row for row in rows if (row["budget"], row["scope"]) == (budget, scope) and row["ranking"] in chosen]
    if not found:
        known = sorted({row["ranking"] for row in rows})
        raise ValueError(f"No rows of {ranking!r} by {budget} in scope {scope!r}. Rankings: {', '.join(known)}.")
    return sorted(found, key=lambda row: row["asked"])


def removal_curves(
    rows: Sequence[Row],
    figure_name: str,
    labels: Mapping[str, str],
    *,
    budget: str,
    ylabel: str,
    scope: str = "all",
    mark: Row | None = None,
) -> Figure:
    """Draw a figure of quality against how much is removed, one curve for each ranking.

    `rows`, `budget` and `scope` are as in `curve_of`, `figure_name` such as "ssim". `labels` is ranking -> its name in
    the legend; "chance" is drawn as the range of all draws. `mark` is a row that is drawn as a star.
    """
    percent = 100 if budget == "macs_ratio" else 1
    found = {}
    for ranking, label in labels.items():
        points = curve_of(rows, ranking, budget=budget, scope=scope)
        if ranking == CHANCE:
            x, *values = _range(points, figure_name, budget)
        else:
            figures = [row["figures"][figure_name] for row in points]
            _, *ends = draw.columns([f if "low" in f else f["first"] for f in figures])
            x, values = [row[budget] for row in points], [[f["value"] for f in figures], *ends]
        found[label] = ([percent * at for at in x], *values)
    words = [f"{label} {y[0]:.2f} to {y[-1]:.2f}" for label, (_, y, *_) in found.items()]
    xlabel = "MACs removed, %" if percent == 100 else "operators changed"
    if mark is not None:
        at, value = percent * mark[budget], mark["figures"][figure_name]["value"]
        words.append(f"BK-SDM {value:.2f} at {at:.0f}")
    figure, ax = draw.one_panel(6.8, 3.7, f"{ylabel} against {xlabel}: {'; '.join(words)}.")
    draw.curves(ax, found, markersize=4.5, linewidth=1.6)
    if mark is not None:
        ax.plot([at], [value], marker="*", markersize=13, color=draw.INK, linestyle="none", label="BK-SDM's choice")
    draw.finish(ax, xlabel=xlabel, ylabel=ylabel, legend={"fontsize": 8.5, **draw.BESIDE})
    return figure


def _range(points: Sequence[Row], figure_name: str, budget: str) -> tuple[list, list, list, list]:
    """Return x, mean, least and most over the draws at each stop."""
    stops = list(dict.fromkeys(row["asked"] for row in points))
    groups = [[row for row in points if row["asked"] == stop] for stop in stops]
    x = [sum(row[budget] for row in group) / len(group) for group in groups]
    values = [[row["figures"][figure_name]["value"] for row in group] for group in groups]
    return x, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def before_after(pairs: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, xlabel: str) -> Figure:
    """Draw what fine-tuning gives back: a hollow point before, a filled one for each seed after, an arrow between.

    `pairs` are (name, values before, values after) of single seeds, from top to bottom.
    """
    means = [(name, sum(b) / len(b), sum(a) / len(a)) for name, b, a in pairs]
    words = "; ".join(f"{name} {b:.2f} to {a:.2f}" for name, b, a in means).replace("\n", " ")
    figure, ax = draw.one_panel(6.6, 0.42 * len(pairs) + 0.9, f"{xlabel} before and after fine-tuning: {words}.")
    arrow = {"arrowstyle": "->", "color": draw.COLOURS[5], "alpha": 0.6, "shrinkA": 4, "shrinkB": 4}
    for y, ((_, before, after), (_, start, end)) in enumerate(zip(pairs, means, strict=True)):
        ax.annotate("", (end, y), (start, y), arrowprops=arrow)
        ax.plot(before, [y] * len(before), "o", markerfacecolor="white", color=draw.COLOURS[1], markersize=6)
        ax.plot(after, [y] * len(after), "o", color=draw.COLOURS[0], markersize=5)
    draw.name_rows(ax, [name for name, *_ in pairs], fontsize=9)
    draw.finish(ax, xlabel=xlabel, grid="x")
    return figure


def training_curves(
    runs: Sequence[Row],
    figure_name: str,
    labels: Mapping[str, str],
    *,
    ylabel: str,
    reference: float | None = None,
    log: bool = False,
) -> Figure:
    """Draw a figure of quality over training: the mean of the seeds as a line, each seed as a thin one.

    `runs` are of the record `operator_training`, `labels` name of a run, which must be there, -> its name in the
    legend. `reference` is the value of the unpruned model, fully trained.
    """
    known = {run["name"]: run for run in runs}
    if missing := [name for name in labels if name not in known]:
        raise ValueError(f"No runs {', '.join(missing)} in the record. It has: {', '.join(known)}.")
    found = {label: [look[figure_name] for look in known[name]["judged"]] for name, label in labels.items()}
    words = [f"{label} {f[0]['value']:.2f} to {f[-1]['value']:.2f}" for label, f in found.items()]
    words += [f"unpruned {reference:.2f}"] if reference is not None else []
    figure, ax = draw.one_panel(6.8, 3.7, f"{ylabel} against training steps: {'; '.join(words)}.")
    for (label, figures, look), name in zip(draw.looks(found), labels, strict=False):
        steps = known[name]["steps"]
        for of_seed in zip(*(f["by_seed"] for f in figures), strict=True):
            ax.plot(steps, of_seed, color=look["color"], linewidth=0.7, alpha=0.5)
        ax.plot(steps, [f["value"] for f in figures], markersize=5, label=label, linewidth=1.8, **look)
    if reference is not None:
        ax.axhline(reference, color=draw.INK, linestyle=":", linewidth=1.2, label="unpruned, fully trained")
    scale = "log" if log else "linear"
    draw.finish(ax, xlabel="training steps", ylabel=ylabel, yscale=scale, legend={"fontsize": 8.5})
    return figure


def promise(points: Mapping[str, Sequence[tuple[str, float, Row]]]) -> Figure:
    """Draw measured against promised speed: what was timed -> (name, times as fast by MACs, measured interval)."""
    every = [(promised, found["value"]) for group in points.values() for _, promised, found in group]
    most = max(max(pair) for pair in every) * 1.05
    kept = sum(measured >= promised for promised, measured in every)
    alt = f"Measured against promised speed of {len(every)} cuts, {kept} on or above the line where both agree. "
    best = max(every, key=lambda pair: pair[1])
    alt += f"Fastest: {best[1]:.2f} times as fast, promised {best[0]:.2f}."
    figure, ax = draw.one_panel(5.6, 4.2, alt)
    ax.plot([0.9, most], [0.9, most], color=draw.INK, linewidth=1, linestyle=":", label="as promised")
    for what, group, look in draw.looks(points):
        x, measured = [promised for _, promised, _ in group], draw.columns([found for *_, found in group])
        draw.error_bars(ax, x, *measured, markersize=5, linestyle="none", label=what, **look)
    fast = "times as fast"
    draw.finish(ax, xlabel=f"{fast}, promised by MACs", ylabel=f"{fast}, measured", legend={"fontsize": 8.5})
    return figure
