"""What all explorers share: modules that stand alone, safe HTML, refusals, sheets, records, and the live side."""

from __future__ import annotations

import base64
import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from explorer_samples import COLOURS, PANEL, flat, grid, operators, painter, pruning_stops, results, sweep
from PIL import Image

from pruning_book.widgets import base
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.base import json_for_html, module_source, passport_line
from pruning_book.widgets.blocks import BlockExplorer, BlockModel
from pruning_book.widgets.schedule_editor import PaintedStop
from pruning_book.widgets.sheet import Sheet, data_url, to_pil
from pruning_lib.records import RecordError, passport

VIEW = "application/vnd.jupyter.widget-view+json"
NOISE = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
STAMP = passport(seeds=[0], n=5, device="cpu")
(DRAWN,) = flat((1, 2, 3))


# Modules and HTML.


@pytest.mark.parametrize("kind", ["sweep_explorer", "block_explorer", "operator_explorer", "schedule_painter"])
def test_a_module_stands_alone(kind) -> None:
    source = module_source(kind)
    assert not re.search(r"^\s*import\b|\bimport\s*\(|\b(?:fetch|XMLHttpRequest|importScripts)\b", source, re.MULTILINE)
    assert set(re.findall(r"https?://[^\s\"'`]+", source)) <= {"http://www.w3.org/2000/svg"}
    assert re.findall(r"^export (\w+ ?\w*)", source, re.MULTILINE) == ["function mount", "default anywidget"]


@pytest.mark.parametrize(
    "text", ['import * as all from "./twin.js";\n', 'export { a } from "./twin.js";\n', "const a = '</SCRIPT>';\n"]
)
def test_a_module_that_could_not_stand_alone_is_refused(monkeypatch, text) -> None:
    monkeypatch.setattr(base, "static_text", lambda file: text)
    with pytest.raises(ValueError, match="write imports as|must not contain"):
        module_source.__wrapped__("some_explorer")


def test_the_html_holds_the_data_and_no_text_becomes_markup() -> None:
    data = {"text": "</script><!-- <script> \u2028 & é '\""}
    assert "<" not in json_for_html(data) and json.loads(json_for_html(data)) == data
    html = sweep().to_html()
    found = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(found) == json.loads(json.dumps(sweep().data(), allow_nan=False))
    assert "<b>" not in html and html.count("</script>") == 2


def test_the_passport_in_one_line() -> None:
    measured = {"hardware": "a CPU", "device": "cpu", "cpu_threads": 2, "n": 5}
    assert passport_line(None) == "" and passport_line(measured) == "Measured on a CPU, 2 threads, n = 5"
    stamp = {"commit": "abcdef01234567", "dirty": True, "date": "2026-01-02T03"}
    assert passport_line(stamp) == "2026-01-02, commit abcdef0123 with changes"
    stamp = {"commit": "uncommitted", "versions": {"torch": "2.6", "numpy": "2"}}
    assert passport_line(stamp) == "torch 2.6, uncommitted"
    assert re.fullmatch("Measured on .*n = 5, torch .*", passport_line(STAMP))


# Refusals.


def painted(name: str = "a", second: str = "1111", first: str = "1111") -> PaintedStop:
    return PaintedStop(name, "g", [first, second, "1111", "1111"], [1.0, 1.0], {"value": 1.0, "low": 1.0, "high": 1.0})


def metric(*values, **more) -> Metric:
    return Metric("ms", values, **more)


def binned(**changes):
    return sweep(histogram={**PANEL, **changes})


