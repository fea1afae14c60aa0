"""Fine-tuning a pipeline: it learns, zeros stay zeros, it goes on where it stopped, and bad input is refused early."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
from diffusers import UNet2DConditionModel

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.finetuning.finetune import FinetuneLog, finetune


@pytest.fixture(scope="module")
def whole():
    return pl.load("emoji-sd")


@pytest.fixture
def pipe(whole):
    """The pipeline with a very small denoiser, so that a step costs nothing."""
    torch.manual_seed(0)
    own, whole.unet = (
        whole.unet,
        UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=128,
            norm_num_groups=4,
            attention_head_dim=2,
        ),
    )
    yield whole
    whole.unet = own


IMAGES, CAPTIONS = pb.training_images()[:4], pb.captions()[:4]


def weights(pipe) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


def test_it_learns_and_says_so(pipe):
    log = finetune(pipe, IMAGES, CAPTIONS, steps=60, lr=3e-3, batch=8, log_every=10)
    steps, losses = log.curve()
    assert steps == [10, 20, 30, 40, 50, 60] and losses[-1] < 0.8 * losses[0]
    assert not pipe.unet.training
    parts = weights(pipe)
    assert all(value.isfinite().all() for value in parts.values())


def test_only_the_denoiser_is_trained(pipe):
    frozen = copy.deepcopy([pipe.vae.state_dict(), pipe.text_encoder.state_dict()])
    before = weights(pipe)
    finetune(pipe, IMAGES, CAPTIONS, steps=2, batch=2)
    assert same(pipe.vae.state_dict(), frozen[0]) and same(pipe.text_encoder.state_dict(), frozen[1])
    assert not same(before, weights(pipe))


def test_same_seed_same_weights(pipe):
    start, found = copy.deepcopy(pipe.unet.state_dict()), []
    for seed in (0, 0, 1):
        pipe.unet.load_state_dict(start)
        finetune(pipe, IMAGES, CAPTIONS, steps=2, batch=2, seed=seed)
        found.append(weights(pipe))
    assert same(found[0], found[1]) and not same(found[0], found[2])


@pytest.mark.parametrize("ema", [0, 0.9])
def test_masks_hold_through_training(pipe, ema):
    pruned = pl.prune_magnitude(pipe.unet, 0.7)
    before = weights(pipe)
    finetune(pipe, IMAGES, CAPTIONS, steps=3, batch=2, ema=ema, after_step=pruned.reapply)
    after = weights(pipe)
    for name, mask in pruned.masks.items():
        assert (after[name][~mask] == 0).all()
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

    log = finetune(
        pipe, IMAGES, CAPTIONS, steps=4, batch=2, ema=0.99, validate=validate, validate_every=2, log_every=100
    )
    assert log.curve("score") == ([0, 2, 4], [0.0, 2.0, 4.0])
    assert same(seen[0], first) and same(seen[-1], weights(pipe)) and not same(seen[1], seen[2])
    assert "loss" not in log.lines[0]
    with pytest.raises(KeyError, match="no 'clip'. It has: loss, score, seconds"):
        log.curve("clip")


def test_validation_does_not_change_the_run(pipe):
    start, found = copy.deepcopy(pipe.unet.state_dict()), []
    for every in (0, 1):
        pipe.unet.load_state_dict(start)
        finetune(
            pipe,
            IMAGES,
            CAPTIONS,
            steps=3,
            batch=2,
            validate=lambda step: {"x": torch.rand(1).item()},
            validate_every=every,
        )
        found.append(weights(pipe))
    assert same(found[0], found[1])


def test_an_interrupted_run_goes_on(pipe, tmp_path):
    start = copy.deepcopy(pipe.unet.state_dict())
    finetune(pipe, IMAGES, CAPTIONS, steps=4, batch=2, folder=tmp_path / "whole")
    wanted = weights(pipe)
    pipe.unet.load_state_dict(start)
    count = []

    def stop():
        count.append(1)
        if len(count) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        finetune(pipe, IMAGES, CAPTIONS, steps=4, batch=2, folder=tmp_path / "part", after_step=stop)
    pipe.unet.load_state_dict(start)
    log = finetune(pipe, IMAGES, CAPTIONS, steps=4, batch=2, folder=tmp_path / "part")
    assert same(wanted, weights(pipe)) and log.lines[-1]["step"] == 4
    with pytest.raises(ValueError, match="other captions, batch or dropout"):
        finetune(pipe, IMAGES, CAPTIONS[::-1], steps=4, batch=2, folder=tmp_path / "part")


def test_half_precision_is_refused_unless_wanted(pipe):
    pipe.unet.to(torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16.*round to nothing.*pipe.unet.float"):
        finetune(pipe, IMAGES, CAPTIONS, steps=1)
    before = weights(pipe)
    finetune(pipe, IMAGES, CAPTIONS, steps=1, lr=1e-5, batch=2, ema=0, warmup=1, half_weights=True)
    after = weights(pipe)
    moved = sum((after[n] != before[n]).sum().item() for n in after) / sum(v.numel() for v in after.values())
    assert 0 < moved < 0.3, "most updates are lost in rounding"
    pipe.unet.float()
    finetune(pipe, IMAGES, CAPTIONS, steps=1, lr=1e-5, batch=2, ema=0, warmup=1)
    whole = weights(pipe)
    assert (
        sum((whole[n] != after[n].float()).sum().item() for n in whole) / sum(v.numel() for v in whole.values()) > 0.9
    )


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
    ],
)
def test_bad_numbers_change_nothing(pipe, options, error, words):
    before = weights(pipe)
    with pytest.raises(error, match=words):
        finetune(pipe, IMAGES, CAPTIONS, **{"steps": 1, **options})
    assert same(before, weights(pipe))


def test_a_rate_that_explodes_is_reported(pipe):
    with pytest.raises(ValueError, match="Lower lr"):
        finetune(pipe, IMAGES, CAPTIONS, steps=200, lr=1e30, batch=2, warmup=1, clip=1e30)


def test_a_log_is_data():
    log = FinetuneLog([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "x": 3}])
    assert log.curve() == ([1, 2], [2.0, 1.0]) and log.curve("x") == ([2], [3])
