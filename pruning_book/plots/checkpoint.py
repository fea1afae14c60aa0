"""Figures of the chapter on checkpoints: bytes by part, where bytes went, and how two half-precision types round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .figure import COLOURS, INK, name_rows, new_figure, one_panel

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
    figure, ax = one_panel(7.6, 0.55 * len(files) + 1.5, alt.replace("\n", " "))
    left = np.zeros(len(files))
    for part, (label, colour, hatch) in _PARTS.items():
        sizes_of = np.array([parts.get(part, 0) for parts in files.values()])
        if (sizes_of > 0.002 * most).any():
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "label": label}
            ax.barh(list(files), sizes_of / scale, left=left / scale, **look)
        left += sizes_of
    for row, total in enumerate(totals.values()):
        ax.text(total / scale, row, f" {total / scale:.2f} {unit}", va="center", fontsize=9, color=INK)
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
    figure, ax = one_panel(7.6, 0.42 * (len(steps) + 2) + 0.8, alt)
    ax.barh(0, before / scale, color=COLOURS[5])
    left = before
    for row, saved in enumerate(steps.values(), start=1):
        left -= saved
        ax.barh(row, saved / scale, left=left / scale, color=COLOURS[1])
        ax.text(max(left, left + saved) / scale, row, f" {saved / scale:.3g}", va="center", fontsize=9, color=INK)
    ax.barh(len(steps) + 1, after / scale, color=COLOURS[0])
    name_rows(ax, ["before", *(f"- {name}" for name in steps), "after"])
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
    figure, axes = new_figure(7.6, 4.2, alt, nrows=2, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    errors, counts = axes[:, 0]
    at = torch.logspace(-10, 5.3, 1200, dtype=torch.float64)
    # many numbers around each place, so that the curve is the worst case and not the luck of one number
    near = at[:, None] * torch.linspace(1, 1.02, 64, dtype=torch.float64)
    for (name, dtype), colour, style in zip(names.items(), COLOURS, ("-", "--"), strict=False):
        error = ((near.to(dtype).double() - near) / near).abs().amax(1)
        shown = error.isfinite()
        errors.plot(at[shown], error[shown], color=colour, linestyle=style, label=name)
    errors.set(yscale="log", ylabel="largest relative error", ylim=(1e-5, 2))
    errors.axvline(65504, color=COLOURS[0], linewidth=0.8, linestyle=":")
    errors.legend(fontsize=9, frameon=False)
    counts.hist(size.numpy(), bins=np.logspace(-10, 5.3, 160), color=COLOURS[4])
    counts.set(xscale="log", xlabel="size of a number", ylabel="weights", xlim=(1e-10, 2e5))
    return figure
