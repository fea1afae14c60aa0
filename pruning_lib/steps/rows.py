"""Tables of cells as text, one string per call: how records and histories keep them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["to_rows", "to_table"]


def to_rows(on: Tensor) -> list[str]:
    """Return a boolean table `[T, N]` as strings of "1" and "0", one per step."""
    return ["".join("1" if cell else "0" for cell in row) for row in on.tolist()]


def to_table(rows: Sequence[str]) -> Tensor:
    """Return the boolean table `[T, N]` of `to_rows`.

    Raises:
        ValueError: rows of different lengths, or other characters than "0" and "1".
    """
    if not rows or len({len(row) for row in rows}) > 1 or not all(re.fullmatch("[01]+", row) for row in rows):
        raise ValueError(f"A table is strings of 0 and 1, all equally long; these are {list(rows)[:3]!r} …")
    return torch.tensor([[digit == "1" for digit in row] for row in rows])
