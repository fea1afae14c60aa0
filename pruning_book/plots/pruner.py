"""Figures of training a pruner: curves, gates over iterations, scores, and what is kept in memory.

Each function takes plain data, of a record or a history, and returns a Figure with its words in `figure.alt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..widgets.editor_grid import short_name
from .figure import COLOURS, INK, MARKERS, new_figure

__all__ = ["budget_curves", "gradients", "kept_curves", "memory_curves", "score_map", "training_curves"]

FLOOR = 1e-6  # below, a loss is drawn here: 0 has no place on a logarithmic axis


def training_curves(histories: Mapping[str, Sequence[Mapping]], *, loss: str = "consistency loss") -> Figure:
    """Draw, over iterations, the consistency loss and the share of MACs kept.

    Args:
        histories: name -> lines with "step", "loss" and "macs_ratio", as `TrainedPruner.history` has them.
        loss: name of the left axis.
    """
    ends = "; ".join(
        f"{name}: loss {h[0]['loss']:.2g} to {h[-1]['loss']:.2g}, MACs {h[0]['macs_ratio']:.2f} to "
        f"{h[-1]['macs_ratio']:.2f} in {len(h)} iterations"
        for name, h in histories.items()
    )
    figure, axes = new_figure(7.6, 3.2, f"Two panels over iterations, loss and kept MACs. {ends}.", ncols=2)
    left, right = axes[0]
    for (name, lines), colour in zip(histories.items(), COLOURS, strict=False):
        steps = [line["step"] for line in lines]
        left.plot(steps, [max(line["loss"], FLOOR) for line in lines], color=colour, linewidth=1.3, label=name)
        right.plot(steps, [line["macs_ratio"] for line in lines], color=colour, linewidth=1.3, drawstyle="steps-mid")
    left.set(yscale="log", xlabel="iteration", ylabel=loss)
    right.set(xlabel="iteration", ylabel="MACs kept", ylim=(0, 1.05))
    for ax in (left, right):
        ax.grid(alpha=0.25)
    if len(histories) > 1:
        figure.legend(loc="outside lower center", ncols=len(histories), fontsize=9, frameon=False)
    return figure


def kept_curves(histories: Mapping[str, Sequence[Mapping]], *, floor: float) -> Figure:
    """Draw the share of MACs kept over iterations, and the share that the first call alone takes.

    Args:
        histories: name -> lines with "step" and "macs_ratio".
        floor: what is left when all gates behind the first call are shut.
    """
    ends = "; ".join(f"{name}: {lines[-1]['macs_ratio']:.2f}" for name, lines in histories.items())
    alt = f"Kept MACs over iterations; the first call alone is {floor:.2f}. At the last iteration: {ends}."
    figure, axes = new_figure(7.0, 3.6, alt)
    ax = axes[0, 0]
    for (name, lines), colour, marker in zip(histories.items(), COLOURS, MARKERS, strict=False):
        ax.plot(
            [line["step"] for line in lines],
            [line["macs_ratio"] for line in lines],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            label=name,
        )
    ax.axhline(floor, color=INK, linewidth=0.9, linestyle=":", label="the first call alone")
    ax.set(xlabel="iteration", ylabel="MACs kept", ylim=(0, 1.05))
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def score_map(tables: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draw scores as shades, by rank: the darker, the more a cell is worth.

    Args:
        tables: title -> scores `[T, N]`.
        names: of the N units.
    """
    widths = [min(0.2 * len(scores), 6 / len(tables) + 1) for scores in tables.values()]
    tops = []
    for title, scores in tables.items():
        by_unit = _ranks(scores)[1:].mean(0)
        tops.append(
            f"{title}: highest in the mean {names[int(by_unit.argmax())]}, lowest {names[int(by_unit.argmin())]}"
        )
    alt = f"Scores of {len(names)} units (rows) over calls (columns), dark is high. {'; '.join(tops)}."
    figure, axes = new_figure(
        sum(widths) + 1.8,
        min(0.2 * len(names), 7) + 0.9,
        alt,
        ncols=len(tables),
        sharey=True,
        gridspec_kw={"width_ratios": widths},
    )
    for ax, (title, scores) in zip(axes[0], tables.items(), strict=True):
        shown = ax.imshow(_ranks(scores).T, cmap="cividis_r", vmin=0, vmax=1, aspect="auto", interpolation="none")
        ax.set_title(title, fontsize=9, color=INK)
        ax.set_xlabel("call", fontsize=9)
        calls = len(scores)
        far = 1 if calls <= 12 else 5 if calls <= 30 else 10
        ax.set_xticks(range(far - 1, calls, far), [str(t + 1) for t in range(far - 1, calls, far)], fontsize=8)
    axes[0, 0].set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=7.5)
    bar = figure.colorbar(shown, ax=axes[0, -1], shrink=0.8, ticks=(0, 1))
    bar.ax.set_yticklabels(["lowest", "highest"], fontsize=8)
    return figure


