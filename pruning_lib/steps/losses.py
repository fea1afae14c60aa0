"""Consistency: how far the gated generation is from the unpruned one (DiP-GO, arXiv 2410.16942, Section 3.3).

The paper compares four losses on decoded pictures: L1, L2, SSIM, and L1 + SSIM.  "latent" compares the last latents and
needs no decoder, neither forward nor backward.
"""

from __future__ import annotations

from torch import Tensor

from ..checks import nearest
from ..quality import ssim

LOSSES = ("ssim", "l1", "l2", "ssim+l1", "latent")

_PARTS = {
    "ssim": lambda a, b: 1 - ssim(a, b, check_range=False),  # decoded pictures are clamped
    "l1": lambda a, b: (a - b).abs().mean((1, 2, 3)),
    "l2": lambda a, b: (a - b).square().mean((1, 2, 3)),
}


def check_loss(name: str) -> str:
    """Return `name` if it is one of `LOSSES`.

    Raises:
        ValueError: it is not.
    """
    if name not in LOSSES:
        raise ValueError(f"There is no loss {name!r}. {nearest(str(name), LOSSES)}")
    return name


def picture_loss(name: str, pictures: Tensor, wanted: Tensor) -> Tensor:
    """Compare pictures, differentiably.

    Args:
        name: "ssim" for 1 - SSIM, "l1", "l2", or "ssim+l1" for their sum.
        pictures, wanted: floats in [0, 1], `[n, 3, h, w]`; for SSIM, h and w at least 11.

    Returns:
        One number per picture, `[n]`, 0 where they are equal.

    Raises:
        ValueError: another name or other shapes.
    """
    if check_loss(name) == "latent":
        raise ValueError(f"{name!r} does not compare pictures. Allowed: {', '.join(LOSSES[:-1])}.")
    pictures, wanted = pictures.float(), wanted.float()
    return sum(_PARTS[part](pictures, wanted) for part in name.split("+"))
