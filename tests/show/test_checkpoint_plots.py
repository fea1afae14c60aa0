"""Figures on checkpoints: opaque, with words made from the data, and refusing what does not add up."""

from __future__ import annotations

import pytest
import torch

from pruning_book.plots.checkpoint import bytes_by_part, rounding, where_bytes_went


def test_bars_have_the_length_of_the_files():
    files = {"full": {"unet": 3_000_000, "ema": 3_000_000, "container": 5_000}, "slim": {"unet": 1_500_000}}
    figure = bytes_by_part(files)
    (ax,) = figure.axes
    ends = {round(bar.get_x() + bar.get_width(), 3) for bar in ax.patches}
    assert {3.0, 6.0, 1.5} <= ends
    assert "full 6.0 MB, slim 1.5 MB" in figure.alt and "EMA copy 50 %" in figure.alt and len(figure.alt) <= 250
    assert "7.00 GB" in [t.get_text().strip() for t in bytes_by_part({"a": {"vae": 7 * 10**9}}).axes[0].texts]
    with pytest.raises(ValueError, match="brain"):
        bytes_by_part({"a": {"brain": 1}})


def test_the_way_down_ends_where_the_file_does():
    figure = where_bytes_went(10_000_000, {"EMA copy": 4_000_000, "cast": 3_500_000, "aliases": -500_000}, 3_000_000)
    bars = figure.axes[0].patches
    assert [round(bar.get_width(), 2) for bar in bars] == [10, 4, 3.5, -0.5, 3]
    assert round(bars[2].get_x(), 2) == 2.5 and "10.00 MB down to 3.00 MB" in figure.alt
    with pytest.raises(ValueError, match="every byte"):
        where_bytes_went(10, {"a": 3}, 6)


def test_rounding_shows_the_true_errors():
    figure = rounding(torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 0.05)
    half, brain = figure.axes[0].lines[:2]
    near_one = abs(half.get_xdata() - 1).argmin()
    assert half.get_ydata()[near_one] == pytest.approx(2**-11, rel=0.2)
    assert brain.get_ydata()[abs(brain.get_xdata() - 1).argmin()] == pytest.approx(2**-8, rel=0.2)
    assert half.get_xdata().max() < 65520 < brain.get_xdata().max()  # float16 ends, bfloat16 goes on
    assert "6.55e+04" in figure.alt and len(figure.alt) <= 250
