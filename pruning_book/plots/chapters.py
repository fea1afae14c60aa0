"""Figures that several chapters draw, and those of chapters 1 and 2.

Each function of this package takes data or images and returns a matplotlib Figure with an opaque background and its
words in `figure.alt`, made from the data, so that they cannot go stale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from . import draw


def to_tensor(images: Sequence) -> Tensor:
    """Return PIL images of one size as float `[n, 3, h, w]` in [0, 1]."""
    return torch.from_numpy(_as_array(images)).permute(0, 3, 1, 2).float()


def _as_array(images: Tensor | Sequence) -> np.ndarray:
    """Return `[n, h, w, 3]` in [0, 1] from float or uint8 `[n, 3, h, w]` or a list of PIL images."""
    if isinstance(images, Tensor):
        images = images.detach().float() / (255 if images.dtype == torch.uint8 else 1)
        return images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return np.stack([np.asarray(image.convert("RGB")) / 255 for image in images])


def image_grid(
    images: Tensor | Sequence, *, columns: Sequence[str] = (), rows: Sequence[str] = (), what: str, size: float = 1.25
) -> Figure:
    """Draw images in rows, with names above the columns and beside the rows; with no `rows`, all in one.

    `images` are `[n, 3, h, w]` in [0, 1] or uint8, or PIL images, row by row; n = rows × columns, else a ValueError.
    `what` says what they are, for the alt text, as in "lion from three samplers"; `size` is in inches per picture.
    """
    pictures = _as_array(images)
    across = len(columns) or len(pictures)
    down = max(len(rows), 1)
    if across * down != len(pictures):
        raise ValueError(f"{len(pictures)} images do not fill {down} rows of {across}; give names for each of them")
    alt = f"{down * across} pictures: {what}."
    alt += f" Columns: {', '.join(columns)}." if columns else ""
    alt += f" Rows: {', '.join(rows)}." if rows else ""
    width = across * size + (0.95 if rows else 0.1)
    figure, axes = draw.new_figure(width, down * size + 0.35, alt.replace("\n", " "), nrows=down, ncols=across)
    for index, ax in enumerate(axes.flat):
        ax.imshow(pictures[index], interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color="#d5dbe0")
        if columns and index < across:
            draw.title(ax, columns[index])
        if rows and index % across == 0:
            draw.beside(ax, rows[index // across])
    return figure


def latent_channels(latents: Tensor, names: Sequence[str]) -> Figure:
    """Draw the channels of some latents `[n, channels, h, w]`, one name each, as grey pictures."""
    n, channels = latents.shape[:2]
    alt = f"The {channels} channels of {n} latents as grey pictures: {', '.join(names)}."
    alt += f" Values {latents.min():.1f} to {latents.max():.1f}."
    figure, axes = draw.new_figure(channels * 1.3 + 1.2, n * 1.3 + 0.3, alt, nrows=n, ncols=channels)
    for (row, column), ax in np.ndenumerate(axes):
        shown = ax.imshow(latents[row, column].cpu(), cmap="gray", vmin=-3, vmax=3, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        if row == 0:
            draw.title(ax, f"channel {column}")
    for ax, name in zip(axes[:, 0], names, strict=True):
        draw.beside(ax, name)
    figure.colorbar(shown, ax=axes, shrink=0.7, ticks=(-3, 0, 3)).ax.tick_params(labelsize=8)
    return figure


def toy_diffusion(paths: Tensor, ends: dict[str, Tensor], spread: float) -> Figure:
    """Draw paths of the one-dimensional toy, `[steps + 1, n]` from noise to data, and where they end.

    `ends` is name -> end points `[n]`, a panel each; `spread` the standard deviation of both bumps, at -1 and +1.
    """
    where = "; ".join(f"{name}: mean {v.mean():.2f}, spread {v.std():.2f}" for name, v in ends.items())
    alt = f"Left: {paths.shape[1]} paths from one cloud of noise to two clusters near -1 and +1. Right, ends. {where}."
    figure, axes = draw.new_figure(7.6, 4.2, alt, nrows=2, ncols=1, gridspec_kw={"height_ratios": (3, 2)})
    axes[1, 0].remove(), axes[0, 0].remove()
    grid = figure.add_gridspec(len(ends), 2, width_ratios=(3, 2))
    main = figure.add_subplot(grid[:, 0])
    for path in paths.T:
        main.plot(path, color=draw.COLOURS[1] if path[-1] < 0 else draw.COLOURS[0], linewidth=0.6, alpha=0.45)
    main.set(xlabel="step", ylabel="value", xlim=(0, len(paths) - 1))
    at = np.linspace(-3, 3, 400)
    truth = sum(np.exp(-0.5 * ((at - m) / spread) ** 2) for m in (-1, 1)) / (2 * spread * np.sqrt(2 * np.pi))
    for row, (name, values) in enumerate(ends.items()):
        ax = figure.add_subplot(grid[row, 1])
        ax.plot(at, truth, color=draw.INK, linewidth=1, label="data")
        ax.hist(values, bins=np.linspace(-3, 3, 61), density=True, color=draw.COLOURS[4], alpha=0.75, label="samples")
        draw.title(ax, name, loc="left")
        ax.set(yticks=[], xlim=(-3, 3), ylim=(0, 1.7 * truth.max()))  # a spike of equal ends is cut off
        if row == 0:
            ax.legend(fontsize=8, frameon=False)
        if row < len(ends) - 1:
            ax.set_xticklabels([])
    return figure


def heat(matrix: Tensor, rows: Sequence[str], columns: Sequence[str], *, what: str, form: str = "{:.2f}") -> Figure:
    """Draw similarities `[rows, columns]`, of `what`, as squares with their numbers, as in `form`; dark is high."""
    table = matrix.detach().cpu().numpy()
    itself = np.eye(len(rows), dtype=bool) if list(rows) == list(columns) else np.zeros(table.shape, dtype=bool)
    others = np.where(itself, -np.inf, table)
    pairs = ", ".join(f"{row}: {columns[best]}" for row, best in zip(rows, others.argmax(1), strict=True))
    size = f"{table.shape[0]} by {table.shape[1]} table of {what}"
    alt = f"{size}. Highest in each row, itself left out: {pairs}."
    if len(alt) > draw.CHARACTERS:
        i, j = np.unravel_index(others.argmax(), table.shape)
        alt = f"{size}, {table.min():.2f} to {table.max():.2f}. Highest, itself left out: {rows[i]} and {columns[j]}."
    figure, ax = draw.one_panel(0.72 * len(columns) + 1.9, 0.42 * len(rows) + 1.3, alt)
    shown = ax.imshow(table, cmap="cividis_r", aspect="auto")
    middle = (table.min() + table.max()) / 2
    for (i, j), value in np.ndenumerate(table):
        colour = "white" if value > middle else "black"
        ax.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color=colour)
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=9)
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    figure.colorbar(shown, ax=ax, label=what, shrink=0.9).ax.tick_params(labelsize=8)
    return figure


def lines(
    x: Sequence[float], named: dict[str, Sequence[float]], *, xlabel: str, ylabel: str, log: bool = False
) -> Figure:
    """Draw curves, name -> values, over the same two or more positions `x`, on a logarithmic axis if `log`."""
    ends = "; ".join(f"{name} from {v[0]:.3g} to {v[-1]:.3g}" for name, v in named.items())
    figure, ax = draw.one_panel(6.4, 3.4, f"{ylabel} against {xlabel}, {x[0]:g} to {x[-1]:g}: {ends}.")
    draw.curves(ax, {name: (x, values) for name, values in named.items()}, markersize=5)
    if log:
        draw.log_places(ax, x)
    ax.set_xticks(list(x), [f"{v:g}" for v in x])
    draw.finish(ax, xlabel=xlabel, ylabel=ylabel, legend={})
    return figure


def shares(names: Sequence[str], parts: dict[str, Sequence[float]], *, unit: str = "share, %") -> Figure:
    """Draw, for each name, one bar per kind of share; `parts`: kind, as in "MACs", -> percent for each name."""
    tops = "; ".join(f"most {kind}: {names[int(np.argmax(v))]} with {max(v):.0f} %" for kind, v in parts.items())
    alt = f"Bars for {len(names)} blocks: {', '.join(parts)} in percent. {tops}."
    figure, ax = draw.one_panel(7.2, 0.13 * len(names) * (len(parts) + 0.8) + 0.9, alt)
    height = 0.8 / len(parts)
    for index, (kind, values) in enumerate(parts.items()):
        at = np.arange(len(names)) + (index - (len(parts) - 1) / 2) * height
        ax.barh(at, values, height=height * 0.92, color=draw.COLOURS[index], label=kind)
    draw.name_rows(ax, names, fontsize=9)
    draw.finish(ax, xlabel=unit, grid="x", legend={"loc": "lower right"})
    return figure


def roofline(points: dict[str, tuple[float, float]], peak: float, bandwidth: float) -> Figure:
    """Draw layers under the roof that arithmetic and memory put over them (Williams et al. 2009, figure 1).

    `points` is layer -> (MACs per byte, MACs per second), both above zero; `peak` is in MACs, `bandwidth` in bytes a
    second.
    """
    part = {name: 100 * rate / min(peak, reuse * bandwidth) for name, (reuse, rate) in points.items()}
    near, far = max(part, key=part.get), min(part, key=part.get)
    alt = f"{len(part)} layers under a roof: rate against MACs per byte, both logarithmic. "
    alt += f"Reached, of the roof: most {near} with {part[near]:.0f} %, least {far} with {part[far]:.0f} %."
    figure, ax = draw.one_panel(6.6, 4.0, alt)
    reuses = [reuse for reuse, _ in points.values()]
    x = np.geomspace(min(reuses) / 3, max(reuses) * 3, 200)
    ax.plot(x, np.minimum(peak, x * bandwidth) / 1e9, color=draw.INK, linewidth=1.5, label="roof")
    ax.axvline(peak / bandwidth, color=draw.INK, linewidth=0.8, linestyle=":")
    for name, (reuse, rate), look in draw.looks(points):
        ax.plot(reuse, rate / 1e9, markersize=8, linestyle="none", label=name, **look)
    ax.set(xscale="log", yscale="log")
    below = {"fontsize": 8, "loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2}
    draw.finish(ax, xlabel="MACs per byte moved", ylabel="GMACs per second", legend=below)
    return figure
