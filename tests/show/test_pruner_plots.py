"""Figures of training a pruner: they show the data that they are given, and say so in words."""

from __future__ import annotations

import pytest
import torch
from drawn import check_figure

from pruning_book.plots import pruner as pruner_plots

HISTORY = [
    {"step": 1, "loss": 0.0, "macs_ratio": 1.0},
    {"step": 2, "loss": 0.5, "macs_ratio": 0.1},
    {"step": 3, "loss": 0.25, "macs_ratio": 0.2},
]


def test_training_curves_draw_every_iteration_and_a_loss_of_nothing():
    figure = pruner_plots.training_curves({"a": HISTORY, "b": HISTORY[1:]})
    check_figure(figure)
    assert "a: loss 0 to 0.25, MACs 1.00 to 0.20 in 3 iterations" in figure.alt
    left, right = figure.axes
    assert left.lines[0].get_ydata()[0] > 0, "0 has a place on a logarithmic axis"
    assert right.lines[0].get_ydata().tolist() == [1.0, 0.1, 0.2]


def test_kept_curves_mark_the_floor():
    figure = pruner_plots.kept_curves({"a": HISTORY}, floor=0.05)
    check_figure(figure)
    assert "the first call alone is 0.05" in figure.alt and "a: 0.20" in figure.alt
    assert any(set(map(float, line.get_ydata())) == {0.05} for line in figure.axes[0].lines)


def test_score_maps_show_ranks_and_name_the_ends():
    scores = torch.tensor([[0.0, 0, 0], [0.9, 0.1, 0.5], [0.8, 0.2, 0.6]])
    figure = pruner_plots.score_map({"one": scores}, ["x", "y", "z"])
    check_figure(figure)
    assert "highest in the mean x, lowest y" in figure.alt
    shown = torch.tensor(figure.axes[0].images[0].get_array().tolist()).T
    assert shown[0].tolist() == [1, 1, 1] and shown[1:].flatten().argmax() == 0 and shown[1, 1] == 0


def test_budget_curves_are_sorted_by_share():
    rows = [{"macs_ratio": k, "ssim": {"value": k, "low": k - 0.1, "high": k + 0.1}} for k in (0.5, 0.2)]
    figure = pruner_plots.budget_curves({"a": rows}, "ssim", ylabel="SSIM")
    check_figure(figure)
    assert "a 0.200" in figure.alt and list(figure.axes[0].lines[0].get_xdata()) == [0.2, 0.5]


def test_memory_curves_part_the_two_ways():
    rows = [
        {"steps": s, "checkpointing": c, "memory_mib": s * (1 if c else 10)} for s in (20, 5) for c in (True, False)
    ]
    figure = pruner_plots.memory_curves(rows)
    check_figure(figure)
    assert "all activations kept: 50 MiB at 5, 200 at 20" in figure.alt
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[50, 200], [5, 20]]


@pytest.mark.filterwarnings("error")
def test_gradients_leave_white_what_has_none():
    gradient = torch.tensor([[0.0, 0], [1e-3, 0], [-1.0, 0]])
    figure = pruner_plots.gradients({"a": gradient, "b": gradient.abs() + 1e-9}, ["x", "y"])
    check_figure(figure)
    assert "a: 2 of 4 cells without gradient" in figure.alt and "b: 0 of 4" in figure.alt
    shown = figure.axes[0].images[0].get_array()
    assert shown.mask.T.tolist() == [[False, True], [False, True]] and shown[0, 1] == 0
