"""Figures of schedules: every cell has the colour of what it is, and the words are counted from the data."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest
import torch
from drawn import check_figure, pixels
from painter_samples import NAMES, grid

import pruning_lib as pl
from pruning_book.plots.schedule import CELLS, schedule_map, schedule_maps, table_maps, wiring_arcs
from pruning_lib.steps.units import units_of


def some():
    """Return a schedule with cells of all three kinds."""
    on = torch.ones(4, 4, dtype=torch.bool)
    on[1, 3] = on[3, 2] = False
    return grid().schedule(on, method="by hand")


def share(figure, colour: str) -> float:
    """Return the share of pixels of a colour."""
    wanted = 255 * np.array(matplotlib.colors.to_rgb(colour))
    return float((np.abs(pixels(figure) - wanted).max(-1) < 4).mean())


def test_a_map_shows_what_every_cell_is() -> None:
    schedule = some()
    figure = schedule_map(schedule)
    check_figure(figure)
    state = np.asarray(figure.axes[0].images[0].get_array())
    expected = (schedule.on.int() + schedule.live().int()).T.numpy()
    assert np.array_equal(state, expected) and set(state.flat) == {0, 1, 2}
    assert figure.axes[0].get_title() == f"by hand, {100 * schedule.macs_ratio():.0f} % of MACs"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][0] == "down 0.0"
    counts = f"{int(schedule.live().sum())} computed, {(expected == 1).sum()} dead, 2 used again"
    assert counts in figure.alt and "4 units" in figure.alt
    assert all(share(figure, colour) > 0.005 for colour in CELLS)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["computed", "dead work", "used again"]


def test_what_is_not_there_is_not_in_the_key() -> None:
    figure = schedule_map(grid().full(), title="all")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["computed"]
    assert figure.axes[0].get_title() == "all"


def test_several_stand_side_by_side() -> None:
    figure = schedule_maps({"a": some(), "b": grid().full()})
    check_figure(figure)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"] and "b: 16 computed, 0 dead" in figure.alt
    other = grid(names=tuple("abcd")).full()
    with pytest.raises(ValueError, match="2 schedules of 2 lists"):
        schedule_maps({"a": some(), "b": other})
    with pytest.raises(ValueError, match="no table"):
        table_maps({}, NAMES)


def test_long_tables_stay_small() -> None:
    on = torch.rand(250, 56, generator=torch.Generator().manual_seed(0)) < 0.5
    figure = table_maps({"long": (on, on)}, [f"transformer_blocks.{i}" for i in range(56)])
    check_figure(figure)
    assert figure.get_figwidth() < 9 and figure.get_figheight() < 9
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()][:2] == ["10", "20"]


def test_arcs_are_the_connections_across() -> None:
    units = units_of(pl.denoiser_on_meta("emoji-sd"))
    figure = wiring_arcs(units)
    check_figure(figure)
    across = sum(reader - source > 1 for reader, read in enumerate(units.wiring.inputs) for source in read)
    assert len(figure.axes[0].patches) == across == 11
    assert "27 units" in figure.alt and "11 connections reach across" in figure.alt
    assert "from down_blocks.0.layers.0 to up_blocks.3.layers.1" in figure.alt
