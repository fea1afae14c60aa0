"""The explorer of chapter 1 and the benchmarks that record the explorers' data, with tiny stand-ins for the models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional as F

import pruning_lib as pl
from pruning_book.widgets.blocks import BlockExplorer
from pruning_book.widgets.guidance import first_explorer, redraw, total_macs


class Judge:
    """Vectors that depend on the picture and on the text."""

    def embed_images(self, images):
        return F.normalize(images.float().mean((2, 3)), dim=-1)

    def embed_texts(self, texts):
        return F.normalize(torch.tensor([[1.0, len(text), 2.0] for text in texts]), dim=-1)


@pytest.fixture(scope="module")
def recorded(benchmark, pipe, tmp_path_factory) -> Path:
    """The record that the benchmark writes, of few stops."""
    path = tmp_path_factory.mktemp("results") / "first_explorer.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "load", lambda name, device: pipe)
        patch.setattr(pl, "load_clip", lambda name: Judge())
        module = benchmark("first_explorer")
        patch.setattr(module, "PROMPTS", ("lion", "pizza pie"))
        patch.setattr(module, "STEPS", (1, 8, 50))
        patch.setattr(module, "GUIDANCE", (1.0, 3.0))
        assert module.record(path, repeats=1, device="cpu") == path
    return path


def test_guidance_doubles_the_work_and_one_is_no_guidance():
    assert (total_macs(7, 10, 1.0), total_macs(7, 10, 1.5)) == (70, 140)


def test_the_recorded_pictures_are_the_pipelines_own(recorded, pipe):
    explorer = first_explorer(recorded)
    for stop in ({"prompt": "pizza pie", "steps": 8, "guidance": 3.0}, {"prompt": "lion", "steps": 1, "guidance": 1.0}):
        picture = redraw(pipe, **stop)
        assert explorer.sheet.tile(explorer.index(**stop)).tobytes() == picture.tobytes()


def test_the_recorded_numbers_are_those_of_the_stop(recorded, pipe):
    explorer, macs = first_explorer(recorded), pl.count_macs(pipe.unet).macs
    for prompt in ("lion", "pizza pie"):
        many = explorer.reading("latency_ms", prompt=prompt, steps=50, guidance=3.0)
        few = explorer.reading("latency_ms", prompt=prompt, steps=1, guidance=3.0)
        assert many.n == 1 and many.low <= many.value <= many.high and few.value < many.value
        counted = explorer.reading("unet_gmacs", prompt=prompt, steps=8, guidance=3.0).value
        assert counted == pytest.approx(16 * macs / 1e9)
    assert explorer.baseline == [None, 2, None] and explorer.passport.startswith("Measured on ")


def test_live_it_draws_times_and_scores_the_stop(recorded, pipe):
    explorer = first_explorer(recorded, load=lambda name: pipe, load_clip=lambda name: Judge())
    answer = explorer.answer({"prompt": "lion", "steps": 2, "guidance": 3.0})
    assert answer["metrics"]["latency_ms"] > 0 and 0 <= answer["metrics"]["clip_score"] <= 100
    assert answer["metrics"]["unet_gmacs"] == pytest.approx(4 * pl.count_macs(pipe.unet).macs / 1e9)
    assert answer["image"].startswith("data:image/webp")
    assert first_explorer(recorded).on_change is None


def test_the_blocks_of_a_denoiser_are_timed(benchmark, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pl, "load", lambda name, device: pipe)
    path = benchmark("block_latency").record(tmp_path / "block_latency.json", ["emoji-sd"], 4, "cpu")
    record, report = pl.load_record(path), pl.count_macs(pipe.unet)
    found = record["data"]["models"]["emoji-sd"]
    assert set(found["blocks"]) == set(report.by_block()) and found["n"] == 4
    assert all(0 < b["p10_ms"] <= b["median_ms"] <= b["p90_ms"] for b in found["blocks"].values())
    made = BlockExplorer.from_reports("blocks", {"emoji-sd": report}, title="t", latency=record)
    assert made.models[0].sum("latency_ms") == pytest.approx(sum(b["median_ms"] for b in found["blocks"].values()))
    assert not pipe.unet.mid_block._forward_hooks and not pipe.unet.mid_block._forward_pre_hooks


def test_a_model_without_weights_is_timed_with_random_ones(benchmark):
    module = benchmark("block_latency")
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "denoiser_on_meta", lambda name: small)
        made = module.denoiser("sd-1.5", torch.device("cpu"))
    assert not made.training and all(p.device.type == "cpu" and p.isfinite().all() for p in made.parameters())
    assert set(module.time_blocks(made, 1, torch.device("cpu"))) == set(pl.count_macs(small).by_block())
