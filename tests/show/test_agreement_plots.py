"""Figures of chapter 9: they show the data that they are given, and say so in words."""

from __future__ import annotations

import pytest
from drawn import check_figure, pixels

from pruning_book.plots import agreement as agreement_plots

FIRST = {f"op{i}": float(i) for i in range(12)}
SWAPPED = {**FIRST, "op2": 9.5, "op9": 2.5}


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": min(value + 0.02, 1.0)}


def test_slopes_name_the_correlation_and_the_largest_move() -> None:
    same = agreement_plots.rank_slopes(FIRST, FIRST, ("a", "b"))
    other = agreement_plots.rank_slopes(FIRST, SWAPPED, ("a", "b"))
    for figure in (same, other):
        check_figure(figure)
    assert "correlation 1.000" in same.alt and "largest move is 0" in same.alt
    assert "largest move is 7" in other.alt and "correlation 1.000" not in other.alt
    assert abs(pixels(same) - pixels(other)).max() > 50


def test_decay_draws_points_and_what_is_expected() -> None:
    measured, expected = {"x": [4.0, 2.0, 1.0], "y": [3.0, 3.0, 3.0]}, {"x": [4.0, 2.0, 1.0], "y": [3.0] * 3}
    bare = agreement_plots.decay([2, 8, 32], measured, ylabel="score")
    figure = agreement_plots.decay([2, 8, 32], measured, expected, ylabel="score")
    check_figure(figure)
    assert "2 to 32" in figure.alt and "x: 4 to 1" in figure.alt
    assert len(figure.axes[0].lines) == 2 * len(bare.axes[0].lines) == 4


def test_correlations_have_a_panel_for_each_thing_varied() -> None:
    rows = [[interval(0.8), interval(1.0)], [interval(0.9), interval(0.95), interval(1.0)]]
    figure = agreement_plots.correlations({"latents": [2, 64], "steps": [2, 5, 50]}, {"all": rows}, [(2, 0.7)])
    check_figure(figure)
    assert "all, latents: 0.800, 1.000; all, steps: 0.900, 0.950, 1.000" in figure.alt
    left, right = figure.axes
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[0] < 0.7, "crosses and bars are within the frame"


def test_pairs_say_how_far_they_are_off() -> None:
    rows = [{"joint": j, "sum": s, "linear": v} for j, s, v in ((1.0, 2.0, 1.0), (3.0, 2.0, 1.5), (0.1, 0.1, 0.1))]
    figure = agreement_plots.pairs(rows, rows[1])
    check_figure(figure)
    assert "3 pairs" in figure.alt and "median 1.00, 0.50 to 1.50" in figure.alt and "1.00 to 2.00" in figure.alt
    for ax in figure.axes:
        low, high = ax.get_xlim()
        assert low < 0.1 and high > 3.0 and ax.get_xlim() == ax.get_ylim()


@pytest.mark.parametrize("by", ["single", "greedy"])
def test_sets_are_ordered_by_what_they_save(by: str) -> None:
    rows = [
        {
            "by": name,
            "count": n,
            "macs_ratio": m,
            "joint": 10 * m,
            "sum": 12 * m,
            "linear": 9 * m,
            "ssim": interval(1 - m),
        }
        for name in ("single", "greedy")
        for n, m in ((8, 0.3), (4, 0.1))
    ]
    figure = agreement_plots.sets(rows, {by: "chosen"})
    check_figure(figure)
    assert "chosen: 0.900 at 10 % to 0.700 at 30 %" in figure.alt
