"""The whole recipe on a toy data set: train every part for a few steps, put them together, load, generate."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from zoo import assemble as assemble_module
from zoo.assemble import contact_sheet
from zoo.clip import caption, disturb
from zoo.train import PARTS, assemble_run, train_part
from zoo.unet import build_scheduler, build_unet
from zoo.vae import build_vae, to_model_range

STEPS = {"vae": {"steps": 3, "batch": 4}, "clip": {"steps": 3, "batch": 6}, "unet": {"steps": 2, "batch": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    for part in PARTS:
        train_part(part, data, folder, **STEPS.get(part, {}))
    return folder


@pytest.fixture(scope="module")
def model(run, data, tmp_path_factory):
    return assemble_run(data, run, tmp_path_factory.mktemp("models") / "toy")


def test_no_configuration_tells_where_a_part_was_trained(model, run):
    for config in model.glob("*/config.json"):
        assert "_name_or_path" not in config.read_text() and str(run) not in config.read_text(), config


def test_the_folder_is_an_ordinary_pipeline(model):
    pipe = StableDiffusionPipeline.from_pretrained(model)
    types = {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype}
    assert types == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    image = pipe("red square", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (64, 64)
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_the_weights_are_half_precision(model):
    from safetensors import safe_open

    files = list(model.rglob("*.safetensors"))
    assert {f.parent.name for f in files} == {"unet", "vae", "text_encoder", "clip"}
    for file in files:
        with safe_open(file, "pt") as tensors:
            floats = {tensors.get_tensor(k).dtype for k in tensors.keys() if tensors.get_tensor(k).is_floating_point()}
        assert floats == {torch.float16}, file


def test_half_precision_pipeline_from_the_same_folder(model):
    pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=torch.float16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float16}


def test_the_tower_of_the_judge_is_the_text_encoder(model):
    from transformers import CLIPModel

    pipe = StableDiffusionPipeline.from_pretrained(model)
    clip = CLIPModel.from_pretrained(model / "clip", dtype=torch.float32).eval()
    ids = pipe.tokenizer(["red square"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(pipe.text_encoder(ids)[0], clip.text_model(ids).last_hidden_state, atol=1e-6)


def test_what_ships_beside_the_weights(model, data):
    assert json.loads((model / "concepts.json").read_text())["labels"] == data.concepts().labels
    assert (model / "tokenizer/vocab.json").is_file() and (model / "tokenizer/merges.txt").is_file()
    training = json.loads((model / "training.json").read_text())
    assert training["unet"]["steps_done"] == 2 and training["concepts"] == 6


def test_a_denoiser_still_in_training_uses_its_averaged_weights(run, model):
    saved = torch.load(run / "unet/checkpoint.pt", weights_only=True)
    pipe = StableDiffusionPipeline.from_pretrained(model)
    first = next(pipe.unet.parameters())
    assert torch.allclose(first, saved["ema"]["shadow_params"][0].half().float(), atol=0)


def test_too_large_a_model_leaves_the_old_one_alone(run, data, model, monkeypatch):
    before = sorted(p.name for p in model.parent.iterdir())
    monkeypatch.setattr(assemble_module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="MB"):
        assemble_run(data, run, model)
    assert sorted(p.name for p in model.parent.iterdir()) == before
    assert (model / "model_index.json").is_file()


def test_what_is_no_model_is_never_replaced(run, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match="is no pipeline; it would be replaced"):
            assemble_run(data, run, place)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_assembling_again_replaces_the_model_and_leaves_nothing_beside_it(run, data, model):
    (model / "README.md").write_text("kept")
    (model / "unet/stray.txt").write_text("from an older layout")
    before = sorted(p.name for p in model.parent.iterdir())
    assemble_run(data, run, model)
    assert sorted(p.name for p in model.parent.iterdir()) == before
    assert (model / "README.md").read_text() == "kept" and not (model / "unet/stray.txt").exists()


def test_a_batch_of_nothing_is_refused(run, data):
    with pytest.raises(ValueError, match="batch=0"):
        train_part("vae", data, run, batch=0)


def test_parts_must_come_in_order(tmp_path, data):
    with pytest.raises(FileNotFoundError, match="zoo train tokenizer"):
        train_part("clip", data, tmp_path)
    with pytest.raises(ValueError, match="tokenizer, clip, vae, unet"):
        train_part("denoiser", data, tmp_path)


def test_scale_gives_the_denoiser_unit_variance(model, data):
    pipe = StableDiffusionPipeline.from_pretrained(model)
    with torch.no_grad():
        z = pipe.vae.encode(to_model_range(data.concepts().images)).latent_dist.mean * pipe.vae.config.scaling_factor
    assert z.std().item() == pytest.approx(1, abs=0.02)


def test_topology_is_that_of_sd_1_5():
    unet = build_unet()
    assert [type(b).__name__ for b in unet.down_blocks] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert [type(b).__name__ for b in unet.up_blocks] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert [len(b.resnets) for b in unet.down_blocks] == [2] * 4 and [len(b.resnets) for b in unet.up_blocks] == [3] * 4
    assert build_vae().config.latent_channels == unet.config.in_channels == 4


def test_noise_schedule_of_stable_diffusion():
    alphas = build_scheduler().alphas_cumprod
    assert alphas[0].item() == pytest.approx(1 - 0.00085) and alphas[-1].item() == pytest.approx(0.0047, abs=1e-4)


def test_captions_start_with_the_name():
    generator = torch.Generator().manual_seed(0)
    many = {caption("lion", ["king", "mane", "wild"], generator) for _ in range(60)}
    assert "lion" in many and len(many) > 5 and all(c.split(", ")[0] == "lion" for c in many)
    assert caption("sun", [], generator) == "sun"


def test_disturbed_images_keep_range_and_white_border():
    white = torch.ones(8, 3, 64, 64)
    out = disturb(white, torch.Generator().manual_seed(0))
    assert out.shape == white.shape and out.min() >= -1 and out.max() <= 1
    assert out.mean() > 0.9


def test_contact_sheet_places_images():
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    images[2] = 200
    sheet = contact_sheet(images, columns=2, gap=1)
    assert sheet.size == (9, 9)
    assert sheet.getpixel((0, 5)) == (200, 200, 200) and sheet.getpixel((4, 0)) == (255, 255, 255)
