"""The figures on cutting operators draw what the records hold, and say it."""

from __future__ import annotations

import pytest
from drawn import check_figure

from pruning_book.plots.removal import before_after, curve_of, promise, removal_curves, toy_branches, training_curves


def interval(value: float, width: float = 0.02, **more) -> dict:
    return {"value": value, "low": value - width, "high": value + width, "n": 8, **more}


def point(ranking: str, asked: float, ssim: float, budget: str = "count", scope: str = "all") -> dict:
    figures = {"ssim": interval(ssim), "frechet": {"value": 9.0, "by_seed": [9.0], "first": interval(9.0, 1.0)}}
    sizes = {"count": asked, "macs_ratio": asked / 100}
    return {"ranking": ranking, "asked": asked, "budget": budget, "scope": scope, "figures": figures, **sizes}


ROWS = [
    *(point("score", k, 1 - k / 40) for k in (8, 2, 4)),
    *(point("random-0", k, 0.6 - k / 40) for k in (2, 4, 8)),
    *(point("random-1", k, 0.8 - k / 40) for k in (2, 4, 8)),
    point("score", 3, 0.1, scope="outside"),
    point("score", 5, 0.2, budget="macs_ratio"),
]


def test_a_curve_holds_its_own_points_in_order():
    assert [row["asked"] for row in curve_of(ROWS, "score", budget="count")] == [2, 4, 8]
    assert [row["asked"] for row in curve_of(ROWS, "score", budget="count", scope="outside")] == [3]
    assert [row["asked"] for row in curve_of(ROWS, "chance", budget="count")] == [2, 2, 4, 4, 8, 8]
    with pytest.raises(ValueError, match="random-0, random-1, score"):
        curve_of(ROWS, "rank", budget="count")


def test_removal_curves_show_intervals_and_the_range_of_chance():
    labels = {"score": "score", "chance": "by chance"}
    mark = point("bk-sdm", 6, 0.4)
    figure = removal_curves(ROWS, "ssim", labels, budget="count", ylabel="SSIM", reference=1.0, mark=mark)
    check_figure(figure)
    assert "score 0.95 to 0.80; by chance 0.65 to 0.50; BK-SDM 0.40 at 6" in figure.alt
    ax = figure.axes[0]
    band, chance = (c.get_paths()[0].vertices for c in ax.collections)
    assert band[:, 1].max() == pytest.approx(0.97) and band[:, 1].min() == pytest.approx(0.78)
    assert chance[:, 1].max() == pytest.approx(0.75) and chance[:, 1].min() == pytest.approx(0.4)
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [[2, 4, 8], [2, 4, 8]]


def test_shares_are_drawn_in_percent_and_a_distance_has_its_interval():
    rows = [point("score", k, 0.5, budget="macs_ratio") for k in (5, 20)]
    figure = removal_curves(rows, "frechet", {"score": "score"}, budget="macs_ratio", ylabel="distance")
    ax = figure.axes[0]
    assert list(ax.lines[0].get_xdata()) == [5, 20] and "MACs" in ax.get_xlabel()
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(10)


def test_before_and_after_draw_every_seed():
    figure = before_after(
        [("score", [0.5], [0.8, 0.82, 0.84]), ("chance\n20 %", [0.1, 0.3], [0.4])], xlabel="SSIM", reference=1
    )
    check_figure(figure)
    assert "score 0.50 to 0.82; chance 20 % 0.20 to 0.40" in figure.alt
    sizes = [len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert sizes == [1, 3, 2, 1]


def test_training_curves_draw_the_mean_and_each_seed():
    run = {
        "name": "score-0.2",
        "steps": [0, 50],
        "judged": [{"ssim": {"value": 0.5, "by_seed": [0.5, 0.5]}}, {"ssim": {"value": 0.8, "by_seed": [0.7, 0.9]}}],
    }
    figure = training_curves([run], "ssim", {"score-0.2": "20 % removed"}, ylabel="SSIM", reference=0.95)
    check_figure(figure)
    assert "20 % removed 0.50 to 0.80; unpruned 0.95" in figure.alt
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines[:3]]
    assert drawn == [[0.5, 0.7], [0.5, 0.9], [0.5, 0.8]]
    assert figure.axes[0].get_yscale() == "linear"
    scaled = training_curves([run], "ssim", {"score-0.2": "20 %"}, ylabel="distance", log=True)
    assert scaled.axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="scratch"):
        training_curves([run], "ssim", {"scratch": "random"}, ylabel="SSIM")


def test_promise_counts_what_was_kept():
    points = {"batch 1": [("a", 1.5, interval(1.2)), ("b", 2.0, interval(2.1))], "batch 8": [("a", 1.5, interval(1.4))]}
    figure = promise(points)
    check_figure(figure)
    assert "of 3 cuts, 1 on or above" in figure.alt and "2.10 times as fast, promised 2.00" in figure.alt


def test_the_toy_names_the_loud_and_the_vital():
    figure = toy_branches(["a", "b", "c"], [3.0, 0.2, 1.0], [0.0, 2.5, 0.3])
    check_figure(figure)
    assert "a adds most, 3.00" in figure.alt and "most without b, by 2.50" in figure.alt
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
