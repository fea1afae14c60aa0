"""Schedules by search, the best method of this book: begin with the best of simple ones, keep every change that helps.

What shapes the moves: where the whole calls stand matters most, and equal distances are not best; between two of them
the outermost units alone help nearly as much as another one; and some units hardly matter, as first-order scores tell.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from ..checks import check_number, check_whole, synchronise
from ..denoisers import denoiser_of
from ..files import plain
from ..sampling import Unroll
from .budget import check_budget, evenly, threshold_scores
from .evaluate import WORTH_COST, BudgetExhausted, Evaluator, Known, SearchBudget
from .schedule import Grid, Schedule, encode_table, grid_of
from .supernet import gate_gradients, is_offloaded
from .training import TrainedPruner
from .units import caches_on

# (depth of the outer units, share of the affordable whole calls that are kept whole)
_MIXTURES = ((0, 0.8), (1, 0.5), (1, 0.25), (2, 0.7), (2, 0.5), (2, 0.35), (2, 0.2), (2, 0.1))
LATE = 0.6  # of a distance: how much further than at equal distances the last call stands
_TRIES = 400  # proposals in a row that bring nothing new


def outer_units(grid: Grid, depth: int) -> Tensor:
    """Return the first `depth` units and the last `depth` + 1, as far as they reach the output, bool `[N]`."""
    units = grid.shape[1]
    two = torch.ones(2, units, dtype=torch.bool)
    two[1, depth : max(depth, units - depth - 1)] = False
    return grid.live(two)[1]


def spaced(calls: int, count: int, late: float = 0.0) -> list[int]:
    """Place `count` of `calls` rows at equal distances, floor(i calls / (count - late)); `late` shortens the last."""
    rows = [0]
    for i in range(1, count):
        row = int(calls * i / (count - late) + 1e-9)
        rows.append(min(max(row, rows[-1] + 1), calls - (count - i)))
    return rows


def simple_starts(grid: Grid, keep_macs: float) -> list[Tensor]:
    """Lay out tables, bool `[T, N]`, of whole calls with calls of the outer units between them, within the budget."""
    calls, units = grid.shape
    uniform, allowed = evenly(grid, keep_macs), check_budget(grid, keep_macs)
    whole, count = grid.total_macs / calls, int(uniform.any(1).sum())
    idle = grid.base_macs if grid.wiring.output_reads_input else 0  # what a row without units takes
    tries = [(torch.zeros(units, dtype=torch.bool), count, 0)]
    for depth, part in _MIXTURES:
        if 2 * depth + 1 < units:
            row, full = outer_units(grid, depth), max(1, round(count * part))
            price = grid.base_macs - idle + sum(itertools.compress(grid.macs, row.tolist()))
            left = allowed - calls * idle - full * (whole - idle)
            tries.append((row, full, min(calls - full, int(left / price))))
    found = {uniform.numpy().tobytes(): uniform}
    for row, full, outer in tries:
        rows = spaced(calls, full + outer, LATE)
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
    worth: Callable[[Tensor], Tensor | None] | None = None,
    worth_every: int = 40,
    watch: Callable[[SearchBudget], object] = lambda budget: None,
) -> Schedule:
    """Improve the best of many simple schedules, one change at a time, until the images are used up.

    Args:
        grid, keep_macs: the largest share of the MACs that a schedule may take, not below the first call.
        evaluator: asked for losses.
        images: that may be drawn in all, those of the starts included, at least those of one schedule.
        seed: of the order of moves.
        starts: further schedules to begin with, such as trained ones; those over the budget are left out.
        worth: maps a table to what switching off each of its cells would add to the loss, `[T, N]`, as
            `cell_importance` does; asked before every `worth_every`-th change, and charged as `WORTH_COST` times the
            images of one schedule. Default, and from the moment when it returns None: cells at random.
        watch: called with the search's budget after everything that was spent.

    Returns:
        The best; its provenance names its loss, the accepted moves and the "start", a label or "simple".
    """
    budget = SearchBudget(grid, keep_macs, evaluator, images)
    moves = _Moves(budget, torch.Generator().manual_seed(seed), worth)
    # Given starts come first: with few images they are not left out.
    tables = [(s.label, s.on) for s in starts] + [("simple", on) for on in simple_starts(grid, keep_macs)]
    start, start_loss, idle = "simple", float("inf"), 0
    try:
        for name, on in tables:
            if budget.fits(on) and budget.ask(on) < start_loss:
                start, start_loss = name, budget.loss
            watch(budget)
        for turn in itertools.count():
            if budget.best is None or idle > _TRIES or budget.loss == 0:
                break
            if turn % worth_every == 0:
                moves.look()
            idle = 0 if moves.step() else idle + 1
            watch(budget)
    except BudgetExhausted:
        pass
    return budget.schedule("local search", seed, moves=dict(moves.accepted), start=start, start_loss=start_loss)


class _Moves:
    """Changes of the best table so far."""

    def __init__(self, budget: SearchBudget, generator: torch.Generator, worth: Callable | None):
        self.budget, self.grid, self.generator, self.worth = budget, budget.grid, generator, worth
        self.values: Tensor | None = None
        self.accepted, self.tried, self.seen = Counter(), Counter(), set()
        self.patterns = [outer_units(self.grid, depth) for depth in range(4) if 2 * depth + 1 < self.grid.shape[1]]
        self.moves = {move.__name__: move for move in (self.shift, self.refresh, self.trade, self.complete)}

    def look(self) -> None:
        """Ask for first-order scores at the best table, as long as they can be had."""
        if self.worth is not None:
            cost = WORTH_COST * len(self.budget.evaluator.prompts)
            self.budget.charge(cost)
            self.values = self.worth(self.budget.best)
            if self.values is None:
                self.worth = None
                self.budget.charge(-cost)

    def step(self) -> bool:
        """Try one change; say whether it was a new one."""
        if self.grid.shape[0] < 2:
            return False
        # Moves that were kept before are tried more often.
        weights = [(1 + self.accepted[move]) / (2 + self.tried[move]) for move in self.moves]
        name = list(self.moves)[int(torch.multinomial(torch.tensor(weights), 1, generator=self.generator))]
        on = self.moves[name](self.budget.best.clone())
        if on is None:
            return False
        on = self.grid.live(on)
        on[0] = True
        key = on.numpy().tobytes()
        if key in self.seen or not self.budget.fits(on):
            return False
        self.seen.add(key)
        before = self.budget.loss
        self.tried[name] += 1
        if self.budget.ask(on) < before:
            self.accepted[name] += 1
        return True

    def _below(self, number: int) -> int:
        return int(torch.randint(number, (1,), generator=self.generator))

    def _any(self, options: Tensor) -> int:
        """Draw the position of one True, or -1."""
        places = options.nonzero().flatten()
        return int(places[self._below(len(places))]) if len(places) else -1

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
        row = self._any(on.any(1) & ~on.all(1))
        if row < 0:
            return None
        on[row] = True
        return self._pay(on, row)

    def _pay(self, on: Tensor, spare: int) -> Tensor | None:
        """Switch off cells until the table fits, never in row 0 or `spare`: those of least worth per MAC first."""
        values = torch.rand(on.shape, generator=self.generator, dtype=torch.float64)
        if self.values is not None:  # their ranks; in part by chance, or the same cells would be proposed for ever
            per_mac = (self.values.double() / torch.tensor(self.grid.macs, dtype=torch.float64).clamp(min=1))[on]
            values[on] = 0.5 * values[on] + per_mac.argsort().argsort().double() / max(1, len(per_mac) - 1)
        spared = ~on
        spared[[0, spare]] = True
        if self.values is None or self._below(3) == 0:  # whole rows, instead of cells here and there
            values = values.masked_fill(spared, 0).sum(1, keepdim=True).expand_as(values)
        values = values.masked_fill(spared, torch.inf)
        for position in values.flatten().argsort(stable=True)[: int((~spared).sum())].tolist():
            if self.budget.fits(on):
                break
            on.view(-1)[position] = False
        return on if self.budget.fits(on) else None


def cell_importance(
    pipe: DiffusionPipeline, grid: Grid, on: object, prompts: Sequence, *, hold: str = "value", batch: int = 8, **more
) -> Tensor:
    """Return minus `gate_gradients` where skipped calls stay skipped: of the very function that the search improves.

    So what closing each open cell would add to the loss, to first order, and what opening a closed one of a call that
    computes others would gain, float32 `[T, N]`. 0 in row 0 and in rows without a call.
    """
    return -gate_gradients(pipe, grid, on, prompts, hold=hold, batch=batch, **more)


def search_schedule(
    pipe: DiffusionPipeline,
    prompts: Sequence,
    *,
    steps: int,
    keep: float,
    grain: str | Grid = "layers",
    guidance_scale: float | None = None,
    options: Mapping[str, object] | None = None,
    hold: str = "prediction",
    start: TrainedPruner | Tensor | None = None,
    loss: str = "latent",
    images: int = 8,
    evaluations: int = 40,
    gradients: bool = True,
    batch: int = 8,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
    tell: Callable[[str], object] = print,
) -> Schedule:
    """Search for the schedule that stays closest to the unpruned pictures within a budget of MACs.

    Args:
        pipe, grain, guidance_scale, options: as in `train_pruner`.
        prompts: texts, or numbers of classes; of more than `images` some, spread evenly; of fewer each in turn.
        steps: `num_inference_steps`, >= 1.
        keep: share of the MACs that the schedule may take, in (0, 1].
        hold: what a skipped call answers, one of `replay.HOLDS`.
        start: besides simple schedules, a trained pruner, or scores `[T, N]`, higher for cells more worth computing.
        loss: one of `supernet.LOSSES`; "latent" needs no decoding.
        images: pictures that a schedule is judged by, >= 1.
        evaluations: schedules that may be judged, >= 1; a look at the gradients counts as four.
        gradients: False to do without. So does a search for which memory is too short, or the pipeline offloaded.
        batch: pictures at a time, >= 1; where memory is short, gradients take fewer.
        seed: of moves and noise, >= 0; picture i starts from the noise of seed 1000 (seed + 1) + i.
        folder: keeps every evaluation; the same call, with another batch or number of evaluations if you like, goes on
            from there, to the same result. Default: nothing is kept.
        progress: show a bar, in pictures.
        tell: is given what the search costs, in sentences, before it begins.

    Returns:
        The best schedule, with its hold; its provenance says what it lost and what the search cost.

    Raises:
        TypeError, ValueError: what does not fit, or a folder of another search; before anything is drawn.
        MemoryError: too little memory to draw, with what to lower.

    Example:
        >>> pl.search_schedule(pipe, ["lion", "pizza"], steps=20, keep=0.25, guidance_scale=3).save("quarter.json")
    """
    check_number("keep", keep, "(0, 1]")
    check_whole("images", images, 1)
    check_whole("evaluations", evaluations, 1)
    check_whole("seed", seed, 0)
    scale = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    grid = grid_of(pipe, steps, grain, options={**(options or {}), **scale})
    check_budget(grid, keep)
    call = {"guidance_scale": guidance_scale, "options": options}
    prompts = Unroll(pipe, steps=steps, **call).check(prompts)
    prompts = [prompts[i * max(len(prompts), images) // images % len(prompts)] for i in range(images)]
    call |= {"seeds": [1000 * (seed + 1) + i for i in range(images)], "loss": loss, "hold": hold}
    evaluator = Evaluator(pipe, prompts, grid, batch=batch, **call)
    starts = [] if start is None else [_start(start, grid, keep)]
    about = {"prompts": prompts, "grid": grid.to_dict(), "call": evaluator.unroll.call, "keep": keep, "hold": hold}
    about |= {"loss": loss, "images": images, "seed": seed, "start": [encode_table(s.on) for s in starts]}
    evaluator.known = known = Known(folder, about)

    total, done = images * evaluations, known.evaluations
    tell(
        f"Searching within {keep:.3g} of the MACs: {evaluations} evaluations of {images} pictures, {total} in all"
        + (f"; {done} evaluations are done already." if done else ".")
    )
    if gradients and (is_offloaded(pipe) or caches_on(denoiser_of(pipe)[1])):
        gradients = False
        tell("The pipeline is offloaded, or caches, so there are no gradients, and changes are proposed by chance.")
    begun = time.perf_counter()
    with torch.no_grad():
        evaluator.unroll.latents(prompts[:1], evaluator.seeds[:1])
    synchronise(pipe._execution_device)
    seconds = time.perf_counter() - begun
    minutes = seconds * images * (1 + keep * max(0, evaluations - done)) / 60
    tell(f"An unpruned picture takes {seconds:.1f} s, so the search will take about {math.ceil(minutes)} min.")

    def importance(on: Tensor) -> Tensor | None:
        found = known.find("gradients", on, lambda: _importance(evaluator, on, call))
        if found is None:
            tell("Memory is too short for gradients, so changes are proposed by chance.")
        return found

    def watch(budget: SearchBudget) -> None:
        bar.update(budget.spent - bar.n)
        bar.set_postfix(loss=f"{budget.loss:.3g}")

    with tqdm(total=total, desc="search", unit="picture", disable=not progress) as bar:
        how = {"images": total, "seed": seed, "starts": starts, "worth": importance if gradients else None}
        found = local_search(grid, keep, evaluator, watch=watch, **how)
    told = {"method": "search", "prompts": len(set(map(str, plain(prompts))))}
    told["evaluations"] = evaluator.images // images
    return replace(found, provenance={**found.provenance, **told})


def _start(start: TrainedPruner | Tensor, grid: Grid, keep: float) -> Schedule:
    if isinstance(start, TrainedPruner):
        if start.grid != grid:
            raise ValueError(f"start was trained for another grid: {start.grid.difference(grid)}.")
        return start.schedule(keep)
    try:
        scores = torch.as_tensor(start, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"start is a {type(start).__name__}; expected a TrainedPruner, or scores [T, N].") from error
    return threshold_scores(scores, grid, keep)


def _importance(evaluator: Evaluator, on: Tensor, call: Mapping[str, object]) -> Tensor | None:
    """Return `cell_importance`, of as many prompts at a time as memory holds; None where it does not hold one."""
    batch, prompts, wanted = min(evaluator.batch, len(evaluator.prompts)), evaluator.prompts, evaluator.wanted
    while batch:
        try:
            return cell_importance(evaluator.pipe, evaluator.grid, on, prompts, batch=batch, wanted=wanted, **call)
        except MemoryError:
            batch //= 2
    return None
