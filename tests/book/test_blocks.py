"""The block explorer: units, sums, reports of real models, the static table; and the benchmark that times blocks."""

from __future__ import annotations

import json
import re

import pytest

import pruning_lib as pl
from pruning_book.widgets.blocks import BlockExplorer, BlockModel, block_model

BLOCKS = ["conv_in", "mid_block", "conv_out"]
COUNTS = {"params": [1e6, 3e6, 0], "macs": [2e9, None, 5e8]}
TIMED = {"median_ms": 2, "p10_ms": 1, "p90_ms": 3}


def explorer(**changes) -> BlockExplorer:
    spread = {"params": [(5e5, 2e6), None, None]}
    models = [BlockModel("tiny", BLOCKS, COUNTS, spread), BlockModel("<big>", ["a", "b"], {"params": [1, 2]})]
    return BlockExplorer("blocks", **{"models": models, "title": "Where?", **changes})


def test_values_are_shown_in_their_units_and_it_starts_at_the_largest_block() -> None:
    model = BlockModel("tiny", BLOCKS, {**COUNTS, "latency_ms": None})
    assert model.scaled("params") == [1, 3, 0] and model.scaled("macs") == [2, None, 0.5]
    assert model.scaled("latency_ms") is None
    assert (model.sum("params"), model.sum("macs")) == (4, 2.5)
    assert model.digits("macs") == 2 and BlockModel("x", ["a"], {"params": [123e6]}).digits("params") == 0
    assert explorer().start == [0, 0, 1] and explorer(start=("tiny", "macs")).start == [0, 1, 0]
    assert explorer(start=("<big>", "macs")).start == [1, 1, 1]  # not counted there: by what was


def test_the_static_table_and_the_data_have_every_block() -> None:
    html, data = explorer(passport="Counted.").fallback_html(), explorer().data()
    assert re.findall(r'<th scope="row">(.*?)</th>', html) == BLOCKS
    assert "<td>not measured</td>" in html and 'style="width:33%"' in html and 'style="width:100%"' in html
    assert "tiny: parameters 4.00\u00a0M" in html and "Counted." in html
    assert "<big>" not in html and "&lt;big&gt;" in html
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["models"][0]["spread"] == {"params": [[0.5, 2], None, None]}


def test_reports_and_a_record_make_an_explorer(pipe) -> None:
    report = pl.count_macs(pipe.unet)
    names = list(report.by_block())
    times = {"n": 7, "blocks": {name: TIMED for name in names[1:]}}
    record = {"data": {"models": {"timed": times}}, "passport": {"hardware": "a CPU"}}
    made = BlockExplorer.from_reports("blocks", {"timed": report, "counted": report}, title="t", latency=record)
    assert made.passport == "Times: measured on a CPU"
    first, second = made.models
    assert first.sum("params") == pytest.approx(report.params / 1e6)
    assert first.sum("macs") == pytest.approx(report.macs / 1e9)
    assert first.scaled("latency_ms") == [None] + [2] * (len(names) - 1)
    assert first.spread["latency_ms"][1] == (1, 3) and "7 calls" in first.notes["latency_ms"]
    assert "latency_ms" not in second.values and second.notes["latency_ms"].startswith("Counted without weights")
    untimed = BlockExplorer.from_reports("blocks", {"counted": report}, title="t")
    assert [measure.name for measure in untimed.measures] == ["params", "macs", "macs_without_attention"]
    with pytest.raises(ValueError, match=r"the record times \['other'\]"):
        block_model("tiny", report, {"n": 1, "blocks": {"other": {}}})


def test_the_blocks_of_a_denoiser_are_timed(benchmark, pipe, monkeypatch) -> None:
    monkeypatch.setattr(pl, "load", lambda name, device: pipe)
    found, report = benchmark("block_latency").measure(["emoji-sd"], repeats=4), pl.count_macs(pipe.unet)
    found = found.data["models"]["emoji-sd"]
    assert set(found["blocks"]) == set(report.by_block()) and found["n"] == 4
    assert all(0 < b["p10_ms"] <= b["median_ms"] <= b["p90_ms"] for b in found["blocks"].values())
    made = block_model("emoji-sd", report, found)
    assert made.sum("latency_ms") == pytest.approx(sum(b["median_ms"] for b in found["blocks"].values()))
    assert not pipe.unet.mid_block._forward_hooks and not pipe.unet.mid_block._forward_pre_hooks
