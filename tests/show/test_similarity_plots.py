"""Figures of chapter 11: they show the data that they are given, and say so in words."""

from __future__ import annotations

import torch
from drawn import check_figure, pixels

from pruning_book.plots import similarity as similarity_plots


def test_toy_paths_say_how_far_the_ends_are_apart() -> None:
    exact = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    off = exact + torch.tensor([[0.0, 0.0], [0.0, 0.5], [3.0, 4.0]])
    figure = similarity_plots.toy_paths({"all": exact, "some": off}, exact[0])
    check_figure(figure)
    assert "Against all: some ends 5.00 away" in figure.alt
    assert len(figure.axes) == 2
    drawn = figure.axes[1].lines[1].get_xydata()
    assert torch.allclose(torch.tensor(drawn), off.double())


def test_maps_share_one_scale_and_show_what_is_missing_to_one() -> None:
    near, far = [[1, 0.99], [0.99, 1]], [[1, 0.5, 0.2], [0.5, 1, 0.5], [0.2, 0.5, 1]]
    figure = similarity_plots.similarity_maps({"near\nly": near, "far": far})
    check_figure(figure)
    assert "near ly: neighbours 0.01, first and last 0.01" in figure.alt
    assert "far: neighbours 0.5, first and last 0.8" in figure.alt
    images = [ax.images[0] for ax in figure.axes[:2]]
    assert images[0].get_clim() == images[1].get_clim()
    assert abs(images[1].get_array()[0, 2] - 0.8) < 1e-9


def test_equal_features_do_not_break_the_logarithm() -> None:
    check_figure(similarity_plots.similarity_maps({"same": [[1, 1], [1, 1.0]], "not": [[1, 0.9], [0.9, 1]]}))


def test_changes_name_the_unit_that_changes_most() -> None:
    rows = [[0.1, 0.2], [0.01, 0.01], [0.3, 0.5]]
    figure = similarity_plots.changes({"a": rows, "b": rows[::-1]}, ["x", "y", "z"])
    check_figure(figure)
    assert "a: mean 0.187, most z, least y" in figure.alt and "b: mean 0.187, most x, least y" in figure.alt
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["x", "y", "z"]


def test_likeness_and_harm_marks_what_it_is_told_to() -> None:
    units = {"x": (1e-3, 1e-4), "y": (1e-5, 0.0), "z": (1e-2, 1e-2)}
    bare = similarity_plots.likeness_and_harm(units, {})
    figure = similarity_plots.likeness_and_harm(units, {"y": "A"})
    check_figure(figure)
    assert "3 units" in figure.alt and "A, y: 1e-05 and 0" in figure.alt
    assert abs(pixels(bare) - pixels(figure)).max() > 50
    assert figure.axes[0].lines[0].get_ydata().min() > 0, "no harm has a place on the axis"


def test_rivals_show_each_way_in_each_panel() -> None:
    def row(way: str, steps: int, kept: float, ssim: float) -> dict:
        figures = {"ssim": {"value": ssim, "low": ssim - 0.01, "high": min(ssim + 0.01, 1.0)}}
        return {"way": way, "steps": steps, "macs_ratio": kept, "figures": figures}

    rows = [row(w, s, k, 0.9 * k + 0.1) for w in ("a", "b") for s in (20, 50) for k in (0.2, 0.5, 1.0)]
    figure = similarity_plots.rivals(rows, {"a": "one", "b": "other"}, {20: "twenty", 50: "fifty"})
    check_figure(figure)
    assert "one 0.28 at 20 %; other 0.28 at 20 %" in figure.alt and "twenty and fifty" in figure.alt
    left, right = figure.axes
    assert [ax.get_title() for ax in (left, right)] == ["twenty", "fifty"]
    assert len(left.containers) == 2
    assert len(left.containers[0].lines[0].get_xdata()) == 2, "the unpruned has no place on a logarithmic axis"
