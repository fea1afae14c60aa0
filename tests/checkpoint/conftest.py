"""Checkpoints as sites and trainers leave them: a small one for most tests, and emoji-sd in both layouts."""

from __future__ import annotations

import os
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import pruning_lib as pl
from pruning_book.ldm_layout import ldm_ema, to_ldm
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


@pytest.fixture(scope="session")
def foreign():
    """`foreign_class`, for tests that pickle names of other libraries."""
    return foreign_class


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args, state=None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="session")
def calls():
    """`Calls`, for hostile files."""
    return Calls


@pytest.fixture
def attack(tmp_path) -> Calls:
    """A value that makes the file `marker` when it is unpickled."""
    return Calls(os.system, f"touch {tmp_path / 'marker'}")


def training_file(live: dict, ema: dict, path: Path) -> tuple[dict, Path]:
    """Save what a trainer of LDM writes: weights, EMA copy, optimiser, and callbacks under a class of Lightning."""
    state = {**live, **ema, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(500)}
    state["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    state["first_stage_model.loss.logvar"] = torch.zeros(())
    unet = [tensor for name, tensor in live.items() if name.startswith("model.diffusion_model.")]
    moments = {i: {"step": 500, "exp_avg": t * 0.1, "exp_avg_sq": t * t} for i, t in enumerate(unet)}
    with foreign_class("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") as kind:
        whole = {
            "epoch": 3,
            "global_step": np.float64(500),
            "pytorch-lightning_version": "1.4.2",
            "state_dict": state,
            "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}],
            "lr_schedulers": [{"last_epoch": 500, "_last_lr": [1e-4]}],
            "callbacks": {kind: {"best_model_score": torch.tensor(0.25), "dirpath": "logs"}},
        }
        torch.save(whole, path)
    return state, path


@pytest.fixture(scope="session")
def small_file(tmp_path_factory) -> tuple[dict, Path]:
    """A training file in LDM's names, of a few hundred numbers; live, EMA and all the rest differ."""
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
    return training_file(live, ema, tmp_path_factory.mktemp("small") / "small.ckpt")


@pytest.fixture(scope="session")
def small(small_file) -> dict:
    """The state dict of `small_ckpt`."""
    return small_file[0]


@pytest.fixture(scope="session")
def small_ckpt(small_file) -> Path:
    """The small training file, with leftovers of Lightning and numpy."""
    return small_file[1]


@pytest.fixture(scope="session")
def emoji():
    """The shipped pipeline."""
    return pl.load("emoji-sd")


@pytest.fixture(scope="session")
def emoji_folder() -> Path:
    """The folder of the shipped pipeline."""
    return models_folder() / "emoji-sd"


@pytest.fixture(scope="session")
def averaged(emoji) -> dict:
    """A UNet state dict that stands for an EMA copy: every weight a little different."""
    return {name: tensor * 0.999 for name, tensor in emoji.unet.state_dict().items()}


@pytest.fixture(scope="session")
def emoji_ckpt(emoji, averaged, tmp_path_factory) -> Path:
    """emoji-sd as a single training file in LDM's layout: fp32, EMA, optimiser, leftovers."""
    live = to_ldm(emoji.unet.state_dict(), emoji.vae.state_dict(), emoji.text_encoder.state_dict())
    live = {name: tensor.contiguous() for name, tensor in live.items()}
    return training_file(live, ldm_ema(averaged), tmp_path_factory.mktemp("emoji") / "emoji.ckpt")[1]


@pytest.fixture(scope="session")
def draw():
    """A function that draws one small set of pictures from a pipeline, always from the same noise."""

    def pictures(pipe) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several add up in another order from call to call, and no picture is equal
        options = dict(num_inference_steps=2, guidance_scale=3.0, output_type="pt")
        try:
            return pipe(["lion"], generator=torch.Generator().manual_seed(1), **options).images.float()
        finally:
            torch.set_num_threads(threads)

    return pictures


@pytest.fixture(scope="session")
def adds_up():
    """A check that the causes of a report of `slim` explain every byte of the difference."""

    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else sum(size(below) for below in path.iterdir())

    def check(report) -> None:
        assert sum(report.causes.values()) == report.bytes_before - report.bytes_after
        assert (report.bytes_before, report.bytes_after) == (size(report.source), size(report.target))

    return check
