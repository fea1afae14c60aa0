"""Figures and tables of the chapter on schedules at equal MACs, from its records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..output import percent, spread, table
from . import draw

Cell = Mapping[str, Any]
STYLES = ("-", "--")
PALETTE, SHAPES = (*draw.COLOURS, "#7b4b12"), f"{draw.MARKERS}X"  # one more: there are seven rivals
# Names that say more than those in the records: the runs are far shorter than the authors'.
SHOWN_NAMES = {"dip-go": "DiP-GO's recipe, shortened", "dip-go-held": "DiP-GO's recipe, shortened, prediction held"}


def shown_names(recorded: Mapping[str, str]) -> dict[str, str]:
    """Return how pages call the rows: as the record does, but for `SHOWN_NAMES`."""
    return {row: SHOWN_NAMES.get(row, name) for row, name in recorded.items()}


class Cells:
    """The cells of the data of the record `schedule_comparison`, by number of steps, row and budget."""

    def __init__(self, data: Mapping[str, Any]):
        self.data = data
        self.names = shown_names(data["rows"])
        self.budgets = sorted(data["budgets"], reverse=True)
        self._cells = {(c["steps"], c["row"], c["budget"]): c for c in data["cells"]}

    def rows(self, steps: int) -> list[str]:
        """Return the rows that were judged at every budget, in the record's order."""
        return [row for row in self.names if all((steps, row, b) in self._cells for b in self.budgets)]

    def methods(self, steps: int) -> list[str]:
        """Return those rows of `rows` that are methods on their own, and no variations of another row."""
        return [row for row in self.rows(steps) if row in self.data["methods"]]

    def at(self, steps: int, row: str, budget: float) -> Cell:
        """Return one cell; a KeyError says that it was not judged."""
        if (steps, row, budget) not in self._cells:
            raise KeyError(f"There is no cell of {row!r} at {budget:g} of the MACs and {steps} steps.")
        return self._cells[steps, row, budget]


def against_budget(
    cells: Cells, steps: int, figures: Mapping[str, str], rows: Sequence[str] | None = None, log: Sequence[str] = ()
) -> Figure:
    """Draw figures of quality against the share of MACs kept, one panel each, two side by side, one curve per row.

    `steps` are those of the unpruned model, `figures` name in the record -> name of the vertical axis; `rows` are by
    default all methods. Figures in `log` get a logarithmic axis; there, an SSIM is drawn as 1 - SSIM.
    """
    rows = list(rows or cells.methods(steps))
    first = next(iter(figures))
    *_, least = budgets = cells.budgets
    order = sorted(rows, key=lambda row: cells.at(steps, row, least)[first]["value"], reverse=True)
    last = [f"{cells.names[row]} {_drawn(cells.at(steps, row, least), first, log)[0]:.3g}" for row in order]
    alt = f"{len(figures)} charts against MACs kept, {steps} steps, {len(rows)} methods. {figures[first]} at "
    alt += f"{100 * least:.0f} %: {last[0]}{f', {last[1]}, …' if len(last) > 2 else ''}, {last[-1]}."
    figure, axes = draw.panels(len(figures), 3.7, 2.9, alt, room=0.7)
    for ax, (key, label) in zip(axes, figures.items(), strict=True):
        for index, row in enumerate(rows):
            found = [cells.at(steps, row, budget) for budget in budgets]
            again, colour = divmod(index, len(PALETTE))
            look = {"color": PALETTE[colour], "linestyle": STYLES[again], "linewidth": 1.1, "zorder": 2}
            if row.startswith("ours"):
                look = {"color": draw.INK, "linestyle": "-", "linewidth": 2.2, "zorder": 3}
            look |= {"marker": SHAPES[index % len(SHAPES)], "markersize": 7, "elinewidth": 0.8}
            x, ends = [100 * cell["macs_ratio"] for cell in found], [_drawn(cell, key, log) for cell in found]
            draw.error_bars(ax, x, *zip(*ends, strict=True), label=cells.names[row], **look)
        if key in log:
            ax.set_yscale("log")
        draw.title(ax, label, 10, loc="left")
        draw.finish(ax, xlabel="MACs kept, %")
    draw.shared_legend(figure, axes[0], min(3, len(rows)))
    return figure


def _drawn(cell: Cell, key: str, log: Sequence[str]) -> tuple[float, float, float]:
    """Return a figure's value, lower and upper end as they are drawn."""
    value, low, high = (cell[key][end] for end in ("value", "low", "high"))
    return (1 - value, 1 - high, 1 - low) if key == "ssim" and key in log else (value, low, high)


