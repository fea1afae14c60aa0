"""Small explorers with made-up figures, for the tests of the book's room and for those in a browser.

Every picture is one flat colour, so that it tells its place. Each function takes arguments that replace its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.blocks import BlockExplorer, BlockModel
from pruning_book.widgets.operators import OperatorExplorer, OperatorResult, PruningStop
from pruning_book.widgets.schedule_editor import PaintedStop, SchedulePainter
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.steps.schedule import Grid, encode_table
from pruning_lib.steps.units import Unit
from pruning_lib.steps.wiring import Wiring

EVIL = "</script><b>"
PROMPTS = ("lion", EVIL)

# A sweep of 2 prompts x 3 step counts; the last digit of its scores shows how halves are rounded.
COLOURS = [(40 * i, 250 - 40 * i, 100) for i in range(6)]
SCORES = [1.005, 0.125, None, 1234.5, -0.001, 3]
# What the steps remove of three bars, and where the cut lies.
PANEL = {
    "edges": [-1.0, -0.3, 0.3, 1.0],
    "counts": [10, 1000, 20],
    "axes": ["steps"],
    "removed": [[0, 0, 0], [0, 500, 0], [1, 1000, 2]],
    "cuts": [None, [0.2, 0.2], [0.25, 0.5]],
}


def flat(*colours: tuple[int, int, int]) -> list[Image.Image]:
    return [Image.new("RGB", (8, 6), colour) for colour in colours]


def sweep(**changes) -> SweepExplorer:
    ends = {"low": [9] * 6, "high": [50] * 6, "interval": "p10 to p90"}
    metrics = [Metric("ms", [10, 20, 40, 11, 21, 41], unit="ms", n=5, **ends), Metric("score", SCORES)]
    axes = [Axis("prompt", PROMPTS, label="Prompt"), Axis("steps", [2, 4, 8], label="Steps")]
    given = {"axes": axes, "images": flat(*COLOURS), "metrics": metrics}
    return SweepExplorer(**{"name": "steps", "title": "Fewer steps?", "baseline": {"steps": 8}, **given, **changes})


def weighed(**changes) -> SweepExplorer:
    """Return the sweep with a histogram."""
    return sweep(histogram=PANEL, **changes)


UNET = "time_embedding conv_in down_blocks.0 down_blocks.1 mid_block up_blocks.0 up_blocks.1 conv_out".split()


def blocks(**changes) -> BlockExplorer:
    small = BlockModel("small", UNET, {"params": [1e6] * 7 + [3e6], "latency_ms": [1] * 6 + [6, 2]})
    names = [f"transformer_blocks.{i}" for i in range(28)]
    chain = BlockModel("chain", names, {"params": [5e6] * 28})
    return BlockExplorer(**{"name": "blocks", "models": [small, chain], "title": "Where?", **changes})


BLOCK = "attentions.0.transformer_blocks.0"
# path, kind, average part, spread part; in the order in which they run
OPERATORS = (
    ("conv_in", "convolution", 3.0, 1.0),
    ("down_blocks.0.resnets.0", "resnet", 0.5, 0.25),
    ("down_blocks.0.resnets.0.conv1", "convolution", 0.5, 0.5),
    ("down_blocks.0.attentions.0", "transformer", 2.0, 1.0),
    (f"down_blocks.0.{BLOCK}", "transformer block", 1.5, 1.0),
    (f"down_blocks.0.{BLOCK}.attn1", "self-attention", 0.1, 0.1),
    (f"down_blocks.0.{BLOCK}.attn2", "cross-attention", 1.0, 0.5),
    ("down_blocks.0.downsamplers.0", "downsampler", 1.0, 1.0),
    ("down_blocks.1.resnets.0", "resnet", 0.01, 0.0),
    ("mid_block.resnets.0", "resnet", 0.0, 0.0),
    ("up_blocks.0.resnets.0", "resnet", 0.2, 0.1),
    ("up_blocks.0.upsamplers.0", "upsampler", None, None),
    ("up_blocks.1.resnets.0", "resnet", 1.0, 0.75),
    ("conv_out", "convolution", 9.0, 1.0),
)
PATHS = [row[0] for row in OPERATORS]
ABOUT = {"model": "tiny", "n": 16, "passport": "Made up."}
REMOVED = ([], ["mid_block.resnets.0"], ["mid_block.resnets.0", "down_blocks.1.resnets.0", PATHS[5]])


def mean(lost: float) -> dict:
    return {"value": 1 - lost, "low": 0.9 - lost, "high": 1.0}


def results() -> list[OperatorResult]:
    """Return one entry per operator; similarity falls along the list."""
    shapes = (1, 4, 8, 8), (1, 4, 8, 8)
    return [
        OperatorResult(
            *(path, kind, *shapes, "identity", avg, std, 1000 * i, 10_000 * i, [1 - i / 20, 1 - i / 40], mean(i / 20))
        )
        for i, (path, kind, avg, std) in enumerate(OPERATORS)
    ]


def pruning_stops() -> list[PruningStop]:
    found = []
    for k, (ratio, paths) in enumerate(zip((0.0, 0.1, 0.25), REMOVED, strict=True)):
        sizes = 100_000 - 10_000 * k, 1_000_000 - 150_000 * k
        changes = [(path, "identity") for path in paths]
        found.append(PruningStop(ratio, changes, *sizes, [1 - k / 10, 1 - k / 5], mean(k / 10)))
    return found


def operator_colour(prompt: int, place: int) -> tuple[int, int, int]:
    """Return the colour of a picture: place 0 to 2 are the stops, then come the operators."""
    return (10 + 14 * place, 200 - 10 * place, 60 + 120 * prompt)


def operators(**changes) -> OperatorExplorer:
    images = flat(*(operator_colour(p, k) for p in range(2) for k in range(len(REMOVED) + len(PATHS))))
    given = {"operators": results(), "stops": pruning_stops(), "prompts": PROMPTS, "images": images}
    return OperatorExplorer(**{"name": "worth", "title": "What is it worth?", **ABOUT, **given, **changes})


# A U of one level, with a skip connection from its first layer to its last one.
UNITS = ("down_blocks.0.layers.0", "down_blocks.0.downsamplers.0", "mid_block", "up_blocks.0.layers.0")
INPUTS = (frozenset(), frozenset({0}), frozenset({1}), frozenset({0, 2}))
SCHEDULES = {
    "everything": ["1111"] * 4,
    "every 2nd step": ["1111", "0000"] * 2,
    "the last layer": ["1111", "0001", "0001", "0001"],
}


def grid(names: Sequence[str] = UNITS, **changes) -> Grid:
    """Return a grid of 4 steps x 4 units, 1000 M MACs a call."""
    given = {
        "units": tuple(Unit(name, (name,)) for name in names),
        **{"wiring": Wiring(INPUTS, frozenset({3}), False), "grain": "layers"},
        **{"class_name": "UNet2DConditionModel", "structure": "0" * 16, "scheduler": "DDIMScheduler"},
        "macs": (100_000_000, 200_000_000, 300_000_000, 350_000_000),
        "macs_without_attention": (100_000_000, 200_000_000, 250_000_000, 300_000_000),
        **{"base_macs": 50_000_000, "base_macs_without_attention": 50_000_000},
        **{"steps": 4, "timesteps": (999.0, 749.0, 499.0, 249.0)},
    }
    return Grid(**{**given, **changes})


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


def random_table(shape: tuple[int, int], generator: torch.Generator, share: float = 0.5) -> list[str]:
    """Return a table with about this share of its cells on, and the whole first row."""
    on = torch.rand(shape, generator=generator) < share
    on[0] = True
    return encode_table(on)


def schedule_colour(prompt: int, stop: int) -> tuple[int, int, int]:
    return (20 + 60 * stop, 200 - 30 * stop, 60 + 120 * prompt)


def painted_stops() -> list[PaintedStop]:
    groups = ("whole steps", "whole steps", "patterns")
    return [
        PaintedStop(name, groups[i], on, [1 - i / 10, 1 - i / 5], mean(i / 10), f"About {name}.")
        for i, (name, on) in enumerate(SCHEDULES.items())
    ]


def painter(**changes) -> SchedulePainter:
    images = flat(*(schedule_colour(p, s) for p in range(2) for s in range(len(SCHEDULES))))
    given = {"grid": grid(), "stops": painted_stops(), "prompts": PROMPTS, "images": images}
    return SchedulePainter(**{"name": "painter", "title": "What can be left out?", **ABOUT, **given, **changes})
