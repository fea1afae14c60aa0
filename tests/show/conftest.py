"""Small sweeps for the tests of the explorers: every picture is one flat colour, so that it tells its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

from pruning_lib.show.widgets import Axis, Metric, SweepExplorer

COLOURS = [(40 * i, 250 - 40 * i, 100) for i in range(6)]


def parts() -> dict:
    """Arguments of a sweep of 2 prompts x 3 step counts."""
    return {
        "axes": [Axis("prompt", ["lion", "a <b> & 'c'"], label="Prompt"), Axis("steps", [2, 4, 8], label="Steps")],
        "images": [Image.new("RGB", (8, 6), colour) for colour in COLOURS],
        "metrics": [
            Metric("ms", [10, 20, 40, 11, 21, 41], unit="ms", low=[9] * 6, high=[50] * 6, interval="p10 to p90", n=5),
            Metric("score", [1.5, 2.5, None, 1, 2, 3], digits=1),
        ],
        "title": "Fewer steps?",
    }


@pytest.fixture
def sweep() -> Callable[..., SweepExplorer]:
    """Make the sweep, with some arguments replaced."""

    def make(name: str = "steps", **changes) -> SweepExplorer:
        given = {**parts(), **changes}
        return SweepExplorer(name, given.pop("axes"), given.pop("images"), given.pop("metrics"), **given)

    return make
