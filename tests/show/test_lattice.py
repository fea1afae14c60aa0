"""Axes, metrics and numbers as text."""

from __future__ import annotations

import numpy as np
import pytest

from pruning_book.widgets.axes import Axis, Metric, Reading, number


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 1, "not measured"),
        (1234567.891, 1, "1,234,567.9"),
        (2.5, 0, "3"),  # as browsers round; Python's own formatting says 2
        (0.125, 2, "0.13"),
        (1.005, 2, "1.01"),
        (-0.2, 0, "0"),
        (401.6, 1, "401.6"),
        (np.float32(0.5), 2, "0.50"),
    ],
)
def test_numbers_are_written_as_browsers_write_them(value, digits, text):
    assert number(value, digits) == text


def test_a_unit_stays_with_its_number():
    assert number(3, 0, "ms") == "3\u00a0ms"


def test_an_axis_of_numbers_is_a_slider_and_one_of_names_a_choice():
    steps, prompt = Axis("steps", np.array([2, 4]), unit="x"), Axis("prompt", ["lion"])
    assert (steps.kind, prompt.kind) == ("ordered", "choice")
    assert steps.stops == [2, 4] and all(type(stop) is int for stop in steps.stops)
    assert steps.phrases == ["steps 2 x", "steps 4 x"] and prompt.phrases == ["lion"]


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
def test_a_bad_axis_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Axis(*arguments)


def test_an_axis_knows_only_its_stops():
    assert Axis("steps", [2, 4]).index(4) == 1
    with pytest.raises(ValueError, match=r"3 is no stop of axis 'steps'; measured: \[2, 4\]"):
        Axis("steps", [2, 4]).index(3)


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
def test_a_bad_metric_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Metric("ms", **arguments)


def test_a_metric_reads_and_writes_itself():
    metric = Metric("ms", np.array([1.25, np.nan]), low=[1, None], high=[2, None], interval="p10 to p90", n=np.int64(7))
    assert metric.values == [1.25, None] and metric.n == [7, 7]
    assert metric.reading(0) == Reading(1.25, 1, 2, 7) and metric.reading(1).value is None
    assert metric.text(0) == "1.25 (1.00 to 2.00)" and metric.text(1) == "not measured"
    assert Metric(**metric.to_dict()) == metric


def test_an_axis_writes_what_makes_it_again():
    axis = Axis("ratio", [0.1, 0.25], label="Ratio", unit="%", labels=["10", "25"])
    assert Axis(**axis.to_dict()) == axis
