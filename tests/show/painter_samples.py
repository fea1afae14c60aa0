"""A small schedule painter with made-up figures, for the tests here and in a browser."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from pruning_book.widgets.schedule_editor import PaintedStop, SchedulePainter
from pruning_lib.steps.schedule import Grid, encode_table
from pruning_lib.steps.wiring import Wiring

__all__ = ["NAMES", "PROMPTS", "TABLES", "colour", "grid", "painter", "random_grid", "random_table"]

PROMPTS = ("lion", "a <b> & 'c'")
# A U of one level, with a skip connection from its first layer to its last one.
NAMES = ("down_blocks.0.layers.0", "down_blocks.0.downsamplers.0", "mid_block", "up_blocks.0.layers.0")
INPUTS = (frozenset(), frozenset({0}), frozenset({1}), frozenset({0, 2}))
STEPS = 4

TABLES = {
    "everything": [[1, 1, 1, 1]] * 4,
    "every 2nd step": [[1, 1, 1, 1], [0, 0, 0, 0]] * 2,
    "the last layer": [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]],
}


def grid(**changes) -> Grid:
    """Return a grid of 4 steps x 4 units, 1000 M MACs a call."""
    given = {
        "names": NAMES,
        "macs": (100_000_000, 200_000_000, 300_000_000, 350_000_000),
        "macs_without_attention": (100_000_000, 200_000_000, 250_000_000, 300_000_000),
        "base_macs": 50_000_000,
        "base_macs_without_attention": 50_000_000,
        "wiring": Wiring(INPUTS, frozenset({3}), False),
        "grain": "layers",
        "class_name": "UNet2DConditionModel",
        "structure": "0" * 16,
        "scheduler": "DDIMScheduler",
        "steps": STEPS,
        "timesteps": (999.0, 749.0, 499.0, 249.0),
        **changes,
    }
    return Grid(**given)


def random_grid(units: int, steps: int, generator: torch.Generator) -> Grid:
    """Return a grid of any wiring: each unit reads some of those before it."""

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    inputs = tuple(frozenset(below(i) for _ in range(below(4))) if i else frozenset() for i in range(units))
    macs = tuple(10**9 + below(10**9) for _ in range(units))
    return grid(
        names=tuple(f"transformer_blocks.{i}" for i in range(units)),
        macs=macs,
        macs_without_attention=tuple(m - below(10**8) for m in macs),
        base_macs=below(10**6),
        base_macs_without_attention=7,
        timesteps=tuple(map(float, range(steps, 0, -1))),
        steps=steps,
        wiring=Wiring(inputs, frozenset({units - 1, below(units)}), below(3) == 0),
    )


def random_table(shape: tuple[int, int], generator: torch.Generator, share: float = 0.5) -> Tensor:
    """Return a table with about this share of its cells on, and the whole first row."""
    on = torch.rand(shape, generator=generator) < share
    on[0] = True
    return on


def colour(prompt: int, stop: int) -> tuple[int, int, int]:
    """Return the flat colour of a picture."""
    return (20 + 60 * stop, 200 - 30 * stop, 60 + 120 * prompt)


def painter(**changes) -> SchedulePainter:
    """Return the painter, with some arguments replaced."""
    stops = [
        PaintedStop(
            name,
            "whole steps" if i < 2 else "patterns",
            encode_table(torch.tensor(rows).bool()),
            [1 - i / 10, 1 - i / 5],
            {"value": 1 - i / 10, "low": 0.9 - i / 10, "high": 1.0},
            f"About {name}.",
        )
        for i, (name, rows) in enumerate(TABLES.items())
    ]
    images = [Image.new("RGB", (8, 6), colour(p, s)) for p in range(len(PROMPTS)) for s in range(len(stops))]
    given = {
        "name": "painter",
        "grid": grid(),
        "stops": stops,
        "prompts": PROMPTS,
        "images": images,
        "model": "tiny",
        "n": 16,
        "title": "What can be left out?",
        "passport": "Made up.",
        **changes,
    }
    return SchedulePainter(**given)
