"""The sweep explorer and its histogram: numbers as text, a complete lattice, the static side."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from explorer_samples import EVIL, PANEL, sweep, weighed

from pruning_book.widgets.axes import Axis, Metric, Reading
from pruning_book.widgets.base import number
from pruning_book.widgets.histogram import Histogram, WeightBins
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.records import passport
from pruning_lib.weights.magnitude import magnitude_masks


def test_numbers_are_written_as_browsers_write_them() -> None:
    """Browsers round 2.5 to 3; Python's own formatting says 2."""
    values = [(None, 1), (1234567.891, 1), (2.5, 0), (1.005, 2), (-0.2, 0), (np.float32(0.5), 2)]
    assert [number(*value) for value in values] == ["not measured", "1,234,567.9", "3", "1.01", "0", "0.50"]
    assert number(3, 0, "ms") == "3\u00a0ms"


def test_axes_are_sliders_or_choices_and_metrics_read_and_write_themselves() -> None:
    steps, prompt = Axis("steps", np.array([2, 4]), unit="x"), Axis("prompt", ["lion"])
    assert (steps.kind, prompt.kind) == ("ordered", "choice")
    assert steps.stops == [2, 4] and all(type(stop) is int for stop in steps.stops) and steps.index(4) == 1
    assert steps.phrases == ["steps 2 x", "steps 4 x"] and prompt.phrases == ["lion"]
    metric = Metric("ms", np.array([1.25, np.nan]), low=[1, None], high=[2, None], interval="p10 to p90", n=np.int64(7))
    assert metric.values == [1.25, None] and metric.n == [7, 7]
    assert metric.reading(0) == Reading(1.25, 1, 2, 7) and metric.reading(1).value is None
    assert metric.text(0) == "1.25 (1.00 to 2.00)" and metric.text(1) == "not measured"


def test_the_last_axis_varies_fastest_and_readings_name_what_is_unknown() -> None:
    explorer = sweep()
    assert explorer.index(prompt="lion", steps=8) == 2 and explorer.index(prompt=EVIL, steps=2) == 3
    assert explorer.reading("ms", prompt=EVIL, steps=4) == Reading(21, 9, 50, 5)
    for metric, stops, words in (
        ("scores", {"prompt": "lion", "steps": 2}, "no metric 'scores'. Did you mean 'score'"),
        ("ms", {"prompt": "lion", "steps": 3}, r"3 is no stop of axis 'steps'; measured: \[2, 4, 8\]"),
        ("ms", {"steps": 2}, "a stop for every axis"),
    ):
        with pytest.raises(ValueError, match=words):
            explorer.reading(metric, **stops)


def test_where_it_starts_and_what_its_chart_shows() -> None:
    assert sweep().start == [0, 1] and sweep(start={"steps": 8}).start == [0, 2]
    assert sweep().data()["chart"] == {"x": "ms", "y": "score"} and sweep(chart=()).data()["chart"] is None
    assert sweep(metrics=[Metric("ms", range(6))]).data()["chart"] == {"x": "steps", "y": "ms"}
    assert sweep(chart=("steps", "score")).data()["chart"] == {"x": "steps", "y": "score"}


def test_the_static_side_has_words_for_pictures_and_a_table() -> None:
    html = sweep(passport="Measured today.").fallback_html()
    alts = re.findall(r'alt="([^"]*)"', html)
    assert alts == ["generated image, baseline: lion, steps 8", "generated image, this stop: lion, steps 4"]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    assert [row[0] for row in rows] == ["2", "4", "8"]
    assert "40.00\u00a0ms (9.00 to 50.00)" in rows[2][1] and "not measured" in rows[2][1]
    assert "Fewer steps? Measured for lion. ms: p10 to p90." in html and "Measured today." in html
    evil = '"><script>alert(1)</script>'
    html = sweep(title=evil, picture=evil * 20, passport=evil, start={"prompt": EVIL}).fallback_html()
    assert "<script" not in html and "<b>" not in html and html.count('alt="') == 2
    assert max(map(len, re.findall(r'alt="([^"]*)"', sweep(picture="x" * 400).fallback_html()))) == 250


def test_more_digits_than_recorded_can_be_shown(tmp_path) -> None:
    saved = sweep().save(tmp_path / "steps.json", "steps", passport(seeds=[0], n=5, device="cpu"))
    read = SweepExplorer.from_record(saved, "steps", title="t", digits={"ms": 5})
    assert [metric.digits for metric in read.metrics] == [5, 2]
    with pytest.raises(ValueError, match="no metric 'spped'"):
        SweepExplorer.from_record(saved, "steps", title="t", digits={"spped": 1})


def test_bins_hold_every_weight_and_removed_ones_are_those_below_the_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(3000, generator=generator), "b": 3 * torch.randn(1000, generator=generator)}
    bins = WeightBins.around(weights, bins=21, share=0.9)
    counts, joined = bins.count(weights), torch.cat(list(weights.values()))
    assert len(counts) == 21 and sum(counts) == 4000
    assert counts[10] == pytest.approx((joined.abs() < bins.edges[11]).sum().item(), abs=1)
    assert counts[0] > counts[1], "the outermost bins hold what lies beyond"
    assert (joined.abs() <= bins.edges[-1]).float().mean() == pytest.approx(0.9, abs=0.001)
    removed = bins.count(weights, magnitude_masks(weights, 0.5))
    assert sum(removed) == 2000 and removed[0] == 0 and removed[10] == counts[10]


def test_the_histogram_is_drawn_and_said_for_the_start_and_checked_when_live() -> None:
    panel = Histogram(**PANEL)
    assert panel.words(PANEL["removed"][0], None) == "nothing is removed"
    assert panel.words(PANEL["removed"][1], None) == "500 of 1,030 removed (48.5 %), whatever their size"
    assert panel.words(PANEL["removed"][1], [0.2, 0.2]).endswith("cut at a size of 0.2")
    assert panel.words(PANEL["removed"][2], [0.25, 0.5]).endswith("0.25 to 0.5, by layer")
    html = weighed(start={"steps": 4}).fallback_html()
    assert 'role="img" aria-label="Histogram of the weights: 500 of 1,030 removed' in html
    heights = [float(x) for x in re.findall(r'height="([\d.]+)"/>', html)]
    assert html.count("<rect") == 6 and heights[0] == heights[3] and heights[4] < heights[1], "three bars, what is kept"
    found = weighed().data()["histogram"]
    assert found["places"] == [1] and found["removed"] == PANEL["removed"] and sweep().data()["histogram"] is None
    answers = {"removed": [0, 7, 0], "cut": (0.1, 0.1)}
    made = weighed(on_change=lambda state: {"histogram": answers})
    assert made.answer({})["histogram"] == answers
    answers["removed"] = [0, 7000, 0]
    with pytest.raises(ValueError, match="bin's count"):
        made.answer({})
