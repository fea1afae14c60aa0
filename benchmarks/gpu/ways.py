"""Ways to run a pipeline faster, timed side by side: what the stages about speed share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from DeepCache import DeepCacheSDHelper

import pruning_lib as pl
from pruning_book.rivals.fewer_steps import fewer_steps
from pruning_lib.steps.budget import deepcache, uniform
from pruning_lib.steps.schedule import Grid, Schedule, decode_table
from pruning_lib.steps.search import simple_starts

from ..common import compared

FOUND = "schedule_comparison"  # the record that holds what our search found for emoji-sd
WAYS = ("fewer steps", "uniform", "DeepCache", "deepcache package", "searched-like")


def searched_like(grid: Grid, keep: float) -> Schedule:
    """Return a schedule of the kind that search finds.

    Where the units and steps are those of emoji-sd, as in Stable Diffusion 1.5, it is the table that search found for
    emoji-sd, and its share of MACs is what that table keeps here. Elsewhere: a few whole calls, and calls of the
    outermost units between them, as close to the budget as such mixtures come.
    """
    for cell in pl.load_record(FOUND)["data"]["cells"]:
        if cell["row"] == "ours" and (cell["steps"], cell["budget"]) == (grid.steps, keep):
            on = decode_table(cell["rows"])
            if tuple(on.shape) == grid.shape:
                return grid.schedule(on, method="searched-like", found_for="emoji-sd")
    starts = [on for on in simple_starts(grid, keep) if (grid.live(on).any(1) & ~grid.live(on).all(1)).any()]
    return grid.schedule(max(starts or simple_starts(grid, keep), key=grid.macs_of), method="searched-like")


@contextmanager
def by_the_package(pipe, interval: int, branch: int) -> Iterator[None]:
    """Let the `deepcache` package decide."""
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


def ways_at(pipe, grid: Grid, keep: float, wanted: Sequence[str] = WAYS) -> Iterator[tuple[str, dict, Callable, int]]:
    """Yield (way, its counts, a context in which the pipeline runs so, steps) for every way that fits the budget."""
    make = {"fewer steps": partial(fewer_steps, pipe), "uniform": uniform, "searched-like": searched_like}
    for way in wanted:
        try:
            found = make[way](grid, keep) if way in make else deepcache(grid, keep_macs=keep)
        except ValueError as error:
            print(f"    {way} at {keep:g}: {error}", flush=True)
            continue
        counts = {"keep": keep, "macs_ratio": found.macs_ratio()}
        if isinstance(found, Schedule):
            counts["calls"], counts["cells"] = int(grid.calls(found.on).sum()), int(found.live().sum())
            counts["provenance"] = found.provenance
        else:
            counts["calls"], counts["cells"] = found.calls, found.calls * grid.shape[1]
        applied = partial(found.applied, pipe)
        if way == "deepcache package":
            applied = partial(by_the_package, pipe, found.provenance["interval"], found.provenance["branch"])
        yield way, counts, applied, found.steps


def timed_ways(
    pipe,
    grid: Grid,
    draw: Callable[[int], object],
    keeps: Sequence[float],
    *,
    repeats: int,
    device: torch.device,
    wanted: Sequence[str] = WAYS,
    more: Mapping[str, Callable[[], object]] | None = None,
) -> dict:
    """Time the unpruned generation and every way at every budget, a share of MACs, in turn.

    `draw` generates with a number of steps; `more` are further calls to time beside them. Returns "unpruned" and the
    names of `more` -> latency, "rows" -> one row per way and budget: expected beside measured.
    """

    def run(context: Callable[[], AbstractContextManager], steps: int) -> None:
        with torch.no_grad(), context():
            draw(steps)

    more, counts = more or {}, {}
    calls = {"unpruned": partial(run, nullcontext, grid.steps), **more}
    for keep in keeps:
        for way, found, context, steps in ways_at(pipe, grid, keep, wanted):
            name = f"{way}, {keep:g}"
            calls[name], counts[name] = partial(run, context, steps), {"way": way, **found}
    times = pl.measure_latency(calls, repeats=repeats, warmup=1, device=device)
    rows = []
    for name, found in counts.items():
        row = {**found, **compared(times["unpruned"], times[name], found["macs_ratio"])}
        print(f"    {name}: {row['reached']:.2f} of the promise", flush=True)
        rows.append(row)
    return {"rows": rows, **{name: times[name].to_dict() for name in ("unpruned", *more)}}
