"""Figures of the chapter on checkpoints: bytes by part, where bytes went, and how two half-precision types round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .figure import COLOURS, INK, new_figure

__all__ = ["bytes_by_part", "rounding", "where_bytes_went"]

_PARTS = {  # part: (label, colour, hatch); a pattern besides the colour for the copies that are dropped
    "unet": ("denoiser", COLOURS[0], ""),
    "vae": ("VAE", COLOURS[2], ""),
    "text_encoder": ("text encoder", COLOURS[3], ""),
    "ema": ("EMA copy", COLOURS[4], "//"),
    "optimizer": ("optimiser", COLOURS[1], "xx"),
    "training": ("training leftovers", "#7a8691", ".."),
    "schedule": ("noise schedule", "#222222", ""),
    "container": ("names and headers", "#b9c2c9", ""),
}


def _unit(largest: float) -> tuple[float, str]:
    return (1e9, "GB") if largest >= 1e9 else (1e6, "MB")


def bytes_by_part(files: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw one bar per file, its bytes stacked by part.

    Args:
        files: label -> part -> bytes; parts as `inspect_checkpoint` names them, and "container".

    Raises:
        ValueError: an unknown part.
    """
    unknown = {part for parts in files.values() for part in parts} - _PARTS.keys()
    if unknown:
        raise ValueError(f"Unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(_PARTS)}.")
    totals = {label: sum(parts.values()) for label, parts in files.items()}
    scale, unit = _unit(max(totals.values()))
    first = next(iter(files))
    shares = ", ".join(
        f"{_PARTS[p][0]} {100 * b / totals[first]:.0f} %"
        for p, b in sorted(files[first].items(), key=lambda x: -x[1])[:3]
    )
    sizes = ", ".join(f"{label} {total / scale:.1f} {unit}" for label, total in totals.items())
    alt = f"Bars of bytes by part. {sizes}. Largest in {first}: {shares}."
    figure, axes = new_figure(7.6, 0.55 * len(files) + 1.5, alt.replace("\n", " "))
    ax = axes[0, 0]
    for part, (label, colour, hatch) in _PARTS.items():
        sizes_of = [parts.get(part, 0) / scale for parts in files.values()]
        if any(size / (max(totals.values()) / scale) > 0.002 for size in sizes_of):
            before = [
                sum(parts.get(other, 0) for other in list(_PARTS)[: list(_PARTS).index(part)]) / scale
                for parts in files.values()
            ]
            ax.barh(list(files), sizes_of, left=before, color=colour, hatch=hatch, edgecolor="white", label=label)
    for row, total in enumerate(totals.values()):
        ax.text(total / scale, row, f" {total / scale:.2f} {unit}", va="center", fontsize=9, color=INK)
    ax.set(xlabel=unit, xlim=(0, 1.16 * max(totals.values()) / scale))
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def where_bytes_went(before: int, causes: Mapping[str, int], after: int) -> Figure:
    """Draw the way from the first size to the last, one step per cause.

    Args:
        before, after: bytes.
        causes: cause -> bytes saved, as `SlimReport.causes`; small ones may be tiny steps.

    Raises:
        ValueError: the causes do not lead from `before` to `after`.
    """
    if before - sum(causes.values()) != after:
        raise ValueError(f"{before} - {sum(causes.values())} is not {after}; every byte must have a cause.")
    scale, unit = _unit(before)
    steps = dict(sorted(causes.items(), key=lambda cause: -cause[1]))
    told = ", ".join(f"{cause} {saved / scale:.2f}" for cause, saved in steps.items())
    alt = f"From {before / scale:.2f} {unit} down to {after / scale:.2f} {unit}: {told}."
    figure, axes = new_figure(7.6, 0.42 * (len(steps) + 2) + 0.8, alt)
    ax = axes[0, 0]
    ax.barh(0, before / scale, color=COLOURS[5])
    left = before
    for row, (_, saved) in enumerate(steps.items(), start=1):
        left -= saved
        ax.barh(row, saved / scale, left=left / scale, color=COLOURS[1])
        ax.text(max(left, left + saved) / scale, row, f" {saved / scale:.3g}", va="center", fontsize=9, color=INK)
    ax.barh(len(steps) + 1, after / scale, color=COLOURS[0])
    ax.set_yticks(range(len(steps) + 2), ["before", *(f"- {name}" for name in steps), "after"])
    ax.set(xlabel=unit, xlim=(0, 1.12 * before / scale))
    ax.invert_yaxis()
    return figure


def rounding(weights: Tensor, types: Sequence[torch.dtype] = (torch.float16, torch.bfloat16)) -> Figure:
    """Draw the relative error of rounding over the size of a number, above a histogram of some weights.

    Args:
        weights: any shape.
        types: the types to compare.
    """
    size = weights.detach().flatten().abs().double()
    size = size[size > 0]
    at = torch.logspace(-10, 5.3, 1200, dtype=torch.float64)
    figure, axes = new_figure(7.6, 4.2, "", nrows=2, ncols=1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    words = []
    for index, dtype in enumerate(types):
        name = str(dtype).removeprefix("torch.")
        # many numbers around each place, so that the curve is the worst case and not the luck of one number
        near = at[:, None] * torch.linspace(1, 1.02, 64, dtype=torch.float64)
        error = ((near.to(dtype).double() - near) / near).abs().amax(1)
        shown = error.isfinite()
        axes[0, 0].plot(at[shown], error[shown], color=COLOURS[index], linestyle=("-", "--")[index % 2], label=name)
        middle = ((size.to(dtype).double() - size) / size).abs().median().item()
        words.append(f"{name}: median error of these weights {middle:.1e}, largest number {torch.finfo(dtype).max:.3g}")
    axes[0, 0].set(yscale="log", ylabel="largest relative error", ylim=(1e-5, 2))
    axes[0, 0].axvline(65504, color=COLOURS[0], linewidth=0.8, linestyle=":")
    axes[0, 0].legend(fontsize=9, frameon=False)
    axes[1, 0].hist(size.numpy(), bins=np.logspace(-10, 5.3, 160), color=COLOURS[4])
    axes[1, 0].set(xscale="log", xlabel="size of a number", ylabel="weights", xlim=(1e-10, 2e5))
    low, high = torch.quantile(
        size[torch.randperm(len(size), generator=torch.Generator().manual_seed(0))[:100_000]],
        torch.tensor([0.01, 0.99], dtype=torch.float64),
    ).tolist()
    spread = f"98 % of the weights: {low:.1e} to {high:.2f}."
    figure.alt = f"Rounding error over the size of a number. {'; '.join(words)}. {spread}"
    return figure
