"""Training on a GPU where there is one: pruners by both recipes, and fine-tuning with a teacher."""

from __future__ import annotations

import pytest
import torch
from on_gpu import PROMPTS, draw, same, state

import pruning_book as pb
import pruning_lib as pl

RECIPES = {
    "best": {"iterations": 2, "batch": 1, "keep_macs": (0.8, 0.6)},
    "published": {"iterations": 2, "lr": 20.0, "accumulation": 1},  # so high that gates shut within so few iterations
}


def train(pipe, grid, recipe: str, **more):
    more = {"steps": grid.steps, "grain": grid, "guidance_scale": 3.0, **RECIPES[recipe], **more}
    return pl.train_pruner(pipe, PROMPTS, recipe=recipe, **more)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_pruner_goes_on_where_it_stopped(recipe, shared, grid_for, tmp_path):
    """With deterministic kernels the resumed run equals the uninterrupted one bit for bit, on a GPU too."""
    pipe, grid, seen = shared(), grid_for(2), []
    before = state(pipe.unet)
    whole = train(pipe, grid, recipe)
    assert whole.settings["checkpointing"] and whole.tables.isfinite().all()
    assert whole.history[0]["rows"] != whole.history[1]["rows"], "gates moved"

    def stop(look) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pipe, grid, recipe, folder=tmp_path, callback=stop)
    resumed = train(pipe, grid, recipe, folder=tmp_path, callback=lambda look: seen.append(look.iteration))
    assert seen == [2] and torch.equal(resumed.tables, whole.tables), "only what was missing is trained"
    assert [line["loss"] for line in resumed.history] == [line["loss"] for line in whole.history]
    assert same(pipe.unet, before)
    with resumed.schedule(keep_macs=0.7).applied(pipe) as control:
        assert draw(pipe, steps=2).isfinite().all() and control.computed < grid.full().on.sum()


def test_a_pruner_in_float16(shared, grid_for):
    """Small gradients survive: the loss is lifted before the backward pass."""
    few = {"iterations": 1, "batch": 1, "keep_macs": 0.75}
    single, half = (train(shared(kind), grid_for(2), "best", **few) for kind in (torch.float32, torch.float16))
    # Latents differ by about 0.003 in float16, and the loss is their mean square: twice that, with room.
    assert half.history[0]["loss"] == pytest.approx(single.history[0]["loss"], rel=0.02)
    assert half.tables.isfinite().all() and (half.tables[0, 1] != half.tables[0, 1, 0]).any()


@pytest.mark.usefixtures("exact")
def test_fine_tuning_with_a_teacher(device, tmp_path):
    teacher = pl.load("emoji-sd")  # on the CPU: it comes to the device for the run, and goes back
    pipe = pl.load("emoji-sd", device=device, dtype=torch.float32)
    start = pl.remove_operators(pipe, ["mid_block.resnets.0", "down_blocks.1.attentions.1"])
    cut, taught = state(start.unet), state(teacher.unet)

    how = {"batch": 1, "lr": 1e-5, "ema": 0, "warmup": 1, "decay": 0, "checkpointing": True, "bf16": True}
    how |= {"teacher": teacher, "distill_output": 1, "distill_features": 1, "log_every": 1}

    known = pb.training_images()[:4], pb.captions()[:4]

    def tune(steps: int, name: str) -> list[dict]:
        start.unet.load_state_dict(cut)
        return pl.finetune(start, *known, steps=steps, folder=tmp_path / name, **how).lines

    for line in tune(2, "whole"):
        assert all(0 < line[name] < float("inf") for name in ("denoising_loss", "output_loss", "features_loss"))
    whole = state(start.unet)
    assert {w.device.type for w in start.unet.parameters()} == {device.type}
    assert not any(torch.equal(whole[name], cut[name]) for name in whole), "some weights did not learn"
    assert draw(start).isfinite().all()
    tune(1, "part")
    assert [line["step"] for line in tune(2, "part")] == [1, 2]
    assert same(start.unet, whole), "the resumed run is the uninterrupted one, bit for bit"
    assert next(teacher.unet.parameters()).device.type == "cpu" and same(teacher.unet, taught)
