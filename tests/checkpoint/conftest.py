"""A small checkpoint as trainers leave it, hostile values, and emoji-sd."""

from __future__ import annotations

import os
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import pruning_lib as pl
from pruning_lib.checkpoint.parts import ema_name


@pytest.fixture(scope="session")
def foreign():
    """A context that yields a class which pickles under a name of another library, one that is not installed here."""

    @contextmanager
    def foreign_class(full: str):
        module, _, name = full.rpartition(".")
        made = type(name, (), {"__module__": module, "__qualname__": name})
        parts = module.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        new = {one: types.ModuleType(one) for one in names if one not in sys.modules}
        sys.modules.update(new)
        setattr(sys.modules[module], name, made)
        yield made
        delattr(sys.modules[module], name)
        for one in new:
            del sys.modules[one]

    return foreign_class


@pytest.fixture(scope="session")
def calls():
    """A class that pickles as a call of `function` with `args`."""

    class Calls:
        def __init__(self, function, *args, state=None) -> None:
            self.call = (function, args) if state is None else (function, args, state)

        def __reduce__(self):
            return self.call

    return Calls


@pytest.fixture
def attack(calls, tmp_path):
    """A value that makes the file `marker` when it is unpickled."""
    return calls(os.system, f"touch {tmp_path / 'marker'}")


@pytest.fixture(scope="session")
def small() -> dict:
    """A state dict in LDM's names, of a few hundred numbers; live, EMA and all the rest differ."""
    torch.manual_seed(0)
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "model.diffusion_model.time_embed.0.bias": (16,),
        "model.diffusion_model.out.2.weight": (4, 8, 3, 3),
        "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
        "first_stage_model.decoder.mid.attn_1.q.weight": (4, 4, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (50, 8),
    }
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(24)[None]
    state |= {ema_name(name): state[name] * 0.9 + 0.01 for name in list(state)[:3]}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(500)}
    state["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return state | {"first_stage_model.loss.logvar": torch.zeros(())}


@pytest.fixture(scope="session")
def small_ckpt(small, foreign, tmp_path_factory) -> Path:
    """`small` as a trainer of LDM writes it: with the optimiser, and callbacks under a class of Lightning."""
    path = tmp_path_factory.mktemp("small") / "small.ckpt"
    unet = [tensor for name, tensor in small.items() if name.startswith("model.diffusion_model.")]
    moments = {i: {"step": 500, "exp_avg": t * 0.1, "exp_avg_sq": t * t} for i, t in enumerate(unet)}
    with foreign("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") as kind:
        whole = {
            "epoch": 3,
            "global_step": np.float64(500),
            "state_dict": small,
            "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}],
            "lr_schedulers": [{"last_epoch": 500, "_last_lr": [1e-4]}],
            "callbacks": {kind: {"best_model_score": torch.tensor(0.25), "dirpath": "logs"}},
        }
        torch.save(whole, path)
    return path


@pytest.fixture(scope="session")
def emoji():
    """The shipped pipeline."""
    return pl.load("emoji-sd")


@pytest.fixture(scope="session")
def averaged(emoji) -> dict:
    """A UNet state dict that stands for an EMA copy: every weight a little different."""
    return {name: tensor * 0.999 for name, tensor in emoji.unet.state_dict().items()}


@pytest.fixture(scope="session")
def equal():
    """A check that two state dicts have the same names, and tensors of the same type that are equal bit for bit."""

    def check(found: dict, expected: dict) -> bool:
        same = found.keys() == expected.keys()
        return same and all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items())

    return check


@pytest.fixture(scope="session")
def slimmed():
    """`slim`, with a check that the causes it reports explain every byte of the difference."""

    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else sum(size(below) for below in path.iterdir())

    def run(source: Path, target: Path, **options):
        report = pl.slim(source, target, **options)
        assert sum(report.causes.values()) == report.bytes_before - report.bytes_after == size(source) - size(target)
        return report

    return run
