"""The score of LD-Pruner (arXiv 2404.11936), from the latents of the original and of a modified denoiser.

    score = || avg_orig - avg_mod ||_2  +  || std_orig - std_mod ||_2

Average and standard deviation are taken over the generated latents, one number per element of a latent; the norm runs
over all elements.  The parts are kept, so that other formulas can be tried without generating again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._text import nearest

__all__ = ["FORMULAS", "Formula", "Scored", "measure"]

Change = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Scored:
    """What was measured with some operators changed.

    Attributes:
        changes: (path, modification) pairs; empty for the original.
        avg, std: over the latents, float32, shape of one latent; None where they were not kept. The standard deviation
            divides by n - 1.
        avg_dist, std_dist: norms of the differences to the original, in units of the latents; infinite where a latent
            is not finite.
        mse: mean square of the differences between latents of the same seed, over latents and elements.
        seconds: that it took.
        skipped: why nothing had to be generated; else "".
        latents: float32 `[n, ...]`, where they were kept.
    """

    changes: tuple[Change, ...]
    avg: Tensor | None
    std: Tensor | None
    avg_dist: float
    std_dist: float
    mse: float
    seconds: float = 0.0
    skipped: str = ""
    latents: Tensor | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the modified denoiser gave numbers at all."""
        return math.isfinite(self.mse)


Formula = Callable[[Scored, Scored], float]
# name -> worth of a change, from the original and the modified one. High: much depends on what was changed.
FORMULAS: dict[str, Formula] = {
    "paper": lambda original, modified: modified.avg_dist + modified.std_dist,
    "mean": lambda original, modified: modified.avg_dist,
    "std": lambda original, modified: modified.std_dist,
    "mse": lambda original, modified: modified.mse,
}


def measure(
    latents: Tensor,
    original: Tensor,
    changes: tuple[Change, ...] = (),
    *,
    seconds: float = 0.0,
    keep: bool = False,
) -> Scored:
    """Compare the latents of a modified denoiser with the original's, seed by seed.

    Args:
        latents, original: `[n, ...]`, n >= 2, the same seeds in the same order.
        changes: what was modified.
        seconds: that it took to generate them.
        keep: keep the latents too.

    Returns:
        The parts of the score; infinite distances where a latent is infinite or not a number.

    Raises:
        ValueError: other shapes, or fewer than two latents.
    """
    if latents.shape != original.shape or len(latents) < 2:
        raise ValueError(
            f"latents {list(latents.shape)} and original {list(original.shape)}; expected equal shapes [n, ...] with "
            "n >= 2: of fewer latents there is no standard deviation."
        )
    mine, theirs = latents.double(), original.double()  # sums of many squares
    avg, std = mine.mean(0), mine.std(0)
    kept = {"avg": avg.float(), "std": std.float(), "seconds": seconds, "latents": latents if keep else None}
    if not latents.isfinite().all():
        return Scored(changes, avg_dist=math.inf, std_dist=math.inf, mse=math.inf, **kept)
    return Scored(
        changes,
        avg_dist=torch.linalg.vector_norm(avg - theirs.mean(0)).item(),
        std_dist=torch.linalg.vector_norm(std - theirs.std(0)).item(),
        mse=(mine - theirs).square().mean().item(),
        **kept,
    )


def formula_of(formula: str | Formula) -> Formula:
    """Return the function of that name, or the function itself.

    Raises:
        ValueError: an unknown name.
    """
    if callable(formula):
        return formula
    if formula not in FORMULAS:
        raise ValueError(
            f"formula={formula!r} is unknown. {nearest(str(formula), FORMULAS)} Or give a function of (original, "
            "modified), both with avg and std, that returns a number."
        )
    return FORMULAS[formula]