def differences(cells: Cells, steps: int, figures: Mapping[str, tuple[str, int]], rows: Sequence[str]) -> Figure:
    """Draw ours minus each rival of `rows`, with paired intervals, one panel per figure; right of 0 ours is better.

    `figures` is name in the record -> (title, 1 where higher is better, -1 where lower is).
    """
    budgets, found = cells.budgets, {}
    for key, row, budget in itertools.product(figures, rows, budgets):
        by = cells.at(steps, row, budget)["ours_minus"][key]  # turned, so that more is better:
        found[key, row, budget] = sorted(figures[key][1] * by[end] for end in ("low", "value", "high"))
    worse = sum(high < 0 for _, _, high in found.values())
    alt = f"Ours minus {len(rows)} rivals at {len(budgets)} budgets, {steps} steps, {len(figures)} figures of quality."
    alt += f" A rival is clearly better in {worse} of {len(found)} comparisons."
    figure, axes = draw.panels(len(figures), 3.9, 0.52 * len(rows) + 0.6, alt, room=0.4, sharey=True)
    for ax, (key, (name, _)) in zip(axes, figures.items(), strict=True):
        for place, row in enumerate(rows):
            for index, budget in enumerate(budgets):
                low, value, high = found[key, row, budget]
                y = place + 0.15 * (index - (len(budgets) - 1) / 2)
                label = f"{100 * budget:.0f} % of the MACs" if place == 0 else None
                ax.plot([low, high], [y, y], color=draw.COLOURS[index], linewidth=1.4)
                ax.plot(value, y, draw.MARKERS[index], color=draw.COLOURS[index], markersize=6, label=label)
        ax.axvline(0, color=draw.INK, linewidth=0.8)
        # linear up to half the median size of the differences, rounded to one digit
        sizes = torch.tensor([abs(value) for (of, *_), (_, value, _) in found.items() if of == key])
        linear = max(float(f"{float(sizes.median()) / 2:.0e}"), 1e-6)
        ax.set_xscale("symlog", linthresh=linear)
        left, right = ax.get_xlim()
        ticks = [tick for tick in (-10 * linear, -linear, 0, linear, 10 * linear) if left <= tick <= right]
        ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        ax.minorticks_off()
        draw.title(ax, name, 10, loc="left")
        draw.finish(ax, grid="x")
    draw.name_rows(axes[0], [cells.names[row] for row in rows])
    draw.shared_legend(figure, axes[0], 3)
    return figure


