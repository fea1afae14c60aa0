"""The sweep explorer: axes, metrics, numbers as text, a complete lattice, the static side, records, live answers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from explorer_samples import EVIL, PROMPTS, flat, sweep

from pruning_book.widgets.axes import Axis, Metric, Reading
from pruning_book.widgets.base import number
from pruning_book.widgets.sheet import Sheet
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.records import RecordError, passport


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 1, "not measured"),
        (1234567.891, 1, "1,234,567.9"),
        (2.5, 0, "3"),  # as browsers round; Python's own formatting says 2
        (0.125, 2, "0.13"),
        (1.005, 2, "1.01"),
        (-0.2, 0, "0"),
        (np.float32(0.5), 2, "0.50"),
    ],
)
def test_numbers_are_written_as_browsers_write_them(value, digits, text) -> None:
    assert number(value, digits) == text and number(3, 0, "ms") == "3\u00a0ms"


def test_an_axis_of_numbers_is_a_slider_and_one_of_names_a_choice() -> None:
    steps, prompt = Axis("steps", np.array([2, 4]), unit="x"), Axis("prompt", ["lion"])
    assert (steps.kind, prompt.kind) == ("ordered", "choice")
    assert steps.stops == [2, 4] and all(type(stop) is int for stop in steps.stops)
    assert steps.phrases == ["steps 2 x", "steps 4 x"] and prompt.phrases == ["lion"]
    assert steps.index(4) == 1
    with pytest.raises(ValueError, match=r"3 is no stop of axis 'steps'; measured: \[2, 4\]"):
        steps.index(3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("steps", []), "no stops"),
        (("steps", [1, 1]), "twice"),
        (("steps", [4, 2]), "not ascending"),
        (("two words", [1]), "identifier"),
        (("steps", [None]), "numbers and strings"),
        (("steps", [1, 2], "", "", "dial"), "'ordered' or 'choice'"),
        (("steps", [1, 2], "", "", "", ["one"]), "2 stops and 1 labels"),
    ],
)
def test_a_bad_axis_is_refused(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        Axis(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"values": [None, float("nan")]}, "no measured value"),
        ({"values": [1, float("inf")]}, "finite"),
        ({"values": [1, "2"]}, "finite"),
        ({"values": [1, 2], "low": [1, 2]}, "only one of low and high"),
        ({"values": [1, 2], "low": [1, 2], "high": [1, 2]}, "say what they are"),
        ({"values": [1, 2], "low": [1, 1], "high": [2, 1], "interval": "x"}, "at 1: 2 is not between"),
        ({"values": [1, 2], "low": [1], "high": [2], "interval": "x"}, "2 values and 1 in low"),
        ({"values": [1, 2], "n": [1, 2, 3]}, "2 values and 3 in n"),
    ],
)
def test_a_bad_metric_is_refused(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        Metric("ms", **arguments)


def test_a_metric_reads_and_writes_itself() -> None:
    metric = Metric("ms", np.array([1.25, np.nan]), low=[1, None], high=[2, None], interval="p10 to p90", n=np.int64(7))
    assert metric.values == [1.25, None] and metric.n == [7, 7]
    assert metric.reading(0) == Reading(1.25, 1, 2, 7) and metric.reading(1).value is None
    assert metric.text(0) == "1.25 (1.00 to 2.00)" and metric.text(1) == "not measured"


def test_the_last_axis_varies_fastest() -> None:
    explorer = sweep()
    assert explorer.index(prompt="lion", steps=8) == 2 and explorer.index(prompt=EVIL, steps=2) == 3
    assert explorer.reading("ms", prompt=EVIL, steps=4).value == 21
    assert explorer.reading("ms", prompt="lion", steps=2).n == 5
    assert explorer.axis("steps").stops == [2, 4, 8]


def test_it_starts_in_the_middle_of_sliders_at_the_first_choice() -> None:
    assert sweep().start == [0, 1] and sweep(start={"steps": 8}).start == [0, 2]


def test_the_chart_has_metrics_or_one_slider() -> None:
    assert sweep().data()["chart"] == {"x": "ms", "y": "score"}
    assert sweep(metrics=[Metric("ms", range(6))]).data()["chart"] == {"x": "steps", "y": "ms"}
    assert sweep(chart=()).data()["chart"] is None
    assert sweep(chart=("steps", "score")).data()["chart"] == {"x": "steps", "y": "score"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": flat(*[(0, 0, 0)] * 5)}, "5 images; 2 prompt x 3 steps make 6"),
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
def test_a_malformed_sweep_is_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        sweep(**changes)


def test_readings_name_what_is_unknown() -> None:
    with pytest.raises(ValueError, match="no metric 'scores'. Did you mean 'score'"):
        sweep().reading("scores", prompt="lion", steps=2)
    with pytest.raises(ValueError, match="a stop for every axis"):
        sweep().reading("ms", steps=2)
    with pytest.raises(ValueError, match="no axis 'step'"):
        sweep().axis("step")


def test_the_static_side_has_words_for_pictures_and_a_table() -> None:
    html = sweep(passport="Measured today.").fallback_html()
    alts = re.findall(r'alt="([^"]*)"', html)
    assert alts == ["generated image, baseline: lion, steps 8", "generated image, this stop: lion, steps 4"]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    assert [row[0] for row in rows] == ["2", "4", "8"]
    assert "40.00\u00a0ms (9.00 to 50.00)" in rows[2][1] and "not measured" in rows[2][1]
    assert "Fewer steps? Measured for lion. ms: p10 to p90." in html and "Measured today." in html


def test_texts_cannot_become_markup_and_no_alt_text_is_too_long() -> None:
    evil = '"><script>alert(1)</script>'
    html = sweep(title=evil, picture=evil * 20, passport=evil, start={"prompt": EVIL}).fallback_html()
    assert "<script" not in html and "<b>" not in html
    assert len(re.findall('alt="', html)) == 2
    assert max(map(len, re.findall(r'alt="([^"]*)"', sweep(picture="x" * 400).fallback_html()))) == 250


def test_tensors_and_sheets_are_pictures() -> None:
    images = torch.rand(6, 3, 6, 8)
    assert sweep(images=images).sheet.tile(3).size == (8, 6)
    assert sweep(images=Sheet.pack(images)).sheet.count == 6


def test_a_live_answer_is_checked_and_made_ready() -> None:
    drawn = flat((0, 0, 0))[0]
    explorer = sweep(on_change=lambda s: {"image": drawn, "metrics": {"ms": torch.tensor(1.5)}})
    answer = explorer.answer({"prompt": "lion", "steps": 2})
    assert answer["metrics"] == {"ms": 1.5} and answer["image"].startswith("data:image/webp")
    with pytest.raises(ValueError, match="no metric 'sm'"):
        sweep(on_change=lambda s: {"metrics": {"sm": 1}}).answer({})
    with pytest.raises(ValueError, match=r"\(4, 4\); recorded: \(8, 6\)"):
        sweep(on_change=lambda s: {"image": drawn.resize((4, 4))}).answer({})


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved sweep, in the folder where records are looked up by name."""
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    return sweep().save(tmp_path / "steps.json", "steps", passport(seeds=[0], n=5, device="cpu"), extra=[1])


