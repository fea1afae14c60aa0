"""Dead work: cells of the grid that are switched on, but whose result nobody ever reads.

A value is read by a unit that runs in the same call, by the denoiser's output, or later: a unit that is off passes on
its last value, so a value computed now may be read many steps from now.  Walking back from the last step, through both
the wiring and the steps, finds every cell whose value matters.  Leaving the others out changes no bit of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .wiring import Wiring

__all__ = ["live_cells", "paper_cascade"]


def live_cells(on: Tensor, wiring: Wiring) -> Tensor:
    """Return which of the cells that are on do work that reaches the picture.

    Args:
        on: bool `[T, N]`, True where a unit is to be computed.
        wiring: who reads whom within a call.

    Returns:
        bool `[T, N]`, a subset of `on`.
    """
    readers = [_bits(units) for units in wiring.consumers()]
    output = _bits(wiring.output)
    alive = []
    needed_later = 0  # units whose value at this row some later row reads, before they are computed again
    for row in reversed(_rows(on)):
        live = needed = 0
        for unit in reversed(range(len(readers))):
            bit = 1 << unit
            if (output | needed_later) & bit or readers[unit] & live:
                needed |= bit
                live |= row & bit
        alive.append(live)
        needed_later = needed & ~live  # not computed here, so read from the row before
    return _table(alive[::-1], on)


def paper_cascade(on: Tensor, wiring: Wiring) -> Tensor:
    """Return the cells that the paper's rule keeps: within one step, a unit none of whose readers runs is switched off.

    That is the rule of the authors' public code. It forgets readers at later steps: a unit computed now for a later
    one loses its fresh value, so the picture may change.

    Args:
        on: bool `[T, N]`.
        wiring: who reads whom within a call.

    Returns:
        bool `[T, N]`, a subset of `on`.
    """
    readers = [_bits(units) for units in wiring.consumers()]
    output = _bits(wiring.output)
    kept = []
    for row in _rows(on):
        live = 0
        for unit in reversed(range(len(readers))):
            if output & (1 << unit) or readers[unit] & live:
                live |= row & (1 << unit)
        kept.append(live)
    return _table(kept, on)


# Sets of units as the bits of one whole number: searches ask for live cells thousands of times.
def _bits(units: frozenset[int]) -> int:
    return sum(1 << unit for unit in units)


def _rows(on: Tensor) -> list[int]:
    return [sum(1 << unit for unit, is_on in enumerate(row) if is_on) for row in on.tolist()]


def _table(rows: list[int], like: Tensor) -> Tensor:
    units = range(like.shape[1])
    return torch.tensor([[bool(row >> unit & 1) for unit in units] for row in rows]).reshape(like.shape)
