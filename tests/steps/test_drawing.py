"""`Schedule.plot`: every cell in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from painter_samples import NAMES, grid


@pytest.mark.parametrize("title", [None, "mine"])
def test_every_cell_is_drawn_in_its_place(title) -> None:
    on = torch.ones(4, 4, dtype=torch.bool)
    on[1, 3] = on[3, 2] = False
    schedule = grid().schedule(on, method="by hand")
    figure = schedule.plot(title=title)
    axes = figure.axes[0]
    state = np.asarray(axes.images[0].get_array())
    assert state.shape == (4, 4)
    for (unit, call), value in np.ndenumerate(state):
        assert value == int(schedule.on[call, unit]) + int(schedule.live()[call, unit])
    assert set(state.flat) == {0, 1, 2}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    assert axes.get_title() == (title or f"by hand: {schedule.macs_ratio():.1%} of the MACs")
    figure.canvas.draw()
