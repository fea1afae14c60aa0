"""A figure as it is drawn, and what every figure of the book must be."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["check_figure", "pixels"]


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as floats `[h, w, 3]`, 0 to 255."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return np.asarray(Image.open(file).convert("RGB"), float)


def check_figure(figure: Figure) -> None:
    """Assert that a figure has an opaque white ground, shows something, and carries its words."""
    shot = pixels(figure)
    assert (shot[0, 0] == 255).all(), "the ground must be opaque and white, for the dark theme"
    assert shot.std() > 5, "an empty figure"
    assert 20 < len(figure.alt) <= 250