def timelines(tables: Mapping[str, Tensor], macs: Sequence[int], base: int = 0) -> Figure:
    """Draw, for each schedule, name -> live cells, bool `[T, N]`, which share of a whole call is computed at each call.

    `macs` are those of the N units, `base` those of what runs in every call besides.
    """
    weights = torch.tensor(macs, dtype=torch.float64)
    whole = weights.sum() + base
    parts = {name: ((live * weights).sum(1) + base * live.any(1)) / whole for name, live in tables.items()}
    calls = "; ".join(f"{name} {int((share > 0).sum())} of {len(share)}" for name, share in parts.items())
    alt = f"Share of a whole call computed at each call. Calls that compute something: {calls}."
    figure, axes = draw.new_figure(7.2, 0.42 * len(parts) + 0.7, alt, nrows=len(parts), sharex=True)
    for ax, (name, share) in zip(axes[:, 0], parts.items(), strict=True):
        ax.bar(range(len(share)), share, color=draw.COLOURS[0], width=0.85)
        ax.set(ylim=(0, 1.05), yticks=[])
        draw.beside(ax, name, 8)
    axes[-1, 0].set_xlabel("call of the denoiser, from noise to picture")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def toy_holding(angles: Sequence[float], paths: Mapping[str, Tensor]) -> Figure:
    """Draw the toy's samples, name -> path `[steps + 1]`, one step for each of `angles`; the first is right."""
    (first, exact), *rest = paths.items()
    off = "; ".join(f"{name} {abs(float(path[-1] - exact[-1])):.3f}" for name, path in rest)
    alt = f"Paths of one number over {len(angles)} steps. How far each ends from {first}: {off}."
    figure, ax = draw.one_panel(6.4, 3.0, alt)
    draw.curves(ax, {name: (range(len(path)), path) for name, path in paths.items()}, markersize=4, linewidth=1.2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    draw.finish(ax, xlabel="step", ylabel="the sample", legend={})
    return figure


def search_traces(traces: Mapping[str, Sequence[Sequence[float]]], images: int, *, ylabel: str) -> Figure:
    """Draw the best loss so far, name -> [images, loss] whenever it fell, against up to `images` drawn."""
    ends = "; ".join(f"{name} {trace[-1][1]:.3g}" for name, trace in traces.items())
    alt = f"{ylabel} of the best schedule so far, up to {images} images. At the end: {ends}."
    figure, ax = draw.one_panel(6.4, 3.2, alt)
    for (name, trace), colour in zip(traces.items(), draw.COLOURS, strict=False):
        x, y = zip(*trace, (images, trace[-1][1]), strict=True)
        ax.step(x, y, where="post", color=colour, label=name)
    ax.set_yscale("log")
    draw.finish(ax, xlabel="images drawn by the search", ylabel=ylabel, legend={})
    return figure


def quality_table(cells: Cells, steps: int, budget: float, rows: Sequence[str]) -> HTML:
    """Return all figures of quality of some methods at one budget, a share of MACs kept; the unpruned model first."""
    data = cells.data
    whole = data["unpruned"][str(steps)]
    lines = [["unpruned", "100 %", "1", "0", spread(whole["frechet_real"], 2), spread(whole["clip_score"], 1)]]
    digits = {"ssim": 3, "frechet_unpruned": 2, "frechet_real": 2, "clip_score": 1}
    for row in rows:
        cell = cells.at(steps, row, budget)
        figures = [spread(cell[key], places) for key, places in digits.items()]
        lines.append([cells.names[row], percent(cell["macs_ratio"], 1), *figures])
    return table(
        ["method", "MACs kept", "SSIM", "Fréchet, unpruned", "Fréchet, real", "CLIP score"],
        lines,
        caption=f"{steps} steps, at most {percent(budget)} of the MACs, n = {data['n']}; means and distances with 95 % "
        "intervals. Fréchet distances and CLIP scores are the mini CLIP's.",
    )


def held_table(cells: Cells, steps: int, pairs: Sequence[tuple[str, str]]) -> HTML:
    """Return what holding the prediction instead of the output does to the SSIM of the same schedules, by budget.

    `pairs` are rows that hold the output, each with the row that holds the prediction.
    """
    lines = []
    for pair in pairs:
        means = [[f"{cells.at(steps, row, b)['ssim']['value']:.3f}" for row in pair] for b in cells.budgets]
        lines.append([cells.names[pair[0]], *map(" \u2192 ".join, means)])
    what = "with the output held, and with the prediction held"
    caption = f"Mean SSIM to the unpruned picture, {steps} steps, n = {cells.data['n']}: {what}."
    return table(["MACs kept at most", *map(percent, cells.budgets)], lines, caption)


def search_table(search: Mapping[str, Any]) -> HTML:
    """Return what each kind of search cost and found, from the data of the record `schedule_search`."""
    names, lines = shown_names(search["names"]), []
    for row in search["rows"]:
        images = f"{row['images']}" if row["images"] else f"{row['images_with_gradient']} *"
        cost = [images, f"{row['cpu_seconds']:.0f}", f"{row['latent_mse']:.4f}"]
        found = [spread(row["ssim"]), spread(row["clip_score"], 1)]
        lines.append([names[row["method"]], percent(1 - row["budget"]), *cost, *found])
    return table(
        ["method", "removed", "images", "seconds of one core", "latent error", "SSIM", "CLIP score"],
        lines,
        f"{search['steps']} steps, n = {search['n']} held-out prompts. Unpruned CLIP score: "
        f"{spread(search['unpruned_clip_score'], 1)}. A backward pass of a search is charged as four images. "
        "*: with gradients, once for all budgets.",
    )


def speed_table(cells: Cells, steps: int, rows: Sequence[str], kind: str = "denoising") -> HTML | None:
    """Return measured speed-ups by budget, of "denoising" or whole "generation"; None if not measured."""
    speed = cells.data.get("speed")
    if not speed or f"{steps}-unpruned" not in speed["times"]:
        return None
    times, stamp = speed["times"], speed["passport"]

    def measured(row: str, budget: float) -> str:
        timed = times.get(f"{steps}-{budget:g}-{row}")
        return spread(timed[kind]["times_as_fast"], 2) if timed else "not measured"

    lines = [["promised, at least", *(f"{1 / budget:.2f}" for budget in cells.budgets)]]
    lines += [[cells.names[row], *(measured(row, budget) for budget in cells.budgets)] for row in rows]
    what = {"denoising": "Denoising alone", "generation": "Whole generations, prompt and decoding included"}[kind]
    return table(
        ["MACs kept at most", *map(percent, cells.budgets)],
        lines,
        f"{what}: times as fast as the unpruned, {speed['pictures']} pictures, {steps} steps. "
        f"{stamp['hardware']}, one thread, {stamp['n']} rounds, the schedules of a method in turn with the unpruned.",
    )
