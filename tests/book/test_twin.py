"""The base of the explorers: self-contained modules, safe JSON, the passport's line, and the two lives."""

from __future__ import annotations

import json
import re
import sys

import pytest
from explorer_samples import flat, sweep

from pruning_book.widgets import base
from pruning_book.widgets.base import json_for_html, module_source, passport_line
from pruning_lib.records import passport

VIEW = "application/vnd.jupyter.widget-view+json"
MODULES = ("sweep_explorer", "block_explorer", "operator_explorer", "schedule_painter")


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_stands_alone(kind) -> None:
    source = module_source(kind)
    assert not re.search(r"^\s*import\b|\bimport\s*\(", source, re.MULTILINE)
    # No address is fetched: the only ones are names of XML namespaces.
    assert set(re.findall(r"https?://[^\s\"'`]+", source)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|importScripts)\b", source)
    exports = re.findall(r"^export (\w+ ?\w*)", source, re.MULTILINE)
    assert exports == ["function mount", "default anywidget"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('import * as all from "./twin.js";\n', "write imports as"),
        ('const twin = await import("./twin.js");\n', "write imports as"),
        ('export { a } from "./twin.js";\n', "write imports as"),
        ("const a = '</SCRIPT>';\n", "must not contain"),
    ],
)
def test_a_module_that_could_not_stand_alone_is_refused(monkeypatch, text, words) -> None:
    monkeypatch.setattr(base, "static_text", lambda file: text)
    with pytest.raises(ValueError, match=words):
        module_source.__wrapped__("some_explorer")


def test_a_module_shared_by_two_is_put_in_once(monkeypatch) -> None:
    files = {
        "top.js": 'import { a } from "./left.js";\nimport { b } from "./base.js";\nexport default a + b;\n',
        "left.js": 'import { b } from "./base.js";\nexport const a = b;\n',
        "base.js": "export const b = 1;\n",
    }
    monkeypatch.setattr(base, "static_text", files.__getitem__)
    assert module_source.__wrapped__("top").split() == "const b = 1; const a = b; export default a + b;".split()


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("place", "ink"), [(0, "#222832"), (0, "#1f2933"), (1, "#ced6dd"), (1, "#cccccc")])
def test_text_on_a_filled_cell_can_be_read_in_both_themes(place, ink) -> None:
    """The inks are those of the book's theme, and of editors."""
    fill = re.findall(r"--pl-fill: (#\w{6})", base.static_text("twin.css"))[place]
    darker, lighter = sorted(map(_luminance, (fill, ink)))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_json_cannot_end_its_element_and_survives() -> None:
    data = {"text": "</script><!-- <script> \u2028 & é '\""}
    written = json_for_html(data)
    assert "<" not in written and json.loads(written) == data
    with pytest.raises(ValueError, match="JSON"):
        json_for_html({"x": float("nan")})


@pytest.mark.parametrize("name", ["Steps", "1st", "two words", "a:b", "", 'x" onclick="', None])
def test_a_name_that_cannot_stand_in_a_link_is_refused(name) -> None:
    with pytest.raises(ValueError, match="lower-case letter"):
        sweep(name=name)


def test_the_html_holds_data_and_no_live_markup_from_texts() -> None:
    html = sweep().to_html()
    found = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(found) == json.loads(json.dumps(sweep().data(), allow_nan=False))
    assert "<b>" not in html and html.count("</script>") == 2


@pytest.mark.parametrize(
    ("stamp", "line"),
    [
        (None, ""),
        ("Counted.", "Counted."),
        ({"hardware": "a CPU", "device": "cpu", "cpu_threads": 2, "n": 5}, "Measured on a CPU, 2 threads, n = 5"),
        ({"hardware": "a GPU", "device": "cuda", "cpu_threads": 2}, "Measured on a GPU"),
        (
            {"commit": "abcdef0123456", "dirty": True, "date": "2026-01-02T03"},
            "2026-01-02, commit abcdef0123 with changes",
        ),
        ({"commit": "uncommitted", "versions": {"torch": "2.6", "numpy": "2"}}, "torch 2.6, uncommitted"),
    ],
)
def test_the_passport_in_one_line(stamp, line) -> None:
    assert passport_line(stamp) == line


def test_a_real_passport_in_one_line() -> None:
    line = passport_line(passport(seeds=[1], n=3, device="cpu"))
    assert line.startswith("Measured on ") and "n = 3, torch " in line


def test_the_recorded_side_is_html_alone_and_so_is_the_other_without_anywidget(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    for explorer in (sweep(), sweep(on_change=lambda stop: {})):
        bundle, metadata = explorer._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html"} and metadata == {}


def test_both_lives_are_offered_and_colab_is_told_where_its_widget_manager_is(monkeypatch) -> None:
    explorer = sweep(on_change=lambda stop: {})
    bundle, _ = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", VIEW}
    assert bundle[VIEW]["model_id"] == explorer.widget().model_id and bundle["text/html"] == explorer.to_html()
    note = {VIEW: {"colab": {"custom_widget_manager": {"url": "x"}}}}
    monkeypatch.setattr(type(explorer.widget()), "_repr_mimebundle_", lambda self, **_: ({VIEW: {}}, note))
    assert explorer._repr_mimebundle_()[1] == note


def test_data_travel_only_when_a_browser_asks() -> None:
    """A page that is built from an executed notebook keeps the state of every widget."""
    explorer = sweep(on_change=lambda stop: {})
    widget = explorer.widget()
    assert widget.data == widget.response == {}
    widget.request = {"view": "a", "number": 1, "want": "data"}
    assert widget.data == explorer.data() and widget.response == {}


def test_a_state_is_answered_with_its_number() -> None:
    seen = []

    def on_change(stop):
        seen.append(stop)
        return {"image": flat((0, 0, 0))[0], "metrics": {"ms": 3}}

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
def test_a_failure_reaches_the_reader_and_the_next_request_is_answered(answer, words) -> None:
    fails = True
    widget = sweep(on_change=lambda stop: answer(stop) if fails else {"metrics": {"ms": 1}}).widget()
    widget.request = {"view": "a", "number": 1, "state": {"steps": 2}}
    assert set(widget.response) == {"view", "number", "error"} and widget.response["number"] == 1
    assert re.match(words, widget.response["error"])
    fails = False
    widget.request = {"view": "a", "number": 2, "state": {"steps": 2}}
    assert widget.response == {"view": "a", "number": 2, "metrics": {"ms": 1}}
