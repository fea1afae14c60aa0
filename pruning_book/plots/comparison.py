"""Figures of the chapter on schedules at equal MACs, drawn from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .figure import COLOURS, INK, MARKERS, new_figure

__all__ = ["Cells", "against_budget", "differences", "search_traces", "shown_names", "timelines", "toy_holding"]

Cell = Mapping[str, Any]
STYLES = ("-", "--")
PALETTE, SHAPES = (*COLOURS, "#7b4b12"), f"{MARKERS}X"  # one more: there are seven rivals
# Names that say more than those in the records: the runs are far shorter than the authors'.
SHOWN_NAMES = {"dip-go": "DiP-GO's recipe, shortened", "dip-go-held": "DiP-GO's recipe, shortened, prediction held"}


def shown_names(recorded: Mapping[str, str]) -> dict[str, str]:
    """Return how pages call the rows: as the record does, but for `SHOWN_NAMES`."""
    return {row: SHOWN_NAMES.get(row, name) for row, name in recorded.items()}


class Cells:
    """The cells of the record `schedule_comparison`, by number of steps, row and budget.

    Args:
        data: of the record.
    """

    def __init__(self, data: Mapping[str, Any]):
        self.data = data
        self.names = shown_names(data["rows"])
        self._cells = {(c["steps"], c["row"], c["budget"]): c for c in data["cells"]}

    def rows(self, steps: int) -> list[str]:
        """Return the rows that were judged at every budget, in the record's order."""
        budgets = self.data["budgets"]
        return [row for row in self.names if all((steps, row, b) in self._cells for b in budgets)]

    def methods(self, steps: int) -> list[str]:
        """Return those rows of `rows` that are methods on their own, and no variations of another row."""
        return [row for row in self.rows(steps) if row in self.data["methods"]]

    def at(self, steps: int, row: str, budget: float) -> Cell:
        """Return one cell.

        Raises:
            KeyError: it was not judged.
        """
        if (steps, row, budget) not in self._cells:
            raise KeyError(f"There is no cell of {row!r} at {budget:g} of the MACs and {steps} steps.")
        return self._cells[steps, row, budget]

    def over_budgets(self, steps: int, row: str) -> list[Cell]:
        """Return a row's cells, from the largest budget to the smallest."""
        return [self.at(steps, row, budget) for budget in sorted(self.data["budgets"], reverse=True)]


def against_budget(
    cells: Cells, steps: int, figures: Mapping[str, str], rows: Sequence[str] | None = None, log: Sequence[str] = ()
) -> Figure:
    """Draw figures of quality against the share of MACs kept, one panel each, two side by side, one curve per row.

    Args:
        cells: of the record.
        steps: denoising steps of the unpruned model.
        figures: name in the record -> name of the vertical axis.
        rows: which to draw. Default: all methods.
        log: figures on a logarithmic axis; there, an SSIM is drawn as 1 - SSIM.
    """
    rows = list(rows or cells.methods(steps))
    first = next(iter(figures))
    least = min(cells.data["budgets"])
    order = sorted(rows, key=lambda row: cells.at(steps, row, least)[first]["value"], reverse=True)
    last = [f"{cells.names[row]} {_ends(cells.at(steps, row, least), first, log)[1]:.3g}" for row in order]
    alt = f"{len(figures)} charts against MACs kept, {steps} steps, {len(rows)} methods. {figures[first]} at "
    alt += f"{100 * least:.0f} %: {last[0]}{f', {last[1]}, …' if len(last) > 2 else ''}, {last[-1]}."
    figure, axes = _panels(len(figures), 3.7, 2.9, alt, room=0.7)
    for ax, (key, label) in zip(axes, figures.items(), strict=True):
        for index, row in enumerate(rows):
            found = cells.over_budgets(steps, row)
            x = [100 * cell["macs_ratio"] for cell in found]
            low, y, high = torch.tensor([_ends(cell, key, log) for cell in found], dtype=torch.float64).T
            bars = torch.stack([y - low, high - y])
            ours = row.startswith("ours")
            ax.errorbar(
                x,
                y,
                yerr=bars,
                color=INK if ours else PALETTE[index % len(PALETTE)],
                marker=SHAPES[index % len(SHAPES)],
                linestyle="-" if ours else STYLES[index // len(PALETTE)],
                markersize=7,
                linewidth=2.2 if ours else 1.1,
                elinewidth=0.8,
                label=cells.names[row],
                zorder=3 if ours else 2,
            )
        if key in log:
            ax.set_yscale("log")
        ax.set_xlabel("MACs kept, %")
        ax.set_title(label, fontsize=10, color=INK, loc="left")
        ax.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, frameon=False, loc="outside lower center", ncols=min(3, len(rows)))
    return figure


