"""The figures on training say in words what they show, and no more than their data hold."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import pruning_lib as pl
from pruning_book.plots.training import recorded_tiles, recovery, starts, toy_losses
from pruning_lib.records import RecordError


def interval(value: float, width: float = 0.02) -> dict:
    return {"value": value, "low": value - width, "high": value + width, "n": 8}


def test_toy_losses_name_every_end():
    figure = toy_losses({"whole": [4.0, 1.0, 0.001], "held": [4.0, 3.0, 2.5]}, {"floor": 2.4})
    assert "whole ends at 0.001; held ends at 2.5" in figure.alt
    ax = figure.axes[0]
    assert ax.get_yscale() == "log" and [line.get_label() for line in ax.lines] == ["whole", "held", "floor"]
    assert list(ax.lines[2].get_ydata()) == [2.4, 2.4]


def test_recovery_draws_the_interval_of_each_run():
    run = {"label": "pruned", "steps": [0, 100], "judged": [{"ssim": interval(0.1)}, {"ssim": interval(0.8, 0.05)}]}
    figure = recovery([run], "ssim", ylabel="SSIM")
    assert figure.alt == "SSIM against training steps: pruned from 0.10 to 0.80."
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.08) and band[:, 1].max() == pytest.approx(0.85)


def test_starts_say_which_is_best_and_worst():
    rows = [
        {
            "label": label,
            **{which: {"ssim": {**interval(v), "by_seed": [v - 0.01, v + 0.01]}} for which in ("new", "old")},
        }
        for label, v in (("whole", 0.9), ("held", 0.4), ("free", 0.7))
    ]
    figure = starts(rows, "ssim", xlabel="SSIM")
    assert "new things: best whole 0.90, worst held 0.40" in figure.alt and len(figure.alt) <= 250
    left = figure.axes[0]
    assert [t.get_text() for t in left.get_yticklabels()] == ["whole", "held", "free"]
    points = [line for line in left.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [2, 2, 2]
    assert left.yaxis_inverted(), "the first row stands on top"


def test_tiles_of_a_record_come_row_by_row(tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    for i in range(6):
        pixels[i // 3 * 8 : i // 3 * 8 + 8, i % 3 * 8 : i % 3 * 8 + 8] = 40 * i
    Image.fromarray(pixels).save(tmp_path / "some.png")
    path = tmp_path / "some.json"
    pl.save_record(path, "some", {"sheet": "some.png"}, pl.passport(seeds=[], n=1, device="cpu"))
    tiles = recorded_tiles(path, size=8)
    assert [tile.getpixel((3, 3))[0] for tile in tiles] == [0, 40, 80, 120, 160, 200]
    with pytest.raises(RecordError):
        recorded_tiles(tmp_path / "none.json")
