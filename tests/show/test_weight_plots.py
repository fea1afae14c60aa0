"""Figures of chapter 4: words from the data, an opaque ground, and what they draw."""

from __future__ import annotations

import pytest
import torch
from drawn import check_figure

from pruning_book.plots import weight as weight_plots
from pruning_lib.weights.magnitude import magnitude_masks
from pruning_lib.weights.nm import nm_mask

MATRIX = torch.tensor([[0.9, -0.1], [0.2, -0.4]])
POINTS = [{"sparsity": s, "value": 1 - s, "low": 0.9 - s, "high": 1.1 - s} for s in (0.0, 0.5, 0.9)]


def every_figure() -> dict:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(8, 32, generator=generator)
    return {
        "matrix": weight_plots.matrix_cut(MATRIX, MATRIX.abs() > 0.3, 0.2),
        "histograms": weight_plots.histograms({"conv": weights, "linear": 2 * weights}, cuts={"cut": 0.5}),
        "curves": weight_plots.quality_curves({"global": POINTS}, ylabel="SSIM", marks={"global": 0.5}),
        "strip": weight_plots.sensitivity_strip(
            {"a.x": 0.5, "a.y": -1.0, "b.z": 2e-6}, {"a.x": "a", "a.y": "a", "b.z": "b"}, ylabel="error"
        ),
        "patterns": weight_plots.mask_patterns(
            {"largest": magnitude_masks({"w": weights}, 0.5)["w"], "2:4": nm_mask(weights)}
        ),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_figures_draw_on_white_and_have_words(name: str) -> None:
    check_figure(every_figure()[name])


def test_the_words_follow_the_data() -> None:
    found = every_figure()
    assert "2 of 4 at or below the cut at 0.2" in found["matrix"].alt
    assert "global 0.5 at 0.5, 0.1 at the end" in found["curves"].alt
    assert "Most sensitive: a.x with 0.5; least: a.y with -1" in found["strip"].alt
    assert "Two in every four neighbours: 2:4." in found["patterns"].alt
    assert "512 weights" in found["histograms"].alt


def test_removed_weights_are_written_as_zero() -> None:
    axes = every_figure()["matrix"].axes
    before, after = ([text.get_text() for text in ax.texts] for ax in (axes[0], axes[2]))
    assert before == ["0.9", "-0.1", "0.2", "-0.4"] and after == ["0.9", "0", "0", "-0.4"]


def test_the_interval_and_the_mark_are_drawn() -> None:
    (ax,) = every_figure()["curves"].axes
    assert len(ax.collections) == 1
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [0.5]
