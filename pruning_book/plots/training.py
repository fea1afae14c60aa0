"""Figures of the chapter on training from a pruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from pruning_lib.records import load_record, record_path

from ..widgets.sheet import Sheet
from .figure import BESIDE, COLOURS, INK, columns, curves, finish, name_rows, new_figure, one_panel, title


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
    figure, ax = one_panel(6.4, 3.4, f"Loss against step, logarithmic: {ends}.")
    for (name, values), colour in zip(losses.items(), COLOURS, strict=False):
        ax.plot(values, color=colour, label=name, linewidth=1.8)
    for name, height in floors.items():
        ax.axhline(height, color=INK, linestyle=":", linewidth=1.2, label=name)
    finish(ax, yscale="log", xlabel="step", ylabel="loss of the new task", legend=BESIDE)
    return figure


def recovery(runs: Sequence[Mapping], figure_name: str, *, ylabel: str) -> Figure:
    """Draw how a figure of quality, as in "ssim", comes back during training, with its interval.

    `runs` are of the record `finetune_recovery`: label, steps, and judged figures.
    """
    found = {run["label"]: (run["steps"], *columns([j[figure_name] for j in run["judged"]])) for run in runs}
    ends = "; ".join(f"{label} from {y[0]:.2f} to {y[-1]:.2f}" for label, (_, y, *_) in found.items())
    figure, ax = one_panel(6.6, 3.6, f"{ylabel} against training steps: {ends}.")
    curves(ax, found, markersize=5)
    finish(ax, xlabel="training steps", ylabel=ylabel, legend={})
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
    figure, axes = new_figure(7.4, 0.42 * len(rows) + 1.0, alt, ncols=2, sharey=True)
    for ax, which, colour in zip(axes[0], titles, COLOURS, strict=False):
        for y, row in enumerate(rows):
            found = row[which][figure_name]
            ax.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
            ax.plot(found["by_seed"], [y] * len(found["by_seed"]), "o", color=colour, markersize=4.5)
        ax.axvline(rows[0][which][figure_name]["value"], color=INK, linestyle=":", linewidth=1)
        title(ax, titles[which], loc="left")
        finish(ax, xlabel=xlabel, grid="x")
    name_rows(axes[0, 0], [row["label"] for row in rows], fontsize=9)
    return figure
