"""Figures of the chapter on cutting operators, and what it reads from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .figure import COLOURS, INK, MARKERS, new_figure

__all__ = ["before_after", "curve_of", "promise", "removal_curves", "toy_branches", "training_curves"]

Row = Mapping[str, Any]
CHANCE = "chance"


def toy_branches(names: Sequence[str], said: Sequence[float], heard: Sequence[float]) -> Figure:
    """Draw, for each branch of the toy, how much it adds to the stream and how much the answer changes without it.

    Args:
        names: of the branches.
        said: mean size of what each adds.
        heard: mean change of the answer when it is gone.
    """
    loud, vital = (names[max(range(len(names)), key=values.__getitem__)] for values in (said, heard))
    alt = f"Bars for {len(names)} branches. {loud} adds most, {max(said):.2f}; the answer changes most without {vital}"
    figure, axes = new_figure(6.4, 2.6, f"{alt}, by {max(heard):.2f}.", ncols=2, sharey=True)
    titles = ("what it adds to the stream", "change of the answer without it")
    for ax, values, title, colour in zip(axes[0], (said, heard), titles, COLOURS, strict=False):
        ax.barh(range(len(names)), values, color=colour, height=0.65)
        ax.set_title(title, fontsize=9, color=INK, loc="left")
        ax.set_yticks(range(len(names)), names, fontsize=9)
        ax.grid(axis="x", alpha=0.25)
    axes[0, 0].invert_yaxis()
    return figure


def curve_of(rows: Sequence[Row], ranking: str, *, budget: str, scope: str = "all") -> list[Row]:
    """Return the points of one ranking in the record `operator_removal`, by what was asked for; chance: of all draws.

    Args:
        rows: of the record.
        ranking: name of a ranking; "chance" takes every one drawn by chance.
        budget: "count" or "macs_ratio".
        scope: "all", or "outside" of the blocks that are free to remove.

    Raises:
        ValueError: there are none.
    """
    wanted = "random" if ranking == CHANCE else ranking
    found = [
        row
        for row in rows
        if row["budget"] == budget
        and row["scope"] == scope
        and (row["ranking"] == wanted or (wanted == "random" and row["ranking"].startswith("random")))
    ]
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
    reference: float | None = None,
    mark: Row | None = None,
) -> Figure:
    """Draw a figure of quality against how much is removed, one curve for each ranking.

    Args:
        rows: of the record `operator_removal`.
        figure_name: such as "ssim".
        labels: ranking -> its name in the legend; "chance" is drawn as the range of all draws.
        budget: "count" or "macs_ratio": what the rankings were cut by.
        ylabel: name of the vertical axis.
        scope: see `curve_of`.
        reference: value of the unpruned model, drawn as a dotted line.
        mark: a row that is drawn as a single star, such as that of a choice made by hand.
    """
    percent = 100 if budget == "macs_ratio" else 1
    figure, axes = new_figure(6.8, 3.7, "")
    ax, words = axes[0, 0], []
    for (ranking, label), colour, marker in zip(labels.items(), COLOURS, MARKERS, strict=False):
        points = curve_of(rows, ranking, budget=budget, scope=scope)
        if ranking == CHANCE:
            x, y, low, high = _range(points, figure_name, budget)
        else:
            found = [row["figures"][figure_name] for row in points]
            x, y = [row[budget] for row in points], [f["value"] for f in found]
            ends = [f if "low" in f else f["first"] for f in found]
            low, high = [f["low"] for f in ends], [f["high"] for f in ends]
        x = [percent * value for value in x]
        ax.plot(x, y, color=colour, marker=marker, markersize=4.5, label=label, linewidth=1.6)
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        words.append(f"{label} {y[0]:.2f} to {y[-1]:.2f}")
    if reference is not None:
        ax.axhline(reference, color=INK, linestyle=":", linewidth=1.2, label="unpruned")
    if mark is not None:
        at, value = percent * mark[budget], mark["figures"][figure_name]["value"]
        ax.plot([at], [value], marker="*", markersize=13, color=INK, linestyle="none", label="BK-SDM's choice")
        words.append(f"BK-SDM {value:.2f} at {at:.0f}")
    ax.set(xlabel="MACs removed, %" if percent == 100 else "operators changed", ylabel=ylabel)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.alt = f"{ylabel} against {ax.get_xlabel()}: {'; '.join(words)}."[:248]
    return figure


def _range(points: Sequence[Row], figure_name: str, budget: str) -> tuple[list, list, list, list]:
    """Return x, mean, least and most over the draws at each stop."""
    stops = list(dict.fromkeys(row["asked"] for row in points))
    groups = [[row for row in points if row["asked"] == stop] for stop in stops]
    x = [sum(row[budget] for row in group) / len(group) for group in groups]
    values = [[row["figures"][figure_name]["value"] for row in group] for group in groups]
    return x, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def before_after(
    pairs: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, xlabel: str, reference: float | None = None
) -> Figure:
    """Draw what fine-tuning gives back: a hollow point before, a filled one for each seed after, an arrow between.

    Args:
        pairs: (name, values before, values after), from top to bottom; the values are of single seeds.
        xlabel: name of the figure of quality.
        reference: value of the unpruned model.
    """
    means = [(name, sum(b) / len(b), sum(a) / len(a)) for name, b, a in pairs]
    words = "; ".join(f"{name.replace(chr(10), ' ')} {b:.2f} to {a:.2f}" for name, b, a in means)
    figure, axes = new_figure(6.6, 0.42 * len(pairs) + 0.9, f"{xlabel} before and after fine-tuning: {words}.")
    ax = axes[0, 0]
    for y, ((_, before, after), (_, start, end)) in enumerate(zip(pairs, means, strict=True)):
        ax.annotate(
            "",
            (end, y),
            (start, y),
            arrowprops={"arrowstyle": "->", "color": COLOURS[5], "alpha": 0.6, "shrinkA": 4, "shrinkB": 4},
        )
        ax.plot(before, [y] * len(before), "o", markerfacecolor="white", color=COLOURS[1], markersize=6)
        ax.plot(after, [y] * len(after), "o", color=COLOURS[0], markersize=5)
    if reference is not None:
        ax.axvline(reference, color=INK, linestyle=":", linewidth=1.2)
    ax.set_yticks(range(len(pairs)), [name for name, *_ in pairs], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.grid(axis="x", alpha=0.25)
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

    Args:
        runs: of the record `operator_training`.
        figure_name: such as "ssim" or "frechet".
        labels: name of a run -> its name in the legend.
        ylabel: name of the vertical axis.
        reference: value of the unpruned model, fully trained.
        log: True for a logarithmic vertical axis.

    Raises:
        ValueError: a run that is not in the record.
    """
    known = {run["name"]: run for run in runs}
    if missing := [name for name in labels if name not in known]:
        raise ValueError(f"No runs {', '.join(missing)} in the record. It has: {', '.join(known)}.")
    figure, axes = new_figure(6.8, 3.7, "")
    ax, words = axes[0, 0], []
    for (name, label), colour, marker in zip(labels.items(), COLOURS, MARKERS, strict=False):
        steps, found = known[name]["steps"], [look[figure_name] for look in known[name]["judged"]]
        for seed in range(len(found[0]["by_seed"])):
            ax.plot(steps, [f["by_seed"][seed] for f in found], color=colour, linewidth=0.7, alpha=0.5)
        values = [f["value"] for f in found]
        ax.plot(steps, values, color=colour, marker=marker, markersize=5, label=label, linewidth=1.8)
        words.append(f"{label} {values[0]:.2f} to {values[-1]:.2f}")
    if reference is not None:
        ax.axhline(reference, color=INK, linestyle=":", linewidth=1.2, label="unpruned, fully trained")
        words.append(f"unpruned {reference:.2f}")
    ax.set(xlabel="training steps", ylabel=ylabel, yscale="log" if log else "linear")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8.5, frameon=False)
    figure.alt = f"{ylabel} against training steps: {'; '.join(words)}."[:248]
    return figure


