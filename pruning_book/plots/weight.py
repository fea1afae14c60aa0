"""Figures of chapters 3 and 4: bytes and rounding of checkpoints; weights, their cuts, and what is left of quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from . import draw

GONE = "#e3e8ec"
_PARTS = {  # part: (label, colour, hatch); a pattern besides the colour for the copies that are dropped
    "unet": ("denoiser", draw.COLOURS[0], ""),
    "vae": ("VAE", draw.COLOURS[2], ""),
    "text_encoder": ("text encoder", draw.COLOURS[3], ""),
    "ema": ("EMA copy", draw.COLOURS[4], "//"),
    "optimizer": ("optimiser", draw.COLOURS[1], "xx"),
    "training": ("training leftovers", "#7a8691", ".."),
    "schedule": ("noise schedule", "#222222", ""),
    "container": ("names and headers", "#b9c2c9", ""),
}


def matrix_cut(matrix: Tensor, mask: Tensor, cut: float) -> Figure:
    """Draw a matrix `[rows, columns]`, its magnitudes in order with the threshold `cut`, and what the mask leaves."""
    values, kept = matrix.numpy(), mask.numpy()
    rows, across = values.shape
    alt = f"Left, a {rows} by {across} matrix; middle, its magnitudes in rising order, "
    alt += f"{(~kept).sum()} of {values.size} at or below the cut at {cut:g}, which are removed; "
    alt += "right, the matrix with zeros in their places."
    figure, axes = draw.new_figure(8.4, 2.9, alt, ncols=3, width_ratios=(1, 1.25, 1))
    left, middle, right = axes[0]
    for ax, alive, name in ((left, np.ones_like(kept), "weights"), (right, kept, "pruned")):
        ax.imshow(np.where(alive, 1.0, 0.0), cmap="gray", vmin=-6, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            text, colour = (f"{value:.1f}", draw.INK) if alive[i, j] else ("0", "#8895a1")
            ax.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
        ax.set_xticks(np.arange(-0.5, across), [])
        ax.set_yticks(np.arange(-0.5, rows), [])
        ax.grid(color=GONE), ax.tick_params(length=0)
        draw.title(ax, name, 10)
    order = np.argsort(np.abs(values).ravel(), kind="stable")
    sizes, alive = np.abs(values).ravel()[order], kept.ravel()[order]
    middle.bar(
        range(values.size), sizes, color=np.where(alive, draw.COLOURS[0], "#b3bdc7"), edgecolor=draw.INK, linewidth=0.4
    )
    middle.axhline(cut, color=draw.COLOURS[1], linestyle="--", linewidth=1.2, label=f"cut at {cut:g}")
    middle.set(xlabel="weights in order of size", ylabel="magnitude", xticks=[])
    middle.legend(fontsize=9, frameon=False, loc="upper left")
    return figure


def histograms(groups: Mapping[str, Tensor], *, cuts: Mapping[str, float] | None = None) -> Figure:
    """Draw one histogram of weights for each group, with logarithmic counts, all over the same range.

    `groups` is name -> weights of any shape, `cuts` name -> threshold, drawn on both sides.
    """
    values = {name: weights.detach().flatten().float().cpu().numpy() for name, weights in groups.items()}
    end = max(np.quantile(np.abs(v), 0.999) for v in values.values())
    spread = ", ".join(f"{name} {v.std():.3f}" for name, v in values.items())
    count = sum(v.size for v in values.values())
    alt = f"{len(values)} histograms of {count:,} weights, each a peak at zero. Standard deviations: {spread}."
    figure, axes = draw.panels(len(values), 4, 1.75, alt, 0.4, sharex=True)
    for (name, v), ax, colour in zip(values.items(), axes, [*draw.COLOURS, *draw.COLOURS], strict=False):
        ax.hist(np.clip(v, -end, end), bins=np.linspace(-end, end, 82), color=colour)
        ax.set_yscale("log")
        draw.title(ax, f"{name}, {v.size:,}", loc="left")
        for (label, cut), style in zip((cuts or {}).items(), ("--", ":", "-."), strict=False):
            ax.axvline(cut, color=draw.INK, linestyle=style, linewidth=1, label=label)
            ax.axvline(-cut, color=draw.INK, linestyle=style, linewidth=1)
    for ax in axes[(len(axes) - 1) // 2 * 2 :]:
        ax.set_xlabel("weight")
    if cuts:
        axes[0].legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def quality_curves(
    named: Mapping[str, Sequence[Mapping[str, float]]], *, ylabel: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """Draw a quality with its interval against sparsity.

    `named` is name -> points in rising order, each with "sparsity", "value", "low" and "high"; `marks` name of a curve
    -> sparsity of a vertical line.
    """
    parts = []
    for name, points in named.items():
        middle = min(points, key=lambda p: abs(p["sparsity"] - 0.5))
        parts.append(f"{name} {middle['value']:.3g} at {middle['sparsity']:g}, {points[-1]['value']:.3g} at the end")
    figure, ax = draw.one_panel(6.8, 3.8, f"{ylabel} against sparsity. {'; '.join(parts)}.")
    found = {name: ([p["sparsity"] for p in points], *draw.columns(points)) for name, points in named.items()}
    draw.curves(ax, found, band=0.18, markersize=5)
    for name, colour in zip(named, draw.COLOURS, strict=False):
        if name in (marks or {}):
            ax.axvline(marks[name], color=colour, linestyle=":", linewidth=1.2)
    draw.finish(ax, xlabel="sparsity", ylabel=ylabel, legend={})
    return figure


def sensitivity_strip(errors: Mapping[str, float], blocks: Mapping[str, str], *, ylabel: str) -> Figure:
    """Draw one point for every layer, in the order of the data's way through the model, coloured by block.

    `errors` is layer -> error when only it is pruned, 0 or less drawn at the lower edge; `blocks` layer -> block.
    """
    names = list(dict.fromkeys(blocks[layer] for layer in errors))
    most, least = max(errors, key=errors.get), min(errors, key=errors.get)
    alt = f"{len(errors)} layers in {len(names)} blocks, error on a logarithmic axis. "
    alt += f"Most sensitive: {most} with {errors[most]:.2g}; least: {least} with {errors[least]:.2g}."
    figure, ax = draw.one_panel(8, 3.6, alt)
    floor = min((e for e in errors.values() if e > 0), default=1e-9) / 2
    start, middles = 0, []
    for index, block in enumerate(names):
        found = [max(e, floor) for layer, e in errors.items() if blocks[layer] == block]
        marker, colour = draw.MARKERS[index % len(draw.MARKERS)], draw.COLOURS[index % len(draw.COLOURS)]
        ax.plot(range(start, start + len(found)), found, marker, markersize=3.5, color=colour)
        ax.axvline(start - 0.5, color=GONE, linewidth=0.8, zorder=0)
        middles.append(start + len(found) / 2)
        start += len(found)
    ax.set_xticks(middles, names, rotation=35, ha="right", fontsize=8)
    draw.finish(ax, yscale="log", ylabel=ylabel, grid="y")
    return figure


def mask_patterns(masks: Mapping[str, Tensor]) -> Figure:
    """Draw a corner of some masks, name -> bool `[rows, columns]`, kept weights dark."""
    shares = "; ".join(f"{name}: {100 * mask.float().mean():.0f} % kept" for name, mask in masks.items())
    regular = [n for n, m in masks.items() if m.shape[1] % 4 == 0 and (m.reshape(-1, 4).sum(1) == 2).all()]
    alt = f"Patterns of kept weights, dark squares. {shares}."
    alt += f" Two in every four neighbours: {', '.join(regular)}." if regular else ""
    rows, across = next(iter(masks.values())).shape
    figure, axes = draw.new_figure(2.9 * len(masks), 2.6 * rows / across + 0.5, alt, ncols=len(masks))
    for (name, mask), ax in zip(masks.items(), axes[0], strict=True):
        ax.imshow(mask.cpu(), cmap="Blues", vmin=-0.3, vmax=1.1, interpolation="nearest")
        ax.set_xticks(np.arange(-0.5, across, 4), []), ax.set_yticks([])
        ax.grid(axis="x", color=draw.COLOURS[1], linewidth=0.8), ax.tick_params(length=0)
        draw.title(ax, name, 10)
    return figure


def _unit(largest: float) -> tuple[float, str]:
    return (1e9, "GB") if largest >= 1e9 else (1e6, "MB")


def bytes_by_part(files: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw one bar per file, its bytes stacked by part.

    `files` is label -> part -> bytes; parts as `inspect_checkpoint` names them, and "container"; no others.
    """
    unknown = {part for parts in files.values() for part in parts} - _PARTS.keys()
    if unknown:
        raise ValueError(f"Unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(_PARTS)}.")
    totals = {label: sum(parts.values()) for label, parts in files.items()}
    most = max(totals.values())
    scale, unit = _unit(most)
    first, of_first = next(iter(files.items()))
    largest = sorted(of_first, key=of_first.get, reverse=True)[:3]
    shares = ", ".join(f"{_PARTS[part][0]} {100 * of_first[part] / totals[first]:.0f} %" for part in largest)
    sizes = ", ".join(f"{label} {total / scale:.1f} {unit}" for label, total in totals.items())
    alt = f"Bars of bytes by part. {sizes}. Largest in {first}: {shares}."
    figure, ax = draw.one_panel(7.6, 0.55 * len(files) + 1.5, alt.replace("\n", " "))
    left = np.zeros(len(files))
    for part, (label, colour, hatch) in _PARTS.items():
        sizes_of = np.array([parts.get(part, 0) for parts in files.values()])
        if (sizes_of > 0.002 * most).any():
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "label": label}
            ax.barh(list(files), sizes_of / scale, left=left / scale, **look)
        left += sizes_of
    for row, total in enumerate(totals.values()):
        ax.text(total / scale, row, f" {total / scale:.2f} {unit}", va="center", fontsize=9, color=draw.INK)
    ax.set(xlabel=unit, xlim=(0, 1.16 * most / scale))
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def where_bytes_went(before: int, causes: Mapping[str, int], after: int) -> Figure:
    """Draw the way from the size `before` to that `after`, in bytes, one step per cause.

    `causes` is cause -> bytes saved, as `SlimReport.causes`; they lead from one size to the other, else a ValueError.
    """
    if before - sum(causes.values()) != after:
        raise ValueError(f"{before} - {sum(causes.values())} is not {after}; every byte must have a cause.")
    scale, unit = _unit(before)
    steps = dict(sorted(causes.items(), key=lambda cause: -cause[1]))
    told = ", ".join(f"{cause} {saved / scale:.2f}" for cause, saved in steps.items())
    alt = f"From {before / scale:.2f} {unit} down to {after / scale:.2f} {unit}: {told}."
    figure, ax = draw.one_panel(7.6, 0.42 * (len(steps) + 2) + 0.8, alt)
    ax.barh(0, before / scale, color=draw.COLOURS[5])
    left = before
    for row, saved in enumerate(steps.values(), start=1):
        left -= saved
        ax.barh(row, saved / scale, left=left / scale, color=draw.COLOURS[1])
        ax.text(max(left, left + saved) / scale, row, f" {saved / scale:.3g}", va="center", fontsize=9, color=draw.INK)
    ax.barh(len(steps) + 1, after / scale, color=draw.COLOURS[0])
    draw.name_rows(ax, ["before", *(f"- {name}" for name in steps), "after"])
    ax.set(xlabel=unit, xlim=(0, 1.12 * before / scale))
    return figure


