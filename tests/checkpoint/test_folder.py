"""`slim` and `inspect` on folders: pipelines with every kind of second copy, and what training scripts leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import pruning_lib as pl
from pruning_lib.checkpoint import slim as slimming
from pruning_lib.checkpoint.pickle import CheckpointError

UNET = "unet/diffusion_pytorch_model"


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pipeline(emoji, averaged, tmp_path_factory) -> Path:
    """A folder as hubs have it: fp32, the same once more as .bin and as fp16, and the live copy beside the EMA one."""
    folder = tmp_path_factory.mktemp("hub") / "pipe"
    emoji.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in emoji.unet.state_dict().items()}
    torch.save(state, folder / f"{UNET}.bin")
    save_file({name: t.half() for name, t in state.items()}, folder / f"{UNET}.fp16.safetensors", {"format": "pt"})
    save_file(dict(averaged), folder / f"{UNET}.non_ema.safetensors", {"format": "pt"})
    torch.save({"state_dict": state}, folder / "v1-full.ckpt")
    (folder / "README.md").write_text("A model.")
    (folder / "samples.png").write_bytes(b"\x89PNG" + b"x" * 1000)
    return folder


def test_a_pipeline_keeps_what_a_loader_would_take(emoji, pipeline, equal, slimmed, tmp_path):
    report = slimmed(pipeline, tmp_path / "out")
    copies = {f"{UNET}.bin", f"{UNET}.fp16.safetensors", "v1-full.ckpt"}
    assert files_of(tmp_path / "out") == files_of(pipeline) - copies - {f"{UNET}.non_ema.safetensors", "samples.png"}
    assert {"README.md", f"{UNET}.safetensors", "tokenizer/tokenizer.json"} <= files_of(tmp_path / "out")
    assert report.causes["second copy of a part"] == sum((pipeline / name).stat().st_size for name in copies)
    assert report.causes["files that are not part of the model"] == 1004
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        assert equal(getattr(loaded, part).state_dict(), getattr(emoji, part).state_dict())


def test_a_folder_can_be_cast_lose_a_part_and_give_the_other_copy(emoji, averaged, pipeline, equal, slimmed, tmp_path):
    live = slimmed(pipeline, tmp_path / "live", weights="live", dtype="fp16", remove=("text_encoder",))
    half = {name: tensor.half() for name, tensor in averaged.items()}
    assert equal(load_file(tmp_path / "live" / f"{UNET}.safetensors"), half)
    assert json.loads((tmp_path / "live/model_index.json").read_text())["text_encoder"] == [None, None]
    assert not (tmp_path / "live/text_encoder").exists()
    assert live.causes["EMA copy"] == (pipeline / f"{UNET}.safetensors").stat().st_size
    ema = slimmed(pipeline, tmp_path / "ema", weights="ema")
    assert equal(load_file(tmp_path / "ema" / f"{UNET}.safetensors"), emoji.unet.state_dict())
    assert ema.causes["live copy"] == (pipeline / f"{UNET}.non_ema.safetensors").stat().st_size


def test_a_training_folder_becomes_a_model(emoji, averaged, equal, slimmed, tmp_path):
    folder = tmp_path / "checkpoint-500"  # live weights in shards, EMA, optimiser, schedule, random numbers
    emoji.unet.save_pretrained(folder / "unet", max_shard_size="5MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    ema = UNet2DConditionModel.from_config(emoji.unet.config)
    ema.load_state_dict(averaged)
    ema.register_to_config(decay=0.999, optimization_step=500)
    ema.save_pretrained(folder / "unet_ema")
    parameters = list(emoji.unet.parameters())
    moments = {i: {"step": torch.tensor(1.0), "exp_avg": p, "exp_avg_sq": p**2} for i, p in enumerate(parameters)}
    torch.save({"state": moments, "param_groups": [{"lr": 0.0}]}, folder / "optimizer.bin")
    torch.save({"last_epoch": 500, "_last_lr": [1e-5]}, folder / "scheduler.bin")
    random = {"torch_manual_seed": torch.get_rng_state(), "numpy_random_seed": np.random.get_state()}
    torch.save({"step": 500, **random}, folder / "random_states_0.pkl")

    report = pl.inspect_checkpoint(folder)
    count = sum(p.numel() for p in parameters)
    assert set(report.parts) == {"unet", "ema", "optimizer", "training"}
    assert report.parts["unet"].params == report.parts["ema"].params == count
    assert report.parts["optimizer"].params == 2 * count + len(parameters)

    report = slimmed(folder, tmp_path / "live")
    assert files_of(tmp_path / "live") == {"unet/config.json", f"{UNET}.safetensors"}
    assert report.times_smaller > 3.9  # live, EMA and two moments, of which one stays
    assert equal(UNet2DConditionModel.from_pretrained(tmp_path / "live/unet").state_dict(), emoji.unet.state_dict())
    slimmed(folder, tmp_path / "ema", weights="ema")
    assert equal(UNet2DConditionModel.from_pretrained(tmp_path / "ema/unet").state_dict(), averaged)
    assert "optimization_step" not in json.loads((tmp_path / "ema/unet/config.json").read_text())
    slimmed(folder / "unet", tmp_path / "alone")  # a model alone is a folder too
    assert files_of(tmp_path / "alone") == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_mistakes_and_failures_leave_nothing(pipeline, attack, tmp_path, monkeypatch):
    copy = shutil.copytree(pipeline, tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no weights"):
        pl.inspect_checkpoint(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    for target in (copy, copy / "inside", tmp_path, tmp_path / "full"):
        with pytest.raises((ValueError, FileExistsError), match="inside each other|never written over|there already"):
            pl.slim(copy, target, overwrite=True)
    with monkeypatch.context() as broken:
        broken.setattr(slimming.shutil, "copyfile", lambda *a: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(OSError, match="no room"):
            pl.slim(copy, tmp_path / "out")
    (copy / f"{UNET}.safetensors").unlink()
    torch.save({"x": attack}, copy / f"{UNET}.bin")
    for attempt in (pl.inspect_checkpoint, lambda path: pl.slim(path, tmp_path / "out")):
        with pytest.raises(ValueError, match="would run code"):
            attempt(copy)
    shutil.rmtree(copy / "unet")
    with pytest.raises(CheckpointError, match="no EMA copy"):
        pl.slim(copy, tmp_path / "ema", weights="ema")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "pipe"]
