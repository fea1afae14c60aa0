"""The sweep explorer's Python side: a complete lattice, clear refusals, the static side, live answers."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image

from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sheet import Sheet
from pruning_book.widgets.sweep import SweepExplorer


def test_the_last_axis_varies_fastest(sweep):
    explorer = sweep()
    assert explorer.index(prompt="lion", steps=8) == 2 and explorer.index(prompt="a <b> & 'c'", steps=2) == 3
    assert explorer.reading("ms", prompt="a <b> & 'c'", steps=4).value == 21
    assert explorer.reading("ms", prompt="lion", steps=2).n == 5
    assert explorer.axis("steps").stops == [2, 4, 8]


def test_it_starts_in_the_middle_of_sliders_at_the_first_choice(sweep):
    assert sweep().start == [0, 1] and sweep(start={"steps": 8}).start == [0, 2]


def test_the_chart_has_metrics_or_one_slider(sweep):
    assert sweep().data()["chart"] == {"x": "ms", "y": "score"}
    assert sweep(metrics=[Metric("ms", range(6))]).data()["chart"] == {"x": "steps", "y": "ms"}
    assert sweep(chart=()).data()["chart"] is None
    assert sweep(chart=("steps", "score")).data()["chart"] == {"x": "steps", "y": "score"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": [Image.new("RGB", (8, 6))] * 5}, "5 images; 2 prompt x 3 steps make 6"),
        ({"metrics": [Metric("ms", range(5))]}, "'ms' has 5 values; 2 prompt x 3 steps make 6"),
        ({"metrics": []}, "2 axes and 0 metrics"),
        ({"axes": []}, "0 axes"),
        ({"axes": [Axis("a", [1, 2]), Axis("a", [1, 2, 3])]}, "a name twice"),
        ({"start": {"step": 2}}, "start names the axis 'step'.*'steps'"),
        ({"start": {"steps": 3}}, "3 is no stop"),
        ({"baseline": {"steps": 50}}, "50 is no stop"),
        ({"chart": ("ms", "scores")}, "'scores'.*'score'"),
        ({"chart": ("prompt", "ms")}, "'prompt'"),
        ({"on_change": 3}, "function"),
    ],
)
def test_a_malformed_sweep_is_refused(sweep, changes, words):
    with pytest.raises(ValueError, match=words):
        sweep(**changes)


def test_readings_name_what_is_unknown(sweep):
    with pytest.raises(ValueError, match="no metric 'scores'. Did you mean 'score'"):
        sweep().reading("scores", prompt="lion", steps=2)
    with pytest.raises(ValueError, match="a stop for every axis"):
        sweep().reading("ms", steps=2)
    with pytest.raises(ValueError, match="no axis 'step'"):
        sweep().axis("step")


def test_the_static_side_has_words_for_pictures_and_a_table(sweep):
    html = sweep(baseline={"steps": 8}, passport="Measured today.").fallback_html()
    alts = re.findall(r'alt="([^"]*)"', html)
    assert alts == ["generated image, baseline: lion, steps 8", "generated image, this stop: lion, steps 4"]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    assert [row[0] for row in rows] == ["2", "4", "8"]
    assert "40.00\u00a0ms (9.00 to 50.00)" in rows[2][1] and "not measured" in rows[2][1]
    assert "Fewer steps? Measured for lion. ms: p10 to p90." in html and "Measured today." in html


def test_texts_cannot_become_markup(sweep):
    evil = '"><script>alert(1)</script>'
    html = sweep(title=evil, picture=evil, passport=evil, start={"prompt": "a <b> & 'c'"}).fallback_html()
    assert "<script" not in html and "<b>" not in html


def test_alt_text_is_never_longer_than_allowed(sweep):
    assert max(map(len, re.findall(r'alt="([^"]*)"', sweep(picture="x" * 400).fallback_html()))) == 250


def test_data_are_json(sweep):
    data = sweep().data()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["sheet"]["src"].startswith("data:image/webp;base64,")


def test_a_large_sheet_may_stay_a_file_of_the_site(sweep):
    sheet = sweep(sheet_url="sheets/steps.webp").data()["sheet"]
    assert sheet["src"] == "sheets/steps.webp" and sheet["site"] is True


def test_tensors_and_sheets_are_pictures(sweep):
    images = torch.rand(6, 3, 6, 8)
    assert sweep(images=images).sheet.tile(3).size == (8, 6)
    assert sweep(images=Sheet.pack(images)).sheet.count == 6


def test_axes_may_be_a_mapping():
    explorer = SweepExplorer("s", {"steps": [1, 2]}, torch.rand(2, 3, 4, 4), [Metric("ms", [1, 2])], title="t")
    assert explorer.axes[0].kind == "ordered" and "2 steps" in repr(explorer)


def test_a_live_answer_is_checked_and_made_ready(sweep):
    explorer = sweep(on_change=lambda s: {"image": Image.new("RGB", (8, 6)), "metrics": {"ms": torch.tensor(1.5)}})
    answer = explorer.answer({"prompt": "lion", "steps": 2})
    assert answer["metrics"] == {"ms": 1.5} and answer["image"].startswith("data:image/webp")
    with pytest.raises(ValueError, match="the metric 'sm'"):
        sweep(on_change=lambda s: {"metrics": {"sm": 1}}).answer({})
    with pytest.raises(ValueError, match=r"\(4, 4\); recorded: \(8, 6\)"):
        sweep(on_change=lambda s: {"image": Image.new("RGB", (4, 4))}).answer({})
