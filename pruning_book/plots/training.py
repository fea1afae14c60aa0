"""Figures of the chapter on training from a pruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pruning_lib.records import load_record, record_path

from ..widgets.sheet import Sheet
from .figure import COLOURS, INK, MARKERS, new_figure

__all__ = ["recorded_tiles", "recovery", "starts", "toy_losses"]


def recorded_tiles(record: str | Path, size: int = 64) -> list[Image.Image]:
    """Return the pictures of the sheet beside a record, row by row; its data name the file as "sheet".

    Args:
        record: name or file, as `load_record` takes it.
        size: side of a picture, in pixels.
    """
    path = record_path(record)
    with Image.open(path.with_name(load_record(record)["data"]["sheet"])) as image:
        count = (image.width // size) * (image.height // size)
        sheet = Sheet(image.copy(), size, size, count)
    return [sheet.tile(index) for index in range(count)]


def toy_losses(curves: Mapping[str, Sequence[float]], floors: Mapping[str, float]) -> Figure:
    """Draw losses of the toy over its steps, with the floors that the formula predicts.

    Args:
        curves: name -> loss after each step, above zero.
        floors: name of a floor -> its height.
    """
    ends = "; ".join(f"{name} ends at {v[-1]:.2g}" for name, v in curves.items())
    figure, axes = new_figure(6.4, 3.4, f"Loss against step, logarithmic: {ends}.")
    ax = axes[0, 0]
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        ax.plot(np.arange(len(values)), values, color=colour, label=name, linewidth=1.8)
    for name, height in floors.items():
        ax.axhline(height, color=INK, linestyle=":", linewidth=1.2, label=name)
    ax.set(yscale="log", xlabel="step", ylabel="loss of the new task")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def recovery(runs: Sequence[Mapping], figure_name: str, *, ylabel: str) -> Figure:
    """Draw how a figure of quality comes back during training, with its interval.

    Args:
        runs: of the record `finetune_recovery`: label, steps, and judged figures with value, low and high.
        figure_name: which of the judged figures, as in "ssim".
        ylabel: its name and unit.
    """
    ends = "; ".join(
        f"{r['label']} from {r['judged'][0][figure_name]['value']:.2f} to {r['judged'][-1][figure_name]['value']:.2f}"
        for r in runs
    )
    figure, axes = new_figure(6.6, 3.6, f"{ylabel} against training steps: {ends}.")
    ax = axes[0, 0]
    for run, colour, marker in zip(runs, COLOURS, MARKERS, strict=False):
        parts = {key: [j[figure_name][key] for j in run["judged"]] for key in ("value", "low", "high")}
        ax.plot(run["steps"], parts["value"], color=colour, marker=marker, markersize=5, label=run["label"])
        ax.fill_between(run["steps"], parts["low"], parts["high"], color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel="training steps", ylabel=ylabel)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, frameon=False)
    return figure


def starts(rows: Sequence[Mapping], figure_name: str, *, xlabel: str) -> Figure:
    """Draw, for every start, what it learned and what it remembers: a point for each seed, a bar for the interval.

    Args:
        rows: of the record `new_concept`, in the order from top to bottom.
        figure_name: which figure, as in "ssim".
        xlabel: its name and unit.
    """
    best = {w: max(rows, key=lambda r, w=w: r[w][figure_name]["value"]) for w in ("new", "old")}
    worst = {w: min(rows, key=lambda r, w=w: r[w][figure_name]["value"]) for w in ("new", "old")}
    words = "; ".join(
        f"{w} things: best {best[w]['label']} {best[w][w][figure_name]['value']:.2f}, worst {worst[w]['label']} "
        f"{worst[w][w][figure_name]['value']:.2f}"
        for w in ("new", "old")
    )
    figure, axes = new_figure(
        7.4, 0.42 * len(rows) + 1.0, f"{xlabel} of {len(rows)} starts. {words}.", ncols=2, sharey=True
    )
    titles = {"new": "new things, against the real pictures", "old": "old things, against the unpruned model"}
    for ax, which, colour in zip(axes[0], titles, COLOURS, strict=False):
        for y, row in enumerate(rows):
            found = row[which][figure_name]
            ax.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
            ax.plot(found["by_seed"], [y] * len(found["by_seed"]), "o", color=colour, markersize=4.5)
        ax.axvline(rows[0][which][figure_name]["value"], color=INK, linestyle=":", linewidth=1)
        ax.set_title(titles[which], fontsize=9, color=INK, loc="left")
        ax.set_xlabel(xlabel)
        ax.grid(axis="x", alpha=0.25)
    axes[0, 0].set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=9)
    axes[0, 0].invert_yaxis()
    return figure