def _ends(cell: Cell, key: str, log: Sequence[str]) -> tuple[float, float, float]:
    """Return a figure's lower end, value and upper end as they are drawn."""
    low, value, high = (cell[key][end] for end in ("low", "value", "high"))
    return (1 - high, 1 - value, 1 - low) if key == "ssim" and key in log else (low, value, high)


def _panels(count: int, width: float, height: float, alt: str, room: float, **grid) -> tuple[Figure, list]:
    """Return a figure of `count` panels, two side by side, each so wide and high in inches, and room for a legend."""
    rows = (count + 1) // 2
    figure, axes = new_figure(min(count, 2) * width, rows * height + room, alt, nrows=rows, ncols=min(count, 2), **grid)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def differences(cells: Cells, steps: int, figures: Mapping[str, tuple[str, int]], rows: Sequence[str]) -> Figure:
    """Draw ours minus each rival, with paired intervals, one panel per figure; right of 0 ours is better.

    Args:
        cells: of the record.
        steps: denoising steps of the unpruned model.
        figures: name in the record -> (title, 1 where higher is better, -1 where lower is).
        rows: the rivals.
    """
    budgets = sorted(cells.data["budgets"], reverse=True)
    worse = sum(
        sign * cells.at(steps, row, b)["ours_minus"][key]["high" if sign > 0 else "low"] < 0
        for key, (_, sign) in figures.items()
        for row in rows
        for b in budgets
    )
    total = len(figures) * len(rows) * len(budgets)
    alt = f"Ours minus {len(rows)} rivals at {len(budgets)} budgets, {steps} steps, {len(figures)} figures of quality."
    alt += f" A rival is clearly better in {worse} of {total} comparisons."
    figure, axes = _panels(len(figures), 3.9, 0.52 * len(rows) + 0.6, alt, room=0.4, sharey=True)
    for ax, (key, (title, sign)) in zip(axes, figures.items(), strict=True):
        for place, row in enumerate(rows):
            for index, budget in enumerate(budgets):
                found = cells.at(steps, row, budget)["ours_minus"][key]
                y = place + 0.15 * (index - (len(budgets) - 1) / 2)
                low, value, high = sorted(sign * found[end] for end in ("low", "value", "high"))
                ax.plot([low, high], [y, y], color=COLOURS[index], linewidth=1.4)
                ax.plot(
                    value,
                    y,
                    MARKERS[index],
                    color=COLOURS[index],
                    markersize=6,
                    label=f"{100 * budget:.0f} % of the MACs" if place == 0 else None,
                )
        ax.axvline(0, color=INK, linewidth=0.8)
        linear = _linear(cells, steps, rows, budgets, key)
        ax.set_xscale("symlog", linthresh=linear)
        ends = ax.get_xlim()
        ticks = [tick for tick in (-10 * linear, -linear, 0, linear, 10 * linear) if ends[0] <= tick <= ends[1]]
        ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_title(title, fontsize=10, color=INK, loc="left")
        ax.grid(axis="x", alpha=0.25)
    axes[0].set_yticks(range(len(rows)), [cells.names[row] for row in rows])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, frameon=False, loc="outside lower center", ncols=3)
    return figure


