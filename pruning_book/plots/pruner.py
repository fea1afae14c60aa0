"""Figures of training a pruner: curves, gates over iterations, scores, and what is kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from . import draw

FLOOR = 1e-6  # below, a loss is drawn here: 0 has no place on a logarithmic axis
History = Sequence[Mapping]  # lines with "step", "loss" and "macs_ratio", as `TrainedPruner.history` has them


def training_curves(histories: Mapping[str, History]) -> Figure:
    """Draw the loss and the share of MACs kept over iterations, name -> history."""
    ends = "; ".join(
        f"{name}: loss {h[0]['loss']:.2g} to {h[-1]['loss']:.2g}, MACs {h[0]['macs_ratio']:.2f} to "
        f"{h[-1]['macs_ratio']:.2f} in {len(h)} iterations"
        for name, h in histories.items()
    )
    figure, axes = draw.new_figure(7.6, 3.2, f"Two panels over iterations, loss and kept MACs. {ends}.", ncols=2)
    left, right = axes[0]
    for (name, lines), colour in zip(histories.items(), draw.COLOURS, strict=False):
        steps = [line["step"] for line in lines]
        left.plot(steps, [max(line["loss"], FLOOR) for line in lines], color=colour, linewidth=1.3, label=name)
        right.plot(steps, [line["macs_ratio"] for line in lines], color=colour, linewidth=1.3, drawstyle="steps-mid")
    draw.finish(left, yscale="log", xlabel="iteration", ylabel="consistency loss")
    draw.finish(right, xlabel="iteration", ylabel="MACs kept", ylim=(0, 1.05))
    if len(histories) > 1:
        figure.legend(loc="outside lower center", ncols=len(histories), fontsize=9, frameon=False)
    return figure


def kept_curves(histories: Mapping[str, History], *, floor: float) -> Figure:
    """Draw the share of MACs kept over iterations, and `floor`, the share that the first call alone takes."""
    found = {name: ([h["step"] for h in lines], [h["macs_ratio"] for h in lines]) for name, lines in histories.items()}
    ends = "; ".join(f"{name}: {kept[-1]:.2f}" for name, (_, kept) in found.items())
    alt = f"Kept MACs over iterations; the first call alone is {floor:.2f}. At the last iteration: {ends}."
    figure, ax = draw.one_panel(7.0, 3.6, alt)
    draw.curves(ax, found, markersize=4, linewidth=1.2)
    ax.axhline(floor, color=draw.INK, linewidth=0.9, linestyle=":", label="the first call alone")
    legend = {"fontsize": 8, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    draw.finish(ax, xlabel="iteration", ylabel="MACs kept", ylim=(0, 1.05), legend=legend)
    return figure


def score_map(tables: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draw scores as shades, by rank: the darker, the more a cell is worth; title -> scores `[T, N]` of N units."""
    widths = [min(0.2 * len(scores), 6 / len(tables) + 1) for scores in tables.values()]
    ranks = {what: _ranks(scores) for what, scores in tables.items()}
    means = {what: found[1:].mean(0) for what, found in ranks.items()}
    tops = "; ".join(
        f"{what}: highest in the mean {names[int(mean.argmax())]}, lowest {names[int(mean.argmin())]}"
        for what, mean in means.items()
    )
    alt = f"Scores of {len(names)} units (rows) over calls (columns), dark is high. {tops}."
    grid = {"ncols": len(tables), "sharey": True, "gridspec_kw": {"width_ratios": widths}}
    figure, axes = draw.new_figure(sum(widths) + 1.8, min(0.2 * len(names), 7) + 0.9, alt, **grid)
    for ax, (what, found) in zip(axes[0], ranks.items(), strict=True):
        shown = ax.imshow(found.T, cmap="cividis_r", vmin=0, vmax=1, aspect="auto", interpolation="none")
        draw.title(ax, what)
        ax.set_xlabel("call", fontsize=9)
        draw.count_calls(ax, len(found))
    draw.name_units(axes[0, 0], names)
    bar = figure.colorbar(shown, ax=axes[0, -1], shrink=0.8, ticks=(0, 1))
    bar.ax.set_yticklabels(["lowest", "highest"], fontsize=8)
    return figure