def read(record="steps", **options) -> SweepExplorer:
    return SweepExplorer.from_record(record, "steps", title="Fewer steps?", **options)


def test_a_sweep_comes_back_from_its_record(saved) -> None:
    found, made = read(), sweep()
    assert (found.axes, found.metrics, found.start) == (made.axes, made.metrics, made.start)
    assert np.array_equal(np.asarray(found.sheet.image), np.asarray(made.sheet.image))
    assert found.passport.startswith("Measured on ") and found.axis("prompt").stops == list(PROMPTS)
    assert json.loads(saved.read_text())["data"]["extra"] == [1] and read(saved).metrics == made.metrics


def test_more_digits_than_recorded_can_be_shown(saved) -> None:
    assert [metric.digits for metric in read(digits={"ms": 5}).metrics] == [5, 2]
    with pytest.raises(ValueError, match="no metric 'spped'"):
        read(digits={"spped": 1})


def test_a_sheet_that_is_missing_or_another_one_is_noticed(saved) -> None:
    with saved.with_suffix(".webp").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RecordError, match="SHA-256"):
        read()
    saved.with_suffix(".webp").unlink()
    with pytest.raises(RecordError, match=r"steps.webp.*missing"):
        read()


def test_another_kind_of_record_and_none_are_refused(saved) -> None:
    record = json.loads(saved.read_text())
    del record["data"]["tile"], record["data"]["axes"]
    saved.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="lack axes, tile"):
        read()
    with pytest.raises(RecordError, match="no record.*Records there: steps"):
        read("other")


def test_nothing_is_written_where_nothing_may_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Cannot write"):
        sweep().save(tmp_path / "file" / "steps.json", "steps", passport(seeds=[0], n=5, device="cpu"))
