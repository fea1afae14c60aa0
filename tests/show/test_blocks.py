"""The block explorer's Python side: units, sums, refusals, reports of real models, the static table."""

from __future__ import annotations

import json
import re

import pytest
from diffusers import UNet2DModel

from pruning_book.widgets.blocks import BlockExplorer, BlockModel, block_model
from pruning_lib.macs import count_macs

BLOCKS = ["conv_in", "mid_block", "conv_out"]
COUNTS = {"params": [1e6, 3e6, 0], "macs": [2e9, None, 5e8]}


@pytest.fixture(scope="module")
def report():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return count_macs(unet)


def explorer(**changes) -> BlockExplorer:
    given = {"models": [BlockModel("tiny", BLOCKS, COUNTS), BlockModel("<big>", ["a", "b"], {"params": [1, 2]})]}
    return BlockExplorer("blocks", **{**given, "title": "Where?", **changes})


def test_values_are_shown_in_their_units():
    model = BlockModel("tiny", BLOCKS, {**COUNTS, "latency_ms": None})
    assert model.scaled("params") == [1, 3, 0] and model.scaled("macs") == [2, None, 0.5]
    assert model.scaled("latency_ms") is None
    assert (model.sum("params"), model.sum("macs")) == (4, 2.5)
    assert model.digits("macs") == 2 and BlockModel("x", ["a"], {"params": [123e6]}).digits("params") == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"flops": [1, 2, 3]}, "'flops' is unknown"),
        ({"params": [1, 2]}, "2 values of params for 3 blocks"),
        ({"params": [1, -2, 3]}, "not negative"),
        ({"params": [1, float("inf"), 3]}, "finite"),
        ({"params": [0, None, 0]}, "zero or missing everywhere"),
        ({"params": None}, "no measure was given"),
    ],
)
def test_a_bad_model_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        BlockModel("tiny", BLOCKS, values)


def test_blocks_have_names_of_their_own():
    with pytest.raises(ValueError, match="a name of its own"):
        BlockModel("tiny", ["a", "a"], {"params": [1, 2]})
    with pytest.raises(ValueError, match="spread of params"):
        BlockModel("tiny", BLOCKS, COUNTS, {"params": [(1, 2)]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": []}, "at least one"),
        ({"models": [BlockModel("a", ["x"], {"params": [1]})] * 2}, "a label of its own"),
        ({"start": ("tiny", "latency_ms")}, "measures: "),
        ({"start": ("huge", "params")}, "models: "),
    ],
)
def test_a_bad_explorer_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        explorer(**changes)


def test_it_starts_at_the_largest_block():
    assert explorer().start == [0, 0, 1]
    assert explorer(start=("tiny", "macs")).start == [0, 1, 0]
    assert explorer(start=("<big>", "macs")).start == [1, 1, 1]  # not counted there: by what was


def test_the_static_table_has_every_block_and_the_sums():
    html = explorer(passport="Counted.").fallback_html()
    assert re.findall(r'<th scope="row">(.*?)</th>', html) == BLOCKS
    assert "<td>not measured</td>" in html and 'style="width:33%"' in html and 'style="width:100%"' in html
    assert "tiny: parameters 4.00\u00a0M" in html and "Counted." in html
    assert "<big>" not in html and "&lt;big&gt;" in html


def test_data_are_json():
    data = explorer().data()
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_a_report_and_times_make_a_model(report):
    names = list(report.by_block())
    timed = {"n": 7, "blocks": {name: {"median_ms": 2, "p10_ms": 1, "p90_ms": 3} for name in names[1:]}}
    model = block_model("tiny", report, timed)
    assert model.sum("params") == pytest.approx(report.params / 1e6)
    assert model.sum("macs") == pytest.approx(report.macs / 1e9)
    assert model.scaled("latency_ms") == [None] + [2] * (len(names) - 1)
    assert model.spread["latency_ms"][1] == (1, 3) and "7 calls" in model.notes["latency_ms"]
    with pytest.raises(ValueError, match=r"the record times \['other'\]"):
        block_model("tiny", report, {"n": 1, "blocks": {"other": {}}})


def test_reports_and_a_record_make_an_explorer(report):
    blocks = {name: {"median_ms": 2, "p10_ms": 1, "p90_ms": 3} for name in report.by_block()}
    record = {"data": {"models": {"timed": {"n": 7, "blocks": blocks}}}, "passport": {"hardware": "a CPU"}}
    made = BlockExplorer.from_reports("blocks", {"timed": report, "counted": report}, title="t", latency=record)
    assert made.passport == "Times: measured on a CPU"
    first, second = made.models
    assert "latency_ms" in first.values and "latency_ms" not in second.values
    assert second.notes["latency_ms"].startswith("Counted without weights")
    untimed = BlockExplorer.from_reports("blocks", {"counted": report}, title="t")
    assert [measure.name for measure in untimed.measures] == ["params", "macs", "macs_without_attention"]
