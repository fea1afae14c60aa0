"""`slim` and `inspect` on folders: pipelines with every kind of second copy, and what training scripts leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import pruning_lib as pl
from pruning_lib.checkpoint.pickle import CheckpointError

UNET = "unet/diffusion_pytorch_model"


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def adds_up(report) -> None:
    assert sum(report.causes.values()) == report.bytes_before - report.bytes_after
    assert (report.bytes_before, report.bytes_after) == (bytes_of(report.source), bytes_of(report.target))


def equal(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items())


@pytest.fixture
def pipeline(emoji, averaged, tmp_path) -> Path:
    """A folder as hubs have it: fp32, the same once more as .bin and as fp16, and the live copy beside the EMA one."""
    folder = tmp_path / "pipe"
    emoji.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in emoji.unet.state_dict().items()}
    torch.save(state, folder / f"{UNET}.bin")
    save_file({name: t.half() for name, t in state.items()}, folder / f"{UNET}.fp16.safetensors", {"format": "pt"})
    save_file(dict(averaged), folder / f"{UNET}.non_ema.safetensors", {"format": "pt"})
    torch.save({"state_dict": state}, folder / "v1-full.ckpt")
    (folder / "README.md").write_text("A model.")
    (folder / "samples.png").write_bytes(b"\x89PNG" + b"x" * 1000)
    return folder


@pytest.fixture
def training(emoji, averaged, tmp_path) -> Path:
    """What a training script of diffusers leaves: live weights, EMA, optimiser, schedule, random numbers."""
    folder = tmp_path / "checkpoint-500"
    emoji.unet.save_pretrained(folder / "unet")
    ema = UNet2DConditionModel.from_config(emoji.unet.config)
    ema.load_state_dict(averaged)
    ema.register_to_config(decay=0.999, optimization_step=500)
    ema.save_pretrained(folder / "unet_ema")
    optimizer = torch.optim.AdamW(emoji.unet.parameters())
    for parameter in emoji.unet.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    emoji.unet.zero_grad(set_to_none=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    torch.save({"last_epoch": 500, "_last_lr": [1e-5]}, folder / "scheduler.bin")
    import numpy as np

    torch.save(
        {"step": 500, "torch_manual_seed": torch.get_rng_state(), "numpy_random_seed": np.random.get_state()},
        folder / "random_states_0.pkl",
    )
    return folder


def test_a_pipeline_keeps_what_a_loader_would_take(emoji, pipeline, draw, tmp_path):
    report = pl.slim(pipeline, tmp_path / "out")
    adds_up(report)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {f for f in files if f.endswith((".safetensors", ".bin", ".ckpt", ".png"))} == {
        f"{UNET}.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert {"README.md", "model_index.json", "unet/config.json", "tokenizer/tokenizer.json"} <= files
    assert report.causes["second copy of a part"] == sum(
        (pipeline / name).stat().st_size for name in (f"{UNET}.bin", f"{UNET}.fp16.safetensors", "v1-full.ckpt")
    )
    assert report.causes["files that are not part of the model"] == 1004
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    assert torch.equal(draw(loaded), draw(emoji))


def test_a_folder_can_be_cast(emoji, pipeline, draw, tmp_path):
    report = pl.slim(pipeline, tmp_path / "out", dtype="fp16")
    adds_up(report)
    assert all(t.dtype == torch.float16 for t in load_file(tmp_path / "out" / f"{UNET}.safetensors").values())
    loaded = pl.load(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(draw(loaded), draw(emoji))  # float16 is what the shipped weights were stored in


def test_both_copies_of_a_hub_folder_can_be_had(emoji, averaged, pipeline, tmp_path):
    live = pl.slim(pipeline, tmp_path / "live", weights="live")
    assert equal(load_file(tmp_path / "live" / f"{UNET}.safetensors"), averaged)
    ema = pl.slim(pipeline, tmp_path / "ema", weights="ema")
    assert equal(load_file(tmp_path / "ema" / f"{UNET}.safetensors"), emoji.unet.state_dict())
    adds_up(live), adds_up(ema)
    assert live.causes["EMA copy"] == (pipeline / f"{UNET}.safetensors").stat().st_size
    assert ema.causes["live copy"] == (pipeline / f"{UNET}.non_ema.safetensors").stat().st_size


def test_a_training_folder_is_recognised(emoji, training):
    report = pl.inspect_checkpoint(training)
    assert set(report.parts) == {"unet", "ema", "optimizer", "training"}
    count = sum(p.numel() for p in emoji.unet.parameters())
    assert report.parts["unet"].params == report.parts["ema"].params == count
    assert report.parts["optimizer"].params == 2 * count + len(list(emoji.unet.parameters()))


def test_a_training_folder_becomes_a_model(emoji, averaged, training, tmp_path):
    report = pl.slim(training, tmp_path / "live")
    adds_up(report)
    assert sorted(p.name for p in (tmp_path / "live").rglob("*")) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "unet",
    ]
    assert report.times_smaller > 3.9  # live, EMA and two moments, of which one stays
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "live" / "unet")
    assert equal(loaded.state_dict(), emoji.unet.state_dict())
    adds_up(pl.slim(training, tmp_path / "ema", weights="ema"))
    assert equal(UNet2DConditionModel.from_pretrained(tmp_path / "ema" / "unet").state_dict(), averaged)
    assert "optimization_step" not in json.loads((tmp_path / "ema/unet/config.json").read_text())


def test_parts_are_struck_from_the_index_and_the_vae_can_be_exchanged(emoji, pipeline, tmp_path):
    report = pl.slim(pipeline, tmp_path / "out", remove=("text_encoder",))
    adds_up(report)
    assert json.loads((tmp_path / "out/model_index.json").read_text())["text_encoder"] == [None, None]
    assert not (tmp_path / "out/text_encoder").exists()
    other = type(emoji.vae).from_config({**emoji.vae.config, "scaling_factor": 0.5})
    other.save_pretrained(tmp_path / "vae")
    report = pl.slim(pipeline, tmp_path / "swapped", vae=tmp_path / "vae")
    adds_up(report)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "swapped")
    assert loaded.vae.config.scaling_factor == 0.5 and equal(loaded.vae.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match="no folder of a VAE"):
        pl.slim(pipeline, tmp_path / "x", vae=tmp_path / "out/tokenizer")


def test_shards_become_one_file(emoji, tmp_path):
    emoji.unet.save_pretrained(tmp_path / "model/unet", max_shard_size="5MB")
    assert len(list((tmp_path / "model/unet").glob("*.safetensors"))) > 2
    report = pl.slim(tmp_path / "model", tmp_path / "out")
    adds_up(report)
    assert sorted(p.name for p in (tmp_path / "out/unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert equal(UNet2DConditionModel.from_pretrained(tmp_path / "out/unet").state_dict(), emoji.unet.state_dict())


def test_a_model_alone_is_a_folder_too(emoji, tmp_path):
    emoji.vae.save_pretrained(tmp_path / "vae")
    adds_up(pl.slim(tmp_path / "vae", tmp_path / "out", dtype="bf16"))
    assert {t.dtype for t in load_file(tmp_path / "out/diffusion_pytorch_model.safetensors").values()} == {
        torch.bfloat16
    }


def test_nothing_is_left_after_a_failure(emoji, pipeline, tmp_path, monkeypatch):
    from pruning_lib.checkpoint import slim as slim_folder

    monkeypatch.setattr(slim_folder.shutil, "copyfile", lambda *a: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        pl.slim(pipeline, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe"]


def test_wrong_folders_are_told(pipeline, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no weights"):
        pl.inspect_checkpoint(tmp_path / "empty")
    for target in (pipeline, pipeline / "inside", tmp_path):
        with pytest.raises((ValueError, FileExistsError), match="inside each other|never written over|there already"):
            pl.slim(pipeline, target)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    with pytest.raises(FileExistsError, match="there already"):
        pl.slim(pipeline, tmp_path / "full", overwrite=True)
    shutil.rmtree(pipeline / "unet")
    with pytest.raises(CheckpointError, match="no EMA copy"):
        pl.slim(pipeline, tmp_path / "ema", weights="ema")


def test_a_hostile_file_in_a_folder_is_refused(pipeline, tmp_path):
    import os

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    (pipeline / f"{UNET}.safetensors").unlink()
    torch.save({"x": Attack()}, pipeline / f"{UNET}.bin")
    for attempt in (pl.inspect_checkpoint, lambda path: pl.slim(path, tmp_path / "out")):
        with pytest.raises(ValueError, match="would run code"):
            attempt(pipeline)
    assert not (tmp_path / "marker").exists() and not (tmp_path / "out").exists()
