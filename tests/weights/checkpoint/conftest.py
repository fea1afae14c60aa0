"""Checkpoints as sites and trainers leave them: a small one for most tests, and emoji-sd in both layouts."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import pruning_lib as pl
from pruning_lib.checkpoint.ldm_layout import ldm_ema, to_ldm
from pruning_lib.loading import models_folder


@contextmanager
def foreign_class(full: str):
    """Yield a class that pickles under the name of one of another library, which is not installed here."""
    module, _, name = full.rpartition(".")
    made = type(name, (), {"__module__": module, "__qualname__": name})
    parts = module.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts)) if ".".join(parts[: i + 1]) not in sys.modules]
    for one in names:
        sys.modules[one] = types.ModuleType(one)
    setattr(sys.modules[module], name, made)
    try:
        yield made
    finally:
        delattr(sys.modules[module], name)
        for one in names:
            del sys.modules[one]


def training_state(live: dict, ema: dict, full: bool = True) -> dict:
    """Return what a trainer of LDM writes: weights, EMA copy, optimiser, callbacks and counters."""
    state = {**live, **ema, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(500)}
    state["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    state["first_stage_model.loss.logvar"] = torch.zeros(())
    unet = [tensor for name, tensor in live.items() if name.startswith("model.diffusion_model.")]
    moments = {i: {"step": 500, "exp_avg": t * 0.1, "exp_avg_sq": t * t} for i, t in enumerate(unet)}
    out = {"epoch": 3, "global_step": np.float64(500), "pytorch-lightning_version": "1.4.2", "state_dict": state}
    if full:
        out["optimizer_states"] = [{"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}]
        out["lr_schedulers"] = [{"last_epoch": 500, "_last_lr": [1e-4]}]
        out["callbacks"] = {"best_model_score": torch.tensor(0.25), "dirpath": "logs"}
    return out


def save_with_lightning(state: dict, path: Path, **options) -> Path:
    """Save with a class of Lightning as a key of the callbacks, as its versions up to 1.5 did."""
    with foreign_class("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") as kind:
        torch.save({**state, "callbacks": {kind: state.get("callbacks", {})}}, path, **options)
    return path


@pytest.fixture(scope="session")
def small() -> dict:
    """A training state in LDM's names, of a few hundred numbers; live, EMA and all the rest differ."""
    torch.manual_seed(0)
    live = OrderedDict()
    for name, shape in {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "model.diffusion_model.time_embed.0.bias": (16,),
        "model.diffusion_model.out.2.weight": (4, 8, 3, 3),
        "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
        "first_stage_model.decoder.mid.attn_1.q.weight": (4, 4, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (50, 8),
    }.items():
        live[name] = torch.randn(shape)
    live["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(24)[None]
    names = [name for name in live if name.startswith("model.diffusion_model.")]
    ema = {"model_ema." + "".join(name.split(".")[1:]): live[name] * 0.9 + 0.01 for name in names}
    return training_state(live, ema)


@pytest.fixture(scope="session")
def small_ckpt(small, tmp_path_factory) -> Path:
    """`small` as a .ckpt with leftovers of Lightning and numpy."""
    return save_with_lightning(small, tmp_path_factory.mktemp("small") / "small.ckpt")


@pytest.fixture(scope="session")
def emoji():
    """The shipped pipeline."""
    return pl.load("emoji-sd")


@pytest.fixture(scope="session")
def averaged(emoji) -> dict:
    """A UNet state dict that stands for an EMA copy: every weight a little different."""
    return {name: tensor * 0.999 for name, tensor in emoji.unet.state_dict().items()}


@pytest.fixture(scope="session")
def emoji_ckpt(emoji, averaged, tmp_path_factory) -> Path:
    """emoji-sd as a single training file in LDM's layout: fp32, EMA, optimiser, leftovers."""
    live = to_ldm(emoji.unet.state_dict(), emoji.vae.state_dict(), emoji.text_encoder.state_dict())
    state = training_state({name: tensor.contiguous() for name, tensor in live.items()}, ldm_ema(averaged))
    return save_with_lightning(state, tmp_path_factory.mktemp("emoji") / "emoji.ckpt")


@pytest.fixture(scope="session")
def emoji_folder() -> Path:
    """The folder of the shipped pipeline, for configurations."""
    return models_folder() / "emoji-sd"


@pytest.fixture(scope="session")
def draw():
    """A function that draws one small set of pictures from a pipeline, always from the same noise."""

    def pictures(pipe) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several add up in another order from call to call, and no picture is equal
        noise = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        try:
            return pipe(
                ["lion", "pizza"], num_inference_steps=3, guidance_scale=3.0, generator=noise, output_type="pt"
            ).images.float()
        finally:
            torch.set_num_threads(threads)

    return pictures


@pytest.fixture
def foreign():
    """`foreign_class`, for tests that pickle names of other libraries."""
    return foreign_class