ONE = BlockModel("a", ["x"], {"params": [1]})
BLACK, LARGE = flat((0, 0, 0)), Image.new("RGB", (4, 4))
REFUSED = [
    (lambda: sweep(name='x" onclick="'), "lower-case letter"),
    (lambda: sweep(on_change=3), "function"),
    (lambda: Axis("steps", []), "no stops"),
    (lambda: Axis("steps", [1, 1]), "twice"),
    (lambda: Axis("steps", [4, 2]), "not ascending"),
    (lambda: Axis("steps", [1, 2], labels=["one"]), "2 stops and 1 labels"),
    (lambda: metric(None, float("nan")), "no measured value"),
    (lambda: metric(1, float("inf")), "finite"),
    (lambda: metric(1, 2, low=[1, 2]), "only one of low and high"),
    (lambda: metric(1, 2, low=[1, 1], high=[2, 1], interval="x"), "at 1: 2 is not between"),
    (lambda: sweep(images=BLACK * 5), "5 images; 2 prompt x 3 steps make 6"),
    (lambda: sweep(metrics=[metric(*range(5))]), "'ms' has 5 values; 2 prompt x 3 steps make 6"),
    (lambda: sweep(metrics=[]), "2 axes and 0 metrics"),
    (lambda: sweep(start={"step": 2}), "start names the axis 'step'.*'steps'"),
    (lambda: sweep(baseline={"steps": 50}), "50 is no stop"),
    (lambda: sweep(chart=("ms", "scores")), "'scores'.*'score'"),
    (lambda: binned(edges=[-1, 0, 1]), "4 increasing edges"),
    (lambda: binned(removed=[[0, 0, 0], [0, 1001, 0], [0, 0, 0]]), "from 0 to the bin's count"),
    (lambda: binned(cuts=[None, [0.5, 0.2], None]), "smallest, largest"),
    (lambda: binned(axes=["scope"]), "axis 'scope'"),
    (lambda: BlockModel("a", ["x"], {"flops": [1]}), "'flops' is unknown"),
    (lambda: BlockModel("a", ["x"], {"params": [-2]}), "not negative"),
    (lambda: BlockModel("a", ["x", "x"], {"params": [1, 2]}), "a name of its own"),
    (lambda: BlockModel("a", ["x", "y"], {"params": [1, 2]}, {"params": [(1, 2)]}), "spread of params"),
    (lambda: BlockExplorer("b", [ONE, ONE], title="t"), "a label of its own"),
    (lambda: BlockExplorer("b", [ONE], title="t", start=("huge", "params")), "models: "),
    (lambda: operators(operators=[*results(), results()[0]]), "each with its own"),
    (lambda: operators(stops=pruning_stops()[1:]), "the first with nothing removed"),
    (lambda: operators(prompts=("lion", "lion")), "none twice"),
    (lambda: operators(images=BLACK), "2 prompts with 3 stops and 14 operators each make 34"),
    (lambda: operators(start={"operator": "conv_inn"}), "Did you mean 'conv_in'"),
    (lambda: painter(stops=[painted(), painted()]), "its own name"),
    (lambda: painter(grid=grid(timesteps=(999.0, 499.0), steps=2)), "this grid has 2 calls"),
    (lambda: painter(stops=[painted(), painted("b", first="1101")]), "'b': In the first row 1 of 4"),
    (lambda: painter(stops=[painted(second="0000")]), "must compute everything"),
    (lambda: painter(start={"schedule": "every 3rd step"}), "Did you mean|Known"),
    (lambda: Sheet.pack(torch.zeros(3, 4, 4)), r"shape \(3, 4, 4\)"),
    (lambda: Sheet.pack(["lion.png"]), "holds a str"),
    (lambda: Sheet.pack([*BLACK, LARGE]), r"sizes \[\(4, 4\), \(8, 6\)\]"),
    (lambda: Sheet(LARGE, 3, 4, 1), "no tiles of 3 x 4"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_does_not_fit_together_is_refused(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# Sheets.


def test_all_kinds_of_pictures_become_a_sheet_that_gives_them_back_after_the_disk_too(tmp_path) -> None:
    whole = torch.from_numpy(NOISE).permute(0, 3, 1, 2)
    for images in (NOISE, whole, whole / 255, [Image.fromarray(a) for a in NOISE]):
        assert all(np.array_equal(np.asarray(p), a) for p, a in zip(to_pil(images), NOISE, strict=True))
    (picture,) = to_pil(torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2))
    assert picture.getpixel((0, 0)) == (0, 128, 255), "values are clipped"
    sheet = Sheet.pack(flat(*COLOURS[:5]))
    assert (sheet.columns, sheet.image.size) == (3, (24, 12))
    assert [sheet.tile(i).getpixel((3, 3)) for i in range(5)] == COLOURS[:5]
    Sheet.pack(NOISE).save(tmp_path / "sheet.webp")
    read = Sheet.read(tmp_path / "sheet.webp", 8, 6, 5)
    assert all(np.array_equal(np.asarray(read.tile(i)), NOISE[i]) for i in range(5))


def test_a_data_url_is_lossless_within_its_budget_and_smaller_beyond() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole, cut = data_url(noise), data_url(noise, budget=1000)
    head, data = whole.split(",", 1)
    assert head == "data:image/webp;base64" and len(cut) < 0.7 * len(whole)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")), np.asarray(noise))


# Records.


@pytest.mark.parametrize("make, quality", [(sweep, None), (operators, None), (operators, 90), (painter, None)])
def test_an_explorer_comes_back_from_its_record(make, quality, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    made = make()
    file = made.save(tmp_path / "worth.json", "worth", STAMP, quality=quality, extra=[1])
    options = {"title": made.title, **({"baseline": {"steps": 8}} if make is sweep else {})}
    read = type(made).from_record("worth", made.name, **options)
    own = {"sheet", "passport"}
    same, shown = ({k: v for k, v in e.data().items() if k not in own} for e in (read, made))
    assert same == shown and read.passport.startswith("Measured on ")
    difference = np.abs(np.asarray(read.sheet.image, int) - np.asarray(made.sheet.image, int))
    assert difference.max() == 0 if quality is None else difference.mean() < 8
    record = json.loads(file.read_text())
    assert record["data"]["extra"] == [1]
    lost = type(made).fields[-1]
    del record["data"][lost], record["data"]["tile"]
    file.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=f"lack.* {lost}, tile"):
        type(made).from_record(file, made.name, title="t")
    made.save(tmp_path / "other.json", "other", STAMP)
    (tmp_path / "other.webp").write_bytes(b"x")
    with pytest.raises(RecordError, match="SHA-256"):
        type(made).from_record("other", made.name, title="t")
    (tmp_path / "other.webp").unlink()
    with pytest.raises(RecordError, match=r"other.webp.*missing"):
        type(made).from_record("other", made.name, title="t")
    with pytest.raises(RecordError, match="Cannot write"):
        made.save(file / "steps.json", "steps", STAMP)


# The live side.


@pytest.mark.parametrize(
    ("make", "numbers"),
    [(operators, {"ssim": 0.5}), (painter, {"ssim": 0.5, "ms": 7, "whole_ms": 9}), (sweep, {"metrics": {"ms": 1.5}})],
)
def test_a_live_answer_is_checked_and_made_ready(make, numbers) -> None:
    answer = make(on_change=lambda state: {"image": DRAWN, **numbers}).answer({})
    assert answer.pop("image").startswith("data:image/webp") and answer == numbers
    with pytest.raises(ValueError, match=r"an image of \(2, 2\); recorded: \(8, 6\)"):
        make(on_change=lambda state: {"image": DRAWN.resize((2, 2)), **numbers}).answer({})


def test_without_a_kernel_or_anywidget_there_is_html_alone(monkeypatch) -> None:
    explorer = sweep(on_change=lambda stop: {})
    bundle, _ = explorer._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == explorer.widget().model_id and bundle["text/html"] == explorer.to_html()
    note = {VIEW: {"colab": {"custom_widget_manager": {"url": "x"}}}}
    monkeypatch.setattr(type(explorer.widget()), "_repr_mimebundle_", lambda self, **_: ({VIEW: {}}, note))
    assert explorer._repr_mimebundle_()[1] == note, "Colab is told where its widget manager is"
    monkeypatch.setitem(sys.modules, "anywidget", None)
    for explorer in (sweep(), sweep(on_change=lambda stop: {})):
        bundle, metadata = explorer._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html"} and metadata == {}


def test_data_travel_only_when_a_browser_asks_and_a_state_is_answered_with_its_number() -> None:
    """A page that is built from an executed notebook keeps the state of every widget."""
    seen = []

    def on_change(stop):
        seen.append(stop)
        return {"image": DRAWN, "metrics": {"ms": 3}}

    explorer = sweep(on_change=on_change)
    widget = explorer.widget()
    assert widget.data == widget.response == {}
    widget.request = {"view": "a", "number": 1, "want": "data"}
    assert widget.data == explorer.data() and widget.response == {}
    widget.request = {"view": "a", "number": 2, "state": {"prompt": "lion", "steps": 4}}
    assert seen == [{"prompt": "lion", "steps": 4}]
    picture = widget.response["image"]
    assert widget.response == {"view": "a", "number": 2, "metrics": {"ms": 3}, "image": picture}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda stop: 1 / 0, "ZeroDivisionError"),
        (lambda stop: {"metrics": {"ms": float("nan")}}, "ValueError"),
        (lambda stop: {"metrics": {"no": 1}}, "ValueError.*'no'"),
    ],
)
def test_a_failure_reaches_the_reader_and_the_next_request_is_answered(answer, words) -> None:
    fails = True
    widget = sweep(on_change=lambda stop: answer(stop) if fails else {"metrics": {"ms": 1}}).widget()
    widget.request = {"view": "a", "number": 1, "state": {"steps": 2}}
    assert set(widget.response) == {"view", "number", "error"} and re.match(words, widget.response["error"])
    fails = False
    widget.request = {"view": "a", "number": 2, "state": {"steps": 2}}
    assert widget.response == {"view": "a", "number": 2, "metrics": {"ms": 1}}
