"""The block explorer's Python side: units, sums, refusals, reports of real models, the static table."""

from __future__ import annotations

import json
import re

import pytest
import torch
from diffusers import UNet2DConditionModel

import pruning_lib as pl
from pruning_book.widgets.blocks import BlockExplorer, BlockModel, block_model

BLOCKS = ["conv_in", "mid_block", "conv_out"]
COUNTS = {"params": [1e6, 3e6, 0], "macs": [2e9, None, 5e8]}
TIMED = {"median_ms": 2, "p10_ms": 1, "p90_ms": 3}


@pytest.fixture(scope="module")
def report(pipe):
    return pl.count_macs(pipe.unet)


def explorer(**changes) -> BlockExplorer:
    given = {"models": [BlockModel("tiny", BLOCKS, COUNTS), BlockModel("<big>", ["a", "b"], {"params": [1, 2]})]}
    return BlockExplorer("blocks", **{**given, "title": "Where?", **changes})


def test_values_are_shown_in_their_units() -> None:
    model = BlockModel("tiny", BLOCKS, {**COUNTS, "latency_ms": None})
    assert model.scaled("params") == [1, 3, 0] and model.scaled("macs") == [2, None, 0.5]
    assert model.scaled("latency_ms") is None
    assert (model.sum("params"), model.sum("macs")) == (4, 2.5)
    assert model.digits("macs") == 2 and BlockModel("x", ["a"], {"params": [123e6]}).digits("params") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((BLOCKS, {"flops": [1, 2, 3]}), "'flops' is unknown"),
        ((BLOCKS, {"params": [1, 2]}), "2 values of params for 3 blocks"),
        ((BLOCKS, {"params": [1, -2, 3]}), "not negative"),
        ((BLOCKS, {"params": [1, float("inf"), 3]}), "finite"),
        ((BLOCKS, {"params": [0, None, 0]}), "zero or missing everywhere"),
        ((BLOCKS, {"params": None}), "no measure was given"),
        ((["a", "a"], {"params": [1, 2]}), "a name of its own"),
        ((BLOCKS, COUNTS, {"params": [(1, 2)]}), "spread of params"),
    ],
)
def test_a_bad_model_is_refused(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        BlockModel("tiny", *arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": []}, "at least one"),
        ({"models": [BlockModel("a", ["x"], {"params": [1]})] * 2}, "a label of its own"),
        ({"start": ("tiny", "latency_ms")}, "measures: "),
        ({"start": ("huge", "params")}, "models: "),
    ],
)
def test_a_bad_explorer_is_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        explorer(**changes)


def test_it_starts_at_the_largest_block() -> None:
    assert explorer().start == [0, 0, 1]
    assert explorer(start=("tiny", "macs")).start == [0, 1, 0]
    assert explorer(start=("<big>", "macs")).start == [1, 1, 1]  # not counted there: by what was


def test_the_static_table_has_every_block_and_the_sums() -> None:
    html = explorer(passport="Counted.").fallback_html()
    assert re.findall(r'<th scope="row">(.*?)</th>', html) == BLOCKS
    assert "<td>not measured</td>" in html and 'style="width:33%"' in html and 'style="width:100%"' in html
    assert "tiny: parameters 4.00\u00a0M" in html and "Counted." in html
    assert "<big>" not in html and "&lt;big&gt;" in html


def test_data_are_json_and_their_spread_has_the_units_of_their_values() -> None:
    model = BlockModel("tiny", BLOCKS, COUNTS, {"params": [(5e5, 2e6), None, None]})
    data = explorer(models=[model]).data()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["models"][0]["spread"] == {"params": [[0.5, 2], None, None]}


def test_reports_and_a_record_make_an_explorer(report) -> None:
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


def test_the_blocks_of_a_denoiser_are_timed(benchmark, report, pipe, monkeypatch) -> None:
    monkeypatch.setattr(pl, "load", lambda name, device: pipe)
    found = benchmark("block_latency").measure(["emoji-sd"], repeats=4).data["models"]["emoji-sd"]
    assert set(found["blocks"]) == set(report.by_block()) and found["n"] == 4
    assert all(0 < b["p10_ms"] <= b["median_ms"] <= b["p90_ms"] for b in found["blocks"].values())
    made = block_model("emoji-sd", report, found)
    assert made.sum("latency_ms") == pytest.approx(sum(b["median_ms"] for b in found["blocks"].values()))
    assert not pipe.unet.mid_block._forward_hooks and not pipe.unet.mid_block._forward_pre_hooks


def test_a_model_without_weights_is_timed_with_random_ones(benchmark, monkeypatch) -> None:
    small = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).to("meta")
    monkeypatch.setattr(pl, "denoiser_on_meta", lambda name: small)
    module = benchmark("block_latency")
    made = module.denoiser("sd-1.5", torch.device("cpu"))
    assert not made.training and all(p.device.type == "cpu" and p.isfinite().all() for p in made.parameters())
    assert set(module.time_blocks(made, 1, torch.device("cpu"))) == set(pl.count_macs(small).by_block())
