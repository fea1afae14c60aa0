"""The common ground of every figure: paper, ink, colours, and the words that go with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["CHARACTERS", "COLOURS", "INK", "MARKERS", "as_array", "new_figure", "to_tensor"]

INK = "#1f2933"
COLOURS = ("#0b6e99", "#d1495b", "#6c9a3b", "#8a5a9e", "#c98a1b", "#4d5b66")
MARKERS = "osD^vP"
CHARACTERS = 248


def new_figure(width: float, height: float, alt: str, **grid) -> tuple[Figure, np.ndarray]:
    """Return a figure with an opaque background and its axes `[rows, columns]`.

    Args:
        width, height: in inches.
        alt: the figure's words, cut to what alt text may have.
        grid: as for `Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.subplots(squeeze=False, **grid)
    for ax in axes.flat:
        ax.set_facecolor("white")
        ax.tick_params(colors=INK, labelsize=9)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    figure.alt = alt if len(alt) <= CHARACTERS else alt[: CHARACTERS - 1] + "…"
    return figure, axes


def to_tensor(images: Sequence) -> Tensor:
    """Return PIL images of one size as float `[n, 3, h, w]` in [0, 1]."""
    return torch.from_numpy(as_array(images)).permute(0, 3, 1, 2).float()


def as_array(images: Tensor | Sequence) -> np.ndarray:
    """Return `[n, h, w, 3]` in [0, 1] from float or uint8 `[n, 3, h, w]` or a list of PIL images."""
    if isinstance(images, Tensor):
        images = images.detach().float() / (255 if images.dtype == torch.uint8 else 1)
        return images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return np.stack([np.asarray(image.convert("RGB")) / 255 for image in images])
