"""How good is a schedule?  Its generations beside the unpruned ones on a few prompts, and a count of what that cost.

Schedules improved step by step: begin with the best of simple ones, and keep every change that helps.

Three observations shape the moves.  Where the whole calls stand matters more than anything, and equal distances are not
best.  Between two whole calls, computing the outermost units alone helps nearly as much as another whole call, for
fewer MACs.  And some units hardly matter: what they cost is better spent elsewhere.  Which those are, first-order
scores at the present schedule tell (`worth`), for the price of a few generations.

First-order scores of single cells at a hard schedule, for `local_search`: what closing a gate would cost.

As `gate_gradients`, but skipped calls stay skipped and hold on to what the schedule's run would hold on to, so the
scores are of the very function that the search improves, and idle calls cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..sampling import Unroll
from .budget import check_budget
from .losses import check_loss, picture_loss
from .replay import sample_and_timestep
from .reuse import REUSES, Turn, reusing
from .schedule import Grid, Schedule
from .supernet import SoftGates, SuperNet, loss_and_gradient

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Evaluator", "BudgetExhausted", "SearchBudget", "cell_importance", "local_search", "outer_units", "spaced"]


class Evaluator:
    """Compares the generations of schedules with the unpruned ones.

    Args:
        pipe: a diffusers pipeline; left as it was.
        prompts: n texts or numbers of classes.
        grid: of the schedules.
        seeds: n seeds of the noise. Default: 1000, 1001, ...
        loss: one of `losses.LOSSES`; "latent" needs no decoding.
        reuse: what skipped calls hold on to, see `reuse.REUSES`.
        guidance_scale, options: of the pipeline's call.
        batch: prompts at a time, >= 1.

    Attributes:
        images: images drawn by schedules so far; a schedule that was asked for before costs nothing, and the n
            unpruned ones are not counted.

    Raises:
        ValueError: prompts, loss or reuse that do not fit.

    Example:
        >>> evaluator = Evaluator(pipe, ["lion", "pizza"], grid_of(pipe, 20), guidance_scale=3)
        >>> evaluator(uniform(evaluator.grid, 0.5)), evaluator.images
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence,
        grid: Grid,
        *,
        seeds: Sequence[int] | None = None,
        loss: str = "latent",
        reuse: str = "output",
        guidance_scale: float | None = None,
        options: Mapping[str, object] | None = None,
        batch: int = 32,
    ):
        self.pipe, self.grid, self.loss, self.batch = pipe, grid, check_loss(loss), batch
        if reuse not in REUSES:
            raise ValueError(f"reuse={reuse!r}; allowed: {', '.join(map(repr, REUSES))}.")
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ValueError(f"batch={batch!r}; it must be a whole number >= 1.")
        self.reuse = reuse
        self.unroll = Unroll(pipe, steps=grid.steps, guidance_scale=guidance_scale, options=options)
        self.prompts = self.unroll.check(prompts)
        self.seeds = self.unroll.seeds(self.prompts, seeds)
        self.images = 0
        self._known: dict[bytes, Tensor] = {}
        self._wanted: Tensor | None = None

    def __call__(self, schedule: Schedule) -> float:
        """Return the mean loss of a schedule, 0 for what equals the unpruned generation."""
        return self.per_prompt(schedule).mean().item()

    def per_prompt(self, schedule: Schedule) -> Tensor:
        """Return the loss of each prompt, `[n]`.

        Raises:
            ValueError: a schedule of another grid.
        """
        if schedule.grid != self.grid:
            raise ValueError(
                f"The schedule is of another grid than the evaluator: {schedule.grid.difference(self.grid)}."
            )
        key = schedule.live().numpy().tobytes()
        if key not in self._known:
            if self._wanted is None:
                self._wanted = self._drawn()
            with reusing(schedule, self.reuse).applied(self.pipe):
                drawn = self._drawn()
            self.images += len(self.prompts)
            self._known[key] = self._compare(drawn)
        return self._known[key]

    @torch.no_grad()
    def _drawn(self) -> Tensor:
        parts = range(0, len(self.prompts), self.batch)
        latents = [self.unroll.latents(self.prompts[i : i + self.batch], self.seeds[i : i + self.batch]) for i in parts]
        return torch.cat(latents)

    @torch.no_grad()
    def _compare(self, drawn: Tensor) -> Tensor:
        if self.loss == "latent":
            return (drawn.float() - self._wanted.float()).square().flatten(1).mean(1).cpu()
        pictures = self.unroll.pictures
        pairs = zip(drawn.split(self.batch), self._wanted.split(self.batch), strict=True)
        return torch.cat([picture_loss(self.loss, pictures(a), pictures(b)).cpu() for a, b in pairs])