def _ranks(scores: Tensor) -> Tensor:
    """Return the rank of each score behind the first call, from 0 to 1; the first call counts as 1."""
    flat = scores[1:].flatten()
    ranks = flat.argsort().argsort().float() / max(1, len(flat) - 1)
    found = scores.float().clone()
    found[0] = 1.0
    found[1:] = ranks.view(scores[1:].shape)
    return found


def budget_curves(rows: Mapping[str, Sequence[Mapping]], figure_name: str, *, ylabel: str) -> Figure:
    """Draw a figure of quality over the share of MACs kept, with intervals.

    Args:
        rows: name -> rows with "macs_ratio" and `figure_name`, which holds "value", "low" and "high".
        figure_name: which figure.
        ylabel: name of the vertical axis.
    """
    at = "; ".join(
        f"{name} {min(found, key=lambda r: r['macs_ratio'])[figure_name]['value']:.3f}" for name, found in rows.items()
    )
    figure, axes = new_figure(6.6, 3.8, f"{ylabel} against MACs kept. At the lowest budget: {at}.")
    ax = axes[0, 0]
    for (name, found), colour, marker in zip(rows.items(), COLOURS, MARKERS, strict=False):
        found = sorted(found, key=lambda row: row["macs_ratio"])
        x, y = [row["macs_ratio"] for row in found], [row[figure_name] for row in found]
        ax.plot(x, [v["value"] for v in y], color=colour, marker=marker, markersize=5, label=name)
        ax.fill_between(x, [v["low"] for v in y], [v["high"] for v in y], color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel="MACs kept", ylabel=ylabel)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, frameon=False)
    return figure


def memory_curves(rows: Sequence[Mapping]) -> Figure:
    """Draw peak memory of one training iteration over the number of steps, with and without checkpointing.

    Args:
        rows: with "steps", "checkpointing" and "memory_mib".
    """
    parts = {
        name: sorted((r["steps"], r["memory_mib"]) for r in rows if r["checkpointing"] == on)
        for name, on in (("all activations kept", False), ("checkpointed, call by call", True))
    }
    ends = "; ".join(
        f"{name}: {p[0][1]:.0f} MiB at {p[0][0]}, {p[-1][1]:.0f} at {p[-1][0]}" for name, p in parts.items()
    )
    figure, axes = new_figure(6.0, 3.4, f"Peak memory against steps. {ends}.")
    ax = axes[0, 0]
    for (name, points), colour, marker in zip(parts.items(), COLOURS, MARKERS, strict=False):
        ax.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name)
    ax.set(xlabel="denoising steps", ylabel="peak memory, MiB", ylim=(0, None), xlim=(0, None))
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, frameon=False)
    return figure


def gradients(tables: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draw the size of each gate's gradient, on a logarithmic scale; where it is 0 the cell stays white.

    Args:
        tables: title -> gradients `[T, N]`.
        names: of the N units.
    """
    nothing = "; ".join(
        f"{title}: {int((grad[1:] == 0).sum())} of {grad[1:].numel()} cells without gradient"
        for title, grad in tables.items()
    )
    alt = f"Size of the gradient of {len(names)} units (rows) over calls (columns). {nothing}."
    figure, axes = new_figure(
        2.1 * len(tables) + 1.8, min(0.2 * len(names), 7) + 0.9, alt, ncols=len(tables), sharey=True
    )
    sizes = {title: np.ma.log10(np.ma.masked_equal(grad[1:].abs().numpy(), 0)) for title, grad in tables.items()}
    top = max(float(size.max()) for size in sizes.values() if size.count())
    for ax, (title, size) in zip(axes[0], sizes.items(), strict=True):
        shown = ax.imshow(
            size.T,
            cmap="cividis_r",
            vmin=top - 6,
            vmax=top,
            aspect="auto",
            interpolation="none",
            extent=(1.5, len(size) + 1.5, len(names) - 0.5, -0.5),
        )
        ax.set_title(title, fontsize=9, color=INK)
        ax.set_xlabel("call", fontsize=9)
        ax.set_xticks(range(2, len(size) + 2))
    axes[0, 0].set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=7.5)
    figure.colorbar(shown, ax=axes[0, -1], shrink=0.8, label="log10 of its size").ax.tick_params(labelsize=8)
    return figure