def rounding(weights: Tensor) -> Figure:
    """Draw the relative error of rounding to float16 and bfloat16 over the size of a number, above those of weights."""
    size = weights.detach().flatten().abs().double()
    size = size[size > 0]
    chosen = size[torch.randperm(len(size), generator=torch.Generator().manual_seed(0))[:100_000]]
    low, high = torch.quantile(chosen, torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
    names = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    middle = {name: ((size.to(t).double() - size) / size).abs().median().item() for name, t in names.items()}
    words = "; ".join(
        f"{name}: median error of these weights {middle[name]:.1e}, largest number {torch.finfo(dtype).max:.3g}"
        for name, dtype in names.items()
    )
    alt = f"Rounding error over the size of a number. {words}. 98 % of the weights: {low:.1e} to {high:.2f}."
    figure, axes = draw.new_figure(7.6, 4.2, alt, nrows=2, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    errors, counts = axes[:, 0]
    at = torch.logspace(-10, 5.3, 1200, dtype=torch.float64)
    # many numbers around each place, so that the curve is the worst case and not the luck of one number
    near = at[:, None] * torch.linspace(1, 1.02, 64, dtype=torch.float64)
    for (name, dtype), colour, style in zip(names.items(), draw.COLOURS, ("-", "--"), strict=False):
        error = ((near.to(dtype).double() - near) / near).abs().amax(1)
        shown = error.isfinite()
        errors.plot(at[shown], error[shown], color=colour, linestyle=style, label=name)
    errors.set(yscale="log", ylabel="largest relative error", ylim=(1e-5, 2))
    errors.axvline(65504, color=draw.COLOURS[0], linewidth=0.8, linestyle=":")
    errors.legend(fontsize=9, frameon=False)
    counts.hist(size.numpy(), bins=np.logspace(-10, 5.3, 160), color=draw.COLOURS[4])
    counts.set(xscale="log", xlabel="size of a number", ylabel="weights", xlim=(1e-10, 2e5))
    return figure
