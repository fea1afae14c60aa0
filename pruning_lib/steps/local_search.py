"""Schedules improved step by step: begin with the best of simple ones, and keep every change that helps.

Three observations shape the moves.  Where the whole calls stand matters more than anything, and equal distances are not
best.  Between two whole calls, computing the outermost units alone helps nearly as much as another whole call, for
fewer MACs.  And some units hardly matter: what they cost is better spent elsewhere.  Which those are, first-order
scores at the present schedule tell (`worth`), for the price of a few generations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .budget import check_budget
from .evaluate import Evaluator, Spent, Tally
from .grid import Grid
from .schedule import Schedule

__all__ = ["local_search", "outer_units", "spaced"]

_TRIES = 400  # proposals in a row that bring nothing new
# (depth of the outer units, share of the affordable whole calls that are kept whole)
_MIXTURES = ((0, 0.8), (1, 0.5), (1, 0.25), (2, 0.7), (2, 0.5), (2, 0.35), (2, 0.2), (2, 0.1))
WORTH_COST = (
    4  # a backward pass with checkpointing: forward, forward again, and backward, which is two of them
)
LATE = 0.6  # of a distance: how much further than at equal distances the last call stands


def outer_units(grid: Grid, depth: int) -> Tensor:
    """Return the first `depth` units and the last `depth` + 1, as far as they reach the output, bool `[N]`.

    In a UNet these are the outermost layers on both ways, as in DeepCache's branches.
    """
    units = grid.shape[1]
    row = torch.zeros(units, dtype=torch.bool)
    row[:depth] = True
    row[max(0, units - depth - 1) :] = True
    two = torch.stack([torch.ones(units, dtype=torch.bool), row])
    return grid.live(two)[1]


def spaced(calls: int, count: int, late: float = 0.0) -> list[int]:
    """Place `count` of `calls` rows at equal distances, floor(i calls / (count - late)).

    With late = 0 the time after the last row is as long as that between two rows; above 0 it is shorter.

    Returns:
        Different rows, in order, from 0.
    """
    rows = [0]
    for i in range(1, count):
        row = int(calls * i / (count - late) + 1e-9)
        rows.append(min(max(row, rows[-1] + 1), calls - (count - i)))
    return rows


def simple_starts(grid: Grid, keep_macs: float) -> list[Tensor]:
    """Lay out schedules of whole calls with calls of the outer units between them, all within the budget.

    Returns:
        Tables, bool `[T, N]`, for several depths and numbers of whole calls.
    """
    calls, units = grid.shape
    allowed = check_budget(grid, keep_macs)
    whole = grid.total_macs / calls
    count = calls * allowed // grid.total_macs
    found: dict[bytes, Tensor] = {}
    tries = [(None, count, 0.0), (None, count, LATE)]
    tries += [(depth, max(1, round(count * part)), LATE) for depth, part in _MIXTURES]
    for depth, full, late in tries:
        if depth is not None and 2 * depth + 1 >= units:
            continue
        row = torch.zeros(units, dtype=torch.bool) if depth is None else outer_units(grid, depth)
        price = grid.base_macs + sum(macs for macs, on in zip(grid.macs, row.tolist(), strict=True) if on)
        outer = 0 if depth is None else min(calls - full, int((allowed - full * whole) / price))
        rows = spaced(calls, full + outer, late)
        on = torch.zeros(grid.shape, dtype=torch.bool)
        on[rows] = row
        on[[rows[i] for i in spaced(len(rows), full)]] = True
        if grid.macs_of(on) <= allowed:
            found.setdefault(on.numpy().tobytes(), on)
    return list(found.values())


def local_search(
    grid: Grid, keep_macs: float, evaluator: Evaluator, *, images: int = 1000, seed: int = 0,
    starts: Sequence[Schedule] = (), worth: Callable[[Tensor], Tensor] | None = None, worth_every: int = 40,
) -> Schedule:  # fmt: skip
    """Improve the best of many simple schedules, one change at a time, until the images are used up.

    Args:
        grid, keep_macs: the budget, a share of MACs that no schedule exceeds.
        evaluator: compares them with the unpruned generation.
        images: that may be drawn in all, those of the starts included.
        seed: of the order of moves.
        starts: further schedules to begin with, such as trained ones; those over the budget are left out.
        worth: maps a table to what switching off each of its cells would add to the loss, `[T, N]`, such as minus
            `gate_gradients`. Charged as `WORTH_COST` times the images of one schedule. Default: cells at random.
        worth_every: changes that are tried between two calls of `worth`.

    Returns:
        The best, with its loss and accepted moves in its provenance, and "start", the label of what it began with, or
        "simple".

    Raises:
        ValueError: too few images for one schedule, or a budget below the first call.
    """
    tally = Tally(grid, keep_macs, evaluator, images)
    state = _State(grid, tally, torch.Generator().manual_seed(seed), worth)
    # Given starts come first: with few images they are not left out.
    tables = [(s.label, s.on) for s in starts] + [("simple", on) for on in simple_starts(grid, keep_macs)]
    start, start_loss, idle = "simple", float("inf"), 0
    try:
        for name, on in tables:
            before = tally.loss
            if tally.fits(on) and tally.ask(on) < before:
                start = name
        start_loss = tally.loss
        for turn in range(1_000_000):
            if worth is not None and turn % worth_every == 0:
                state.look()
            idle = 0 if state.step(turn) else idle + 1
            if idle > _TRIES:
                break
    except Spent:
        pass
    kept = {"start_loss": min(start_loss, tally.loss) if start_loss == float("inf") else start_loss}
    return tally.schedule("local search", seed, moves=state.accepted, start=start, **kept)


class _State:
    """The best table so far, and the moves from it."""

    def __init__(self, grid: Grid, tally: Tally, generator: torch.Generator, worth: Callable | None):
        self.grid, self.tally, self.generator, self.worth = grid, tally, generator, worth
        self.values: Tensor | None = None
        self.accepted: dict[str, int] = {}
        self.tried: dict[str, int] = {}
        self.seen: set[bytes] = set()
        depths = [d for d in range(4) if 2 * d + 1 < grid.shape[1]]
        self.patterns = [outer_units(grid, depth) for depth in depths]
        self.moves = {
            "shift": self.shift,
            "refresh": self.refresh,
            "trade": self.trade,
            "complete": self.complete,
        }

    def look(self) -> None:
        """Ask for first-order scores at the best table."""
        self.tally.charge(WORTH_COST * len(self.tally.evaluator.prompts))
        self.values = self.worth(self.tally.best)

    def step(self, turn: int) -> bool:
        """Try one change; say whether it was a new one."""
        if self.grid.shape[0] < 2:
            return False
        # Moves that were kept before are tried more often.
        weights = [(1 + self.accepted.get(m, 0)) / (2 + self.tried.get(m, 0)) for m in self.moves]
        name = list(self.moves)[int(torch.multinomial(torch.tensor(weights), 1, generator=self.generator))]
        on = self.moves[name](self.tally.best.clone())
        if on is None or not on[0].all():
            return False
        on = self.grid.live(on)
        on[0] = True
        key = on.numpy().tobytes()
        if key in self.seen or not self.tally.fits(on):
            return False
        self.seen.add(key)
        before = self.tally.loss
        self.tried[name] = self.tried.get(name, 0) + 1
        if self.tally.ask(on) < before:
            self.accepted[name] = self.accepted.get(name, 0) + 1
        return True

    def _any(self, options: Tensor) -> int:
        """Draw the position of one True, or -1."""
        places = options.nonzero().flatten()
        return int(places[self._below(len(places))]) if len(places) else -1

    def _below(self, number: int) -> int:
        return int(torch.randint(number, (1,), generator=self.generator))

    def shift(self, on: Tensor) -> Tensor | None:
        """Let a row that computes something change places with one of up to three rows earlier or later."""
        active = on.any(1)
        active[0] = False
        row = self._any(active)
        by = (1 + self._below(3)) * (1 if self._below(2) else -1)
        if row < 0 or not 0 < row + by < len(on):
            return None
        on[[row, row + by]] = on[[row + by, row]]
        return on

    def refresh(self, on: Tensor) -> Tensor | None:
        """Compute more at a row: the outer units, of a random depth; pay with cells of little worth."""
        row = 1 + self._below(len(on) - 1)
        wanted = self.patterns[self._below(len(self.patterns))]
        if (on[row] >= wanted).all():
            return None
        on[row] |= wanted
        return self._pay(on, row)

    def trade(self, on: Tensor) -> Tensor | None:
        """Let a row compute outer units only, and another row, idle so far, outer units as well."""
        row, idle = self._any(on[1:].sum(1) > self.patterns[0].sum()), self._any(~on[1:].any(1))
        if row < 0 or idle < 0:
            return None
        wanted = self.patterns[self._below(len(self.patterns))]
        on[1 + row] &= wanted
        on[1 + idle] |= wanted
        return self._pay(on, 1 + idle)

    def complete(self, on: Tensor) -> Tensor | None:
        """Make a whole call out of a partial one; pay with a row that computes less."""
        partial = on.any(1) & ~on.all(1)
        row = self._any(partial)
        if row < 0:
            return None
        on[row] = True
        return self._pay(on, row)

    def _pay(self, on: Tensor, spare: int) -> Tensor | None:
        """Switch off cells until the table fits, never in row 0 or `spare`: those of least worth per MAC first."""
        costs = torch.tensor(self.grid.macs, dtype=torch.float64).clamp(min=1)
        values = torch.rand(on.shape, generator=self.generator, dtype=torch.float64)
        if self.values is not None:  # in part by chance, or the same cells would be proposed for ever
            scores = self.values.double() / costs
            values = 0.5 * values + _ranks(scores, on)
        values = torch.where(on, values, torch.inf)
        values[0], values[spare] = torch.inf, torch.inf
        if self.values is None or self._below(3) == 0:  # whole rows, instead of cells here and there
            values = values.masked_fill(values.isinf(), 0).sum(1, keepdim=True).expand_as(
                values
            ) + torch.where(values.isinf(), torch.inf, 0.0)
        order = values.flatten().argsort(stable=True)
        over = self.grid.macs_of(on) - self.tally.allowed
        for position in order.tolist():
            if over <= 0:
                return on
            if values.flatten()[position].isinf():
                return None
            on.view(-1)[position] = False
            over = self.grid.macs_of(on) - self.tally.allowed
        return None


def _ranks(scores: Tensor, on: Tensor) -> Tensor:
    """Return each cell's place among those that are on, from 0 for the least to 1."""
    place = torch.zeros_like(scores)
    values = scores[on]
    place[on] = values.argsort().argsort().double() / max(1, len(values) - 1)
    return place