def promise(points: Mapping[str, Sequence[tuple[str, float, Row]]]) -> Figure:
    """Draw measured against promised speed, with the line on which both agree.

    Args:
        points: what was timed -> (name, times as fast by MACs, measured interval with value, low and high).
    """
    every = [(promised, found["value"]) for group in points.values() for _, promised, found in group]
    most = max(max(pair) for pair in every) * 1.05
    kept = sum(measured >= promised for promised, measured in every)
    alt = f"Measured against promised speed of {len(every)} cuts, {kept} on or above the line where both agree. "
    best = max(every, key=lambda pair: pair[1])
    alt += f"Fastest: {best[1]:.2f} times as fast, promised {best[0]:.2f}."
    figure, axes = new_figure(5.6, 4.2, alt)
    ax = axes[0, 0]
    ax.plot([0.9, most], [0.9, most], color=INK, linewidth=1, linestyle=":", label="as promised")
    for (what, group), colour, marker in zip(points.items(), COLOURS, MARKERS, strict=False):
        x, y = [promised for _, promised, _ in group], [found["value"] for *_, found in group]
        spread = [[f["value"] - f["low"] for *_, f in group], [f["high"] - f["value"] for *_, f in group]]
        ax.errorbar(x, y, yerr=spread, color=colour, marker=marker, markersize=5, linestyle="none", label=what)
    ax.set(xlabel="times as fast, promised by MACs", ylabel="times as fast, measured")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8.5, frameon=False)
    return figure
