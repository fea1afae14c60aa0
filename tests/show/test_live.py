"""The live side: what a browser asks for, what Python answers, and what a reader sees when that fails."""

from __future__ import annotations

import json
import re
import sys

import pytest
from PIL import Image

anywidget = pytest.importorskip("anywidget")
VIEW = "application/vnd.jupyter.widget-view+json"


def test_data_travel_only_when_a_browser_asks(sweep):
    explorer = sweep(on_change=lambda stop: {})
    widget = explorer.widget()
    assert widget.data == {}
    widget.request = {"view": "a", "number": 1, "want": "data"}
    assert widget.data == explorer.data() and widget.response == {}


def test_a_state_is_answered_with_its_number(sweep):
    seen = []

    def on_change(stop):
        seen.append(stop)
        return {"image": Image.new("RGB", (8, 6)), "metrics": {"ms": 3}}

    widget = sweep(on_change=on_change).widget()
    widget.request = {"view": "a", "number": 2, "state": {"prompt": "lion", "steps": 4}}
    assert seen == [{"prompt": "lion", "steps": 4}]
    picture = widget.response["image"]
    assert widget.response == {"view": "a", "number": 2, "metrics": {"ms": 3}, "image": picture}
    assert picture.startswith("data:image/webp")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda stop: 1 / 0, "ZeroDivisionError"),
        (lambda stop: None, "TypeError"),
        (lambda stop: {"metrics": {"ms": float("nan")}}, "ValueError"),
        (lambda stop: {"metrics": {"no": 1}}, "ValueError.*'no'"),
    ],
)
def test_a_failure_reaches_the_reader_and_the_next_request_is_answered(sweep, answer, words):
    fails = True
    widget = sweep(on_change=lambda stop: answer(stop) if fails else {"metrics": {"ms": 1}}).widget()
    widget.request = {"view": "a", "number": 1, "state": {"steps": 2}}
    assert set(widget.response) == {"view", "number", "error"} and widget.response["number"] == 1
    assert re.match(words, widget.response["error"])
    fails = False
    widget.request = {"view": "a", "number": 2, "state": {"steps": 2}}
    assert widget.response == {"view": "a", "number": 2, "metrics": {"ms": 1}}


def test_both_lives_are_offered_and_the_page_needs_no_kernel(sweep):
    explorer = sweep(on_change=lambda stop: {})
    bundle, _ = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", VIEW}
    assert bundle[VIEW]["model_id"] == explorer.widget().model_id
    assert bundle["text/html"] == explorer.to_html()


def test_colab_is_told_where_its_widget_manager_is(sweep, monkeypatch):
    explorer = sweep(on_change=lambda stop: {})
    note = {VIEW: {"colab": {"custom_widget_manager": {"url": "x"}}}}
    monkeypatch.setattr(type(explorer.widget()), "_repr_mimebundle_", lambda self, **_: ({VIEW: {}}, note))
    assert explorer._repr_mimebundle_()[1] == note


def test_without_anywidget_the_record_is_shown(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    bundle, metadata = sweep(on_change=lambda stop: {})._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"} and metadata == {}


def test_an_idle_widget_stores_no_pictures_in_a_page(sweep):
    """A page that is built from an executed notebook keeps the state of every widget."""
    widget = sweep(on_change=lambda stop: {}).widget()
    assert len(json.dumps({"data": widget.data, "response": widget.response})) < 100
