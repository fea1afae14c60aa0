"""`inspect_checkpoint`: every byte on one line, parts by name, honest counts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import pruning_lib as pl
from pruning_lib.checkpoint.parts import part_of, part_of_file


def total(report) -> int:
    return sum(part.nbytes for part in report.parts.values()) + report.unused + report.container


def test_a_training_file_is_told_apart(small_ckpt):
    report = pl.inspect_checkpoint(small_ckpt)
    unet = 8 * 4 * 9 + 16 + 4 * 8 * 9
    params = {name: part.params for name, part in report.parts.items() if name in ("unet", "ema", "optimizer")}
    assert params == {"unet": unet, "ema": unet + 2, "optimizer": 2 * unet}  # decay and num_updates
    assert set(report.parts) == {"unet", "vae", "text_encoder", "ema", "optimizer", "training", "schedule"}
    assert report.parts["unet"].nbytes == 4 * unet and report.parts["schedule"].params == 1000
    assert report.parts["text_encoder"].dtypes == {"float32": 400, "int64": 24}
    assert report.nbytes == small_ckpt.stat().st_size == total(report) and report.container > 0
    assert report.others.keys() == {"epoch", "global_step", "lr_schedulers"}
    assert "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint" in report.names
    for word in ("EMA copy", "optimiser", "VAE", "text encoder", "global_step"):
        assert word in report.table()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_zeros_and_broken_numbers_are_counted(dtype, tmp_path):
    weight = [0.0, -0.0, 5e-4, -5e-4, 1e-3, 2.0, float("nan"), float("inf"), -float("inf"), 1.0]
    weight = torch.tensor(weight).to(dtype)
    save_file({"conv_in.weight": weight, "position_ids": torch.zeros(4).long()}, tmp_path / "a.safetensors")
    report = pl.inspect_checkpoint(tmp_path / "a.safetensors")
    part = report.parts["unet"]
    near = int((weight.double().abs() < 1e-3).sum())  # 1e-3 is not below 1e-3, except where the type rounds it down
    assert (part.zeros, part.near_zero, part.nans, part.infs, part.floats) == (2, near, 1, 2, 10)
    assert part.sparsity == 0.2 and part.largest == 2.0
    assert any("1 NaN and 2 infinite" in note for note in report.notes)
    quick = pl.inspect_checkpoint(tmp_path / "a.safetensors", values=False).parts["unet"]
    assert quick.sparsity is None and quick.params == 10


def test_shared_tensors_are_counted_once_and_damaged_position_ids_are_remarked(tmp_path):
    base, ids = torch.randn(100, 10), "text_model.embeddings.position_ids"
    state = {"unet.a": base, "unet.b": base, "unet.c": base[:5], "vae.d": torch.randn(1000)[:3]}
    torch.save({**state, ids: torch.arange(77).half()}, tmp_path / "a.pt")
    report = pl.inspect_checkpoint(tmp_path / "a.pt")
    assert report.parts["unet"].nbytes == 4000 and report.parts["vae"].nbytes == 12
    assert report.unused == 4000 - 12  # a slice was saved with the whole behind it
    assert total(report) == report.nbytes
    assert any("two names" in note for note in report.notes) and any(ids in note for note in report.notes)


# Keys that lead to a tensor, joined by spaces -> the part it belongs to.
NAMES = {
    "state_dict model.diffusion_model.out.2.bias": "unet",
    "model_ema.diffusion_modelout2bias": "ema",
    "ema shadow_params 0": "ema",
    "transformer_blocks.0.attn.to_q.weight": "unet",
    "first_stage_model.decoder.conv_in.weight": "vae",
    "encoder.layers.0.mlp.fc1.weight": "text_encoder",
    "sqrt_one_minus_alphas_cumprod": "schedule",
    "lora_unet_down_blocks_0.lora_down.weight": "adapter",
    "unet.down_blocks.0.attentions.0.lora.up.weight": "adapter",
    "vision_model.encoder.layers.0.mlp.fc1.weight": "image_encoder",
    "something.else": "other",
}
FILES = {"unet/model.non_ema.safetensors": "copy", "unet_ema/model.bin": "ema", "/random_states_0.pkl": "training"}


def test_names_tell_parts():
    assert {name: part_of(tuple(name.split()))[0] for name in NAMES} == NAMES
    assert {name: part_of_file(*name.split("/")) for name in FILES} == FILES
    assert part_of(("module", "state_dict", "a.b"))[1] == "a.b"  # without the wrappers
