"""A picture of a schedule, plain enough for any page or terminal session."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pruning_lib.steps.schedule import Schedule

__all__ = ["draw_schedule"]

_COLOURS = ("#e8e6df", "#b9b4a7", "#0072b2")  # reused, dead, computed; told apart by lightness as well


def draw_schedule(schedule: Schedule, *, title: str | None = None) -> Figure:
    """Draw which cells are computed (dark), computed for nothing (grey), and reused (light).

    Args:
        schedule: what to draw.
        title: over the picture; default: method and share of MACs.

    Returns:
        A matplotlib figure that is not registered with pyplot.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    calls, units = schedule.grid.shape
    state = (schedule.on.int() + schedule.live().int()).T  # 0 off, 1 on but dead, 2 live
    figure = Figure(figsize=(2.6 + min(0.22 * calls, 9), 0.8 + min(0.2 * units, 8)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(state.numpy(), cmap=ListedColormap(_COLOURS), vmin=0, vmax=2, aspect="auto", interpolation="none")
    axes.set_xticks([x - 0.5 for x in range(1, calls)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, units)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    if units <= 60:
        axes.set_yticks(range(units), schedule.grid.names, fontsize=7)
    axes.set_xlabel("call of the denoiser")
    axes.set_title(title or f"{schedule.label}: {schedule.macs_ratio():.1%} of the MACs", fontsize=10)
    names = ("reused", "on, but dead work", "computed")
    handles = [Patch(facecolor=c, edgecolor="#8a8578", label=n) for c, n in zip(_COLOURS, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