def _ranks(scores: Tensor) -> Tensor:
    """Return the rank of each score behind the first call, from 0 to 1; the first call counts as 1."""
    flat = scores[1:].flatten()
    found = scores.float().clone()
    found[0] = 1.0
    found[1:] = (flat.argsort().argsort().float() / max(1, len(flat) - 1)).view(scores[1:].shape)
    return found


def budget_curves(rows: Mapping[str, Sequence[Mapping]], figure_name: str, *, ylabel: str) -> Figure:
    """Draw a figure of quality, with intervals, over the share of MACs kept; `rows` is name -> rows with both."""
    ordered = {name: sorted(found, key=lambda row: row["macs_ratio"]) for name, found in rows.items()}
    at = "; ".join(f"{name} {found[0][figure_name]['value']:.3f}" for name, found in ordered.items())
    figure, ax = draw.one_panel(6.6, 3.8, f"{ylabel} against MACs kept. At the lowest budget: {at}.")
    named = {}
    for name, found in ordered.items():
        named[name] = ([row["macs_ratio"] for row in found], *draw.columns([row[figure_name] for row in found]))
    draw.curves(ax, named, markersize=5)
    draw.finish(ax, xlabel="MACs kept", ylabel=ylabel, legend={})
    return figure


def memory_curves(rows: Sequence[Mapping]) -> Figure:
    """Draw peak memory of one training iteration, "memory_mib", over "steps", with and without "checkpointing"."""
    parts = {
        name: sorted((r["steps"], r["memory_mib"]) for r in rows if r["checkpointing"] == on)
        for name, on in (("all activations kept", False), ("checkpointed, call by call", True))
    }
    ends = "; ".join(
        f"{name}: {p[0][1]:.0f} MiB at {p[0][0]}, {p[-1][1]:.0f} at {p[-1][0]}" for name, p in parts.items()
    )
    figure, ax = draw.one_panel(6.0, 3.4, f"Peak memory against steps. {ends}.")
    draw.curves(ax, {name: tuple(zip(*points, strict=True)) for name, points in parts.items()})
    draw.finish(ax, xlabel="denoising steps", ylabel="peak memory, MiB", ylim=(0, None), xlim=(0, None), legend={})
    return figure


def gradients(tables: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draw the size of each gate's gradient, title -> `[T, N]`, on a logarithmic scale; 0 stays white."""
    nothing = "; ".join(
        f"{what}: {int((grad[1:] == 0).sum())} of {grad[1:].numel()} cells without gradient"
        for what, grad in tables.items()
    )
    alt = f"Size of the gradient of {len(names)} units (rows) over calls (columns). {nothing}."
    height = min(0.2 * len(names), 7) + 0.9
    figure, axes = draw.new_figure(2.1 * len(tables) + 1.8, height, alt, ncols=len(tables), sharey=True)
    sizes = {what: np.ma.log10(np.ma.masked_equal(grad[1:].abs().numpy(), 0)) for what, grad in tables.items()}
    top = max(float(size.max()) for size in sizes.values() if size.count())
    for ax, (what, size) in zip(axes[0], sizes.items(), strict=True):
        extent = (1.5, len(size) + 1.5, len(names) - 0.5, -0.5)
        look = {"cmap": "cividis_r", "vmin": top - 6, "vmax": top, "aspect": "auto", "interpolation": "none"}
        shown = ax.imshow(size.T, extent=extent, **look)
        draw.title(ax, what)
        ax.set_xlabel("call", fontsize=9)
        ax.set_xticks(range(2, len(size) + 2))
    draw.name_units(axes[0, 0], names)
    figure.colorbar(shown, ax=axes[0, -1], shrink=0.8, label="log10 of its size").ax.tick_params(labelsize=8)
    return figure
