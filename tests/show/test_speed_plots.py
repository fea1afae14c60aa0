"""Figures of the chapter on speed: words made from the data, and drawings that are not empty."""

from __future__ import annotations

import pytest
import torch
from drawn import check_figure

from pruning_book.plots import speed as plots

POINTS = {"dense kernel with zeros": [(0.5, 0.9, 0.8, 1.0), (0.9, 1.1, 1.0, 1.2)], "CSR": [(0.5, 0.2, 0.1, 0.3)]}


def every_figure() -> dict:
    return {
        "strips": plots.byte_strips({"dense": (100, 0), "CSR": (24, 48)}),
        "sizes": plots.sizes([0, 0.5, 0.9], {"dense": [1, 1, 1], "zip": [0.9, 0.55, 0.2]}, dense="the dense file"),
        "speeds": plots.speeds({"one": POINTS, "two": POINTS, "three": {"CSR": []}}),
        "patterns": plots.patterns({"2:4": torch.tensor([[True, False, True, False]] * 4)}),
        "bars": plots.expected_and_measured({"CSR": (2.0, (0.5, 0.4, 0.6)), "structured": (3.0, (1.5, 1.4, 1.6))}),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_figures_draw_on_white_and_have_words(name: str) -> None:
    check_figure(every_figure()[name])


def test_words_follow_the_data() -> None:
    figures = every_figure()
    assert "dense 100; CSR 72" in figures["strips"].alt
    assert "At 0.5, of the dense file: dense 100 %, zip 55 %" in figures["sizes"].alt
    assert "Slowest: CSR, one, sparsity 0.5, 0.2 times" in figures["speeds"].alt
    assert "2:4: 50 % zeros" in figures["patterns"].alt
    assert "CSR: 2.00 times fewer, 0.50 times as fast; structured" in figures["bars"].alt


def test_every_byte_is_a_square() -> None:
    axes = plots.byte_strips({"dense": (100, 0), "CSR": (24, 48)}).axes[0]
    assert len(axes.patches) == 172
