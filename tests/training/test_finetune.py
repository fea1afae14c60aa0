"""Fine-tuning a pipeline: it learns, zeros stay zeros, it goes on where it stopped, and bad input is refused early."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from small_pipe import copy_of, small_unet, with_unet

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.finetuning.finetune import finetune

IMAGES, CAPTIONS = pb.training_images()[:4], pb.captions()[:4]


@pytest.fixture(scope="module")
def start():
    return with_unet(pl.load("emoji-sd"), small_unet())


@pytest.fixture
def pipe(start):
    """The pipeline with a very small denoiser, so that a step costs nothing."""
    return copy_of(start)


def weights(pipe) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


def tuned(start, **options) -> dict[str, torch.Tensor]:
    """Return the weights of a copy after a short run."""
    pipe = copy_of(start)
    finetune(pipe, IMAGES, CAPTIONS, **{"steps": 3, "batch": 2, **options})
    return weights(pipe)


def test_it_learns_and_changes_the_denoiser_alone(pipe):
    parts = [{n: v.clone() for n, v in part.state_dict().items()} for part in (pipe.vae, pipe.text_encoder)]

    def loss() -> float:
        with torch.no_grad():
            return task.loss(pipe.unet, torch.Generator().manual_seed(0), 16).item()

    task = DenoisingTask.of(pipe, IMAGES, CAPTIONS)
    before = loss()
    log = finetune(pipe, IMAGES, CAPTIONS, steps=12, lr=1e-2, batch=4, log_every=4, warmup=1, ema=0)
    assert log.curve()[0] == [4, 8, 12] and loss() < 0.8 * before
    assert not pipe.unet.training and all(value.isfinite().all() for value in weights(pipe).values())
    assert same(pipe.vae.state_dict(), parts[0]) and same(pipe.text_encoder.state_dict(), parts[1])


def test_the_seed_decides_and_looking_changes_nothing(start):
    plain, other = tuned(start), tuned(start, seed=1)
    looked = tuned(start, validate=lambda step: {"x": torch.rand(1).item()}, validate_every=1)
    assert same(plain, looked) and not same(plain, other)


@pytest.mark.parametrize("ema", [0, 0.9])
def test_zeros_hold_through_training(pipe, ema):
    pruned = pl.prune_magnitude(pipe.unet, 0.7)
    before = weights(pipe)
    finetune(pipe, IMAGES, CAPTIONS, steps=3, batch=2, ema=ema, after_step=pruned.reapply)
    after = weights(pipe)
    assert all((after[name][~mask] == 0).all() for name, mask in pruned.masks.items())
    still = [torch.equal(after[name][mask], before[name][mask]) for name, mask in pruned.masks.items() if mask.any()]
    assert not any(still), "a kept weight did not learn"
    finetune(pipe, IMAGES, CAPTIONS, steps=3, batch=2, ema=ema)  # without it they grow back
    grown = torch.cat([weights(pipe)[name][~mask] for name, mask in pruned.masks.items()])
    assert (grown != 0).float().mean() > 0.9


def test_validation_sees_averaged_weights_at_the_asked_steps(pipe):
    first, seen = weights(pipe), []

    def validate(step):
        assert not pipe.unet.training
        seen.append(weights(pipe))
        return {"score": float(step)}

    more = {"validate": validate, "validate_every": 2, "log_every": 100}
    log = finetune(pipe, IMAGES, CAPTIONS, steps=4, batch=2, ema=0.99, **more)
    assert log.curve("score") == ([0, 2, 4], [0.0, 2.0, 4.0])
    assert same(seen[0], first) and same(seen[-1], weights(pipe)) and not same(seen[1], seen[2])
    assert "loss" not in log.lines[0]
    with pytest.raises(KeyError, match="no 'clip'. It has: loss, score, seconds"):
        log.curve("clip")


def test_an_interrupted_run_goes_on(start, tmp_path):
    count = []

    def stop():
        count.append(1)
        if len(count) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    wanted, part = tuned(start, folder=tmp_path / "whole"), tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        tuned(start, folder=part, after_step=stop)
    assert same(wanted, tuned(start, folder=part))
    with pytest.raises(ValueError, match="other captions, batch or dropout"):
        finetune(start, IMAGES, CAPTIONS[::-1], steps=3, batch=2, folder=part)


def test_half_precision_is_refused_unless_wanted(pipe):
    pipe.unet.to(torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16.*round to nothing.*pipe.unet.float"):
        finetune(pipe, IMAGES, CAPTIONS, steps=1)
    options, moved = {"steps": 1, "lr": 1e-5, "batch": 2, "ema": 0, "warmup": 1}, []
    for kind in (torch.bfloat16, torch.float32):
        pipe.unet.to(kind)
        before = weights(pipe)
        finetune(pipe, IMAGES, CAPTIONS, half_weights=kind == torch.bfloat16, **options)
        changed = [(value != before[name]).flatten() for name, value in weights(pipe).items()]
        moved.append(torch.cat(changed).float().mean())
    assert 0 < moved[0] < 0.3 and moved[1] > 0.9, "most updates are lost in rounding"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps=0"),
        ({"steps": 1.5}, ValueError, "whole number"),
        ({"batch": 0}, ValueError, "batch=0"),
        ({"lr": -1}, ValueError, "lr=-1"),
        ({"caption_dropout": 2}, ValueError, "caption_dropout=2"),
        ({"learning_rate": 1}, TypeError, "does not know learning_rate. Options: bf16"),
        ({"device": "cpu"}, TypeError, "does not know device"),
        ({"accelerator": 7}, TypeError, "accelerator is a int"),
    ],
)
def test_bad_options_change_nothing(start, options, error, words):
    before = weights(start)
    with pytest.raises(error, match=words):
        finetune(start, IMAGES, CAPTIONS, **{"steps": 1, **options})
    assert same(before, weights(start))


def test_a_rate_that_explodes_is_reported(pipe):
    with pytest.raises(ValueError, match="Lower lr"):
        finetune(pipe, IMAGES, CAPTIONS, steps=200, lr=1e30, batch=2, warmup=1, clip=1e30)
