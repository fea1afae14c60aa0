"""Small pipelines for the tests of schedules, and grids."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

from tiny_pipes import PIPES, pipe_of

from pruning_book.stand_in import stand_in
from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.schedule import Grid, grid_of, timesteps_of
from pruning_lib.steps.units import Unit, structure_of
from pruning_lib.steps.wiring import Wiring

_traced: dict[tuple[str, str], Grid] = {}


@functools.cache
def _made(name: str):
    if name in PIPES:
        return pipe_of(name)
    scale, size = (0.1, 16) if "dit" in name else (0.03, 8)
    return stand_in(name, scale=scale, sample_size=size)


def tiny(name: str = "text"):
    """Return one of the `PIPES`, or a narrow pipeline with the structure of a published model; nobody else has it."""
    return copy.deepcopy(_made(name))


def laid_out(pipe, steps: int, grain: str = "layers", options: dict | None = None) -> Grid:
    """Return what `grid_of` does, but trace each structure once only: that takes as long as five pictures."""
    key = structure_of(denoiser_of(pipe)[1]), grain
    if key not in _traced:
        _traced[key] = grid_of(pipe, steps, grain, options=options)
    times = timesteps_of(pipe, steps)
    return replace(_traced[key], scheduler=type(pipe.scheduler).__name__, steps=steps, timesteps=times)


def made_up(calls: int, macs: tuple[int, ...], reads: list[list[int]]) -> Grid:
    """Return the grid of a denoiser that is not there: units that cost `macs`, each reading some of those before it."""
    wiring = Wiring(tuple(map(frozenset, reads)), frozenset([len(macs) - 1]), False)
    names, times = tuple("abcdefg"[: len(macs)]), tuple(float(900 - 50 * i) for i in range(calls))
    units = tuple(Unit(name, (name,)) for name in names)
    return Grid(units, macs, macs, 0, 0, wiring, "layers", "Made", "up", "DDIMScheduler", calls, times)
