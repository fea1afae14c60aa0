"""What was measured of operators: one changed alone, and the lowest-scored ones changed together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .lattice import number

__all__ = ["CutStop", "Worth", "fills", "ranks", "score_text"]

_LABELS = {"score": "score", "harm": "harm, 1 \u2212 mean SSIM", "macs": "MACs saved"}
DECADES = 4  # below the highest score, over which cells fill; what is lower is drawn as nearly empty


@dataclass(frozen=True)
class Worth:
    """What was measured of one operator.

    Attributes:
        path, kind, in_shape, out_shape: as of an `Operator`.
        how: what was done to it, one of `MODIFICATIONS`.
        avg_dist, std_dist: the two parts of its score, >= 0, or None where the changed model gave no finite latents.
        saved_params, saved_macs: what the change saves, for one call at batch 1, with attention products.
        ssim: of each shown picture to the unpruned one.
        mean_ssim: over more pictures: "value", "low", "high".
    """

    path: str
    kind: str
    in_shape: Sequence[int]
    out_shape: Sequence[int]
    how: str
    avg_dist: float | None
    std_dist: float | None
    saved_params: int
    saved_macs: int
    ssim: Sequence[float]
    mean_ssim: Mapping[str, float]

    @property
    def score(self) -> float | None:
        """The paper's score, avg_dist + std_dist."""
        return None if self.avg_dist is None or self.std_dist is None else self.avg_dist + self.std_dist


@dataclass(frozen=True)
class CutStop:
    """What was measured with the lowest-scored operators removed together.

    Attributes:
        ratio: share of the MACs that was asked for, in [0, 1); at least as much is gone.
        changes: (path, modification) of each.
        params, macs: of what is left; of one call, batch 1, with attention products.
        ssim, mean_ssim: as of `Worth`.
    """

    ratio: float
    changes: Sequence[Sequence[str]]
    params: int
    macs: int
    ssim: Sequence[float]
    mean_ssim: Mapping[str, float]


def ranks(operators: Sequence[Worth]) -> list[int]:
    """Return each operator's place by score, 1 the lowest; equal scores go by the order in which operators run."""
    order = sorted(range(len(operators)), key=lambda i: _or_infinite(operators[i].score))
    found = [0] * len(order)
    for rank, i in enumerate(order, 1):
        found[i] = rank
    return found


def score_text(score: float | None) -> str:
    """Write a score with three figures, whatever its size; None is one that is not finite."""
    return "not finite" if score is None else f"{float(f'{score:.3g}'):g}"


def fills(operators: Sequence[Worth]) -> list[dict]:
    """Return what the cells of a drawing can be filled by.

    Returns:
        For each measure its "name", its "label", and for each operator a "fill" in [0, 1] and "texts". Scores are on a
        logarithmic scale over `DECADES`, the others in proportion to the largest.
    """
    top = max((op.score for op in operators if op.score), default=1.0)
    harm = [max(0.0, 1 - op.mean_ssim["value"]) for op in operators]
    values = {
        "score": [1.0 if op.score is None else _log_share(op.score, top) for op in operators],
        "harm": harm,
        "macs": [max(0, op.saved_macs) for op in operators],
    }
    texts = {
        "score": [score_text(op.score) for op in operators],
        "harm": [number(value, 3) for value in harm],
        "macs": [number(op.saved_macs / 1e6, 2, "M") for op in operators],
    }
    return [
        {
            "name": name, "label": _LABELS[name], "texts": texts[name],
            "fill": [round(value / (max(found) or 1), 4) for value in found],
        }
        for name, found in values.items()
    ]  # fmt: skip


def _log_share(score: float, top: float) -> float:
    """Return where a score lies below the highest one, on a logarithmic scale; zero is empty, small ones nearly so."""
    if score <= 0:
        return 0.0
    return max(0.03, 1 + math.log10(score / top) / DECADES)


def _or_infinite(score: float | None) -> float:
    return math.inf if score is None else score