class BudgetExhausted(Exception):
    """A search has used up its images."""


class SearchBudget:
    """Asks an evaluator on behalf of a search: within a budget of MACs, and with a limited number of images.

    Args:
        grid, keep_macs: of the schedules.
        evaluator: asked for losses.
        images: that may be drawn, at least those of one schedule.

    Attributes:
        best: the table with the lowest loss so far, and `loss`, its loss.
        trace: [images drawn, lowest loss] whenever it fell.

    Raises:
        ValueError: too few images for a single schedule, or a budget below the first call.
    """

    def __init__(self, grid: Grid, keep_macs: float, evaluator: Evaluator, images: int):
        self.grid, self.keep_macs, self.evaluator = grid, keep_macs, evaluator
        self.allowed = check_budget(grid, keep_macs)
        if not isinstance(images, int) or isinstance(images, bool) or images < len(evaluator.prompts):
            raise ValueError(
                f"images={images!r}; a single schedule draws {len(evaluator.prompts)} images, one for each prompt."
            )
        self.images, self._before, self.extra = images, evaluator.images, 0
        self.best, self.loss = None, float("inf")
        self.trace: list[list[float]] = []

    @property
    def spent(self) -> int:
        """Images drawn so far, with what was charged besides."""
        return self.evaluator.images - self._before + self.extra

    def charge(self, images: int) -> None:
        """Count work that is not a schedule's images, such as a backward pass, as so many images.

        Raises:
            Spent: it is more than what is left.
        """
        if self.spent + images > self.images:
            raise BudgetExhausted
        self.extra += images

    def fits(self, on: Tensor) -> bool:
        """Say whether a table stays within the budget."""
        return self.grid.macs_of(on) <= self.allowed

    def ask(self, on: Tensor) -> float:
        """Return the loss of a table.

        Raises:
            Spent: there are no images left to find out.
            ValueError: a table over the budget.
        """
        if not self.fits(on):
            raise ValueError("A search asked for a schedule over its budget.")
        if self.spent + len(self.evaluator.prompts) > self.images:
            raise BudgetExhausted
        loss = self.evaluator(self.grid.schedule(on))
        if loss < self.loss:
            self.best, self.loss = self.grid.live(on), loss
            self.trace.append([self.spent, loss])
        return loss

    def schedule(self, method: str, seed: int, **more: object) -> Schedule:
        """Return the best schedule, with its provenance."""
        return self.grid.schedule(
            self.best,
            method=method,
            keep_macs=self.keep_macs,
            reuse=self.evaluator.reuse,
            images=self.spent,
            seed=seed,
            loss=self.loss,
            trace=self.trace,
            **more,
        )


_TRIES = 400  # proposals in a row that bring nothing new
# (depth of the outer units, share of the affordable whole calls that are kept whole)
_MIXTURES = ((0, 0.8), (1, 0.5), (1, 0.25), (2, 0.7), (2, 0.5), (2, 0.35), (2, 0.2), (2, 0.1))
WORTH_COST = 4  # a backward pass with checkpointing: forward, forward again, and backward, which is two of them
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
    grid: Grid,
    keep_macs: float,
    evaluator: Evaluator,
    *,
    images: int = 1000,
    seed: int = 0,
    starts: Sequence[Schedule] = (),
    worth: Callable[[Tensor], Tensor] | None = None,
    worth_every: int = 40,
) -> Schedule:
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
    tally = SearchBudget(grid, keep_macs, evaluator, images)
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
    except BudgetExhausted:
        pass
    kept = {"start_loss": min(start_loss, tally.loss) if start_loss == float("inf") else start_loss}
    return tally.schedule("local search", seed, moves=state.accepted, start=start, **kept)