def _linear(cells: Cells, steps: int, rows: Sequence[str], budgets: Sequence[float], key: str) -> float:
    """Return up to where an axis is linear: half the median size of the differences, rounded to one digit."""
    sizes = [abs(cells.at(steps, row, b)["ours_minus"][key]["value"]) for row in rows for b in budgets]
    return max(float(f"{float(torch.tensor(sizes).median()) / 2:.0e}"), 1e-6)


def timelines(tables: Mapping[str, Tensor], macs: Sequence[int], base: int = 0) -> Figure:
    """Draw, for each schedule, which share of a whole call is computed at each call.

    Args:
        tables: name -> live cells, bool `[T, N]`.
        macs: of the units.
        base: MACs of what runs in every call besides the units.
    """
    weights = torch.tensor(macs, dtype=torch.float64)
    parts = {
        name: ((live * weights).sum(1) + base * live.any(1)) / (weights.sum() + base) for name, live in tables.items()
    }
    calls = {name: f"{int((share > 0).sum())} of {len(share)}" for name, share in parts.items()}
    alt = "Share of a whole call computed at each call. Calls that compute something: "
    alt += "; ".join(f"{name} {many}" for name, many in calls.items()) + "."
    figure, axes = new_figure(7.2, 0.42 * len(parts) + 0.7, alt, nrows=len(parts), sharex=True)
    for ax, (name, share) in zip(axes[:, 0], parts.items(), strict=True):
        ax.bar(range(len(share)), share, color=COLOURS[0], width=0.85)
        ax.set(ylim=(0, 1.05), yticks=[])
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, color=INK)
    axes[-1, 0].set_xlabel("call of the denoiser, from noise to picture")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def toy_holding(angles: Sequence[float], paths: Mapping[str, Tensor]) -> Figure:
    """Draw the toy's samples on their way from noise to data, in the plane of the clean value and the noise.

    Args:
        angles: of the noise level at each step, in radians.
        paths: name -> the path `[steps + 1]`; one of them is what the others should be.
    """
    names = list(paths)
    off = {name: abs(float(path[-1] - paths[names[0]][-1])) for name, path in paths.items()}
    alt = f"Paths of one number over {len(angles)} steps. How far each ends from {names[0]}: "
    alt += "; ".join(f"{name} {off[name]:.3f}" for name in names[1:]) + "."
    figure, axes = new_figure(6.4, 3.0, alt)
    ax = axes[0, 0]
    for (name, path), colour, marker in zip(paths.items(), COLOURS, MARKERS, strict=False):
        ax.plot(range(len(path)), path, color=colour, marker=marker, markersize=4, linewidth=1.2, label=name)
    ax.set(xlabel="step", ylabel="the sample")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, frameon=False)
    return figure


def search_traces(traces: Mapping[str, Sequence[Sequence[float]]], images: int, *, ylabel: str) -> Figure:
    """Draw the best loss so far against the images drawn.

    Args:
        traces: name -> [images, loss] whenever the loss fell.
        images: at which the searches ended.
        ylabel: what the loss is.
    """
    ends = "; ".join(f"{name} {trace[-1][1]:.3g}" for name, trace in traces.items())
    alt = f"{ylabel} of the best schedule so far, up to {images} images. At the end: {ends}."
    figure, axes = new_figure(6.4, 3.2, alt)
    ax = axes[0, 0]
    for (name, trace), colour in zip(traces.items(), COLOURS, strict=False):
        x, y = [point[0] for point in trace], [point[1] for point in trace]
        ax.step([*x, images], [*y, y[-1]], where="post", color=colour, label=name)
    ax.set_yscale("log")
    ax.set(xlabel="images drawn by the search", ylabel=ylabel)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, frameon=False)
    return figure