class _State:
    """The best table so far, and the moves from it."""

    def __init__(self, grid: Grid, tally: SearchBudget, generator: torch.Generator, worth: Callable | None):
        self.grid, self.tally, self.generator, self.worth = grid, tally, generator, worth
        self.values: Tensor | None = None
        self.accepted: dict[str, int] = {}
        self.tried: dict[str, int] = {}
        self.seen: set[bytes] = set()
        depths = [d for d in range(4) if 2 * d + 1 < grid.shape[1]]
        self.patterns = [outer_units(grid, depth) for depth in depths]
        self.moves = {"shift": self.shift, "refresh": self.refresh, "trade": self.trade, "complete": self.complete}

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
            values = values.masked_fill(values.isinf(), 0).sum(1, keepdim=True).expand_as(values) + torch.where(
                values.isinf(), torch.inf, 0.0
            )
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


class HardGates(SoftGates):
    """Gates at the rows of a schedule that call the denoiser; at the others, what the last call said.

    Args:
        calls: bool `[T]`.
        turn: carries an output on to another timestep.
    """

    def __init__(self, calls: Sequence[bool], turn: Turn):
        super().__init__(checkpointing=True)
        self.calls, self.turn = list(calls), turn

    def begin(self, gates: Tensor | None) -> None:
        """Begin a run."""
        super().begin(gates)
        self._last: dict[str | None, tuple] = {}

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        """Run one call, or hold on to the last."""
        row = self._rows.get(context, 0)
        sample, timestep = sample_and_timestep(args, kwargs)
        if self.gates is not None and row < len(self.calls) and not self.calls[row]:
            self._rows[context] = row + 1
            return self.turn(*self._last[context], timestep)
        output = super().denoiser(forward, args, kwargs, context)
        self._last[context] = (sample, timestep, output)
        return output


def cell_importance(
    pipe: DiffusionPipeline,
    grid: Grid,
    on: object,
    prompts: Sequence,
    *,
    seeds: Sequence[int] | None = None,
    loss: str = "latent",
    reuse: str = "output",
    guidance_scale: float | None = None,
    batch: int = 8,
) -> Tensor:
    """Return what closing each cell would add to the loss, to first order.

    Args:
        pipe, grid, on, prompts, seeds, loss, guidance_scale: as in `gate_gradients`.
        reuse: what skipped calls hold on to, see `reuse.REUSES`.
        batch: prompts at a time, >= 1.

    Returns:
        float32 `[T, N]`. At an open cell, large: needed; below 0: the picture would come closer without. At a closed
        cell of a call that computes others, what opening it would gain. 0 in row 0 and in rows without a call.

    Raises:
        ValueError: another reuse, a table that does not fit the grid, or seeds that do not fit the prompts.
    """
    if reuse not in REUSES:
        raise ValueError(f"reuse={reuse!r}; allowed: {', '.join(map(repr, REUSES))}.")
    on = grid.check(on)
    turn = Turn.of(pipe.scheduler) if reuse == "prediction" else Turn(None)
    gates = HardGates(grid.calls(on).tolist(), turn)
    net = SuperNet(pipe, grid, guidance_scale=guidance_scale, control=gates)
    prompts = net.unroll.check(prompts)
    seeds = net.unroll.seeds(prompts, seeds)
    total = torch.zeros(grid.shape)
    with net:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch], seeds[start : start + batch]
            total += loss_and_gradient(net, on.float(), *part, loss=loss)[1] * len(part[0])
    total[0] = 0
    return -total / len(prompts)
