"""Training, of a line and of a pipeline with a teacher: losses by hand, exact resuming, bad input refused early."""

from __future__ import annotations

import copy
import json
import os
import signal

import pytest
import torch
from small_pipe import CAPTIONS, IMAGES, copy_of, small_pipe, small_unet
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

import pruning_lib as pl
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.finetuning.finetune import Distillation, finetune
from pruning_lib.finetuning.folder import read_log
from pruning_lib.finetuning.loop import FitConfig, fit, lr_factor

PATHS = ["down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block"]


@pytest.fixture(scope="module")
def whole():
    return small_pipe()


@pytest.fixture
def pipe(whole):
    return copy_of(whole)


@pytest.fixture(scope="module")
def batch(whole):
    return DenoisingTask.of(whole, IMAGES, CAPTIONS).draw(torch.Generator().manual_seed(0), 4)


def weights(pipe) -> dict[str, torch.Tensor]:
    return copy.deepcopy(pipe.unet.state_dict())


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


def tuned(pipe, **options) -> dict[str, torch.Tensor]:
    """Return the weights of a copy after a short run."""
    pipe = copy_of(pipe)
    finetune(pipe, IMAGES, CAPTIONS, **{"steps": 2, "batch": 2, **options})
    return weights(pipe)


def cut(pipe):
    """A copy that lacks two operators inside its blocks."""
    small = copy_of(pipe)
    for resnet in (small.unet.down_blocks[0].resnets[1], small.unet.up_blocks[1].resnets[0]):
        resnet.conv2 = nn.Identity()
    return small


@torch.no_grad()
def outputs(batch, unet, paths=PATHS) -> dict[str, torch.Tensor]:
    unet, found = copy.deepcopy(unet), {}
    for path in paths:
        keep = lambda _, args, out, path=path: found.update({path: out[0] if isinstance(out, tuple) else out})  # noqa: E731
        unet.get_submodule(path).register_forward_hook(keep)
    return {"answer": batch.predict(unet), **found}


def test_it_learns_and_validation_sees_averaged_weights_at_the_asked_steps(pipe):
    first, seen = weights(pipe), []
    task = DenoisingTask.of(pipe, IMAGES, CAPTIONS)

    def validate(step):
        assert not pipe.unet.training
        seen.append(weights(pipe))
        return {"score": task.loss(pipe.unet, torch.Generator().manual_seed(0), 16).item()}

    more = {"lr": 1e-2, "warmup": 1, "ema": 0.5, "log_every": 100, "validate": validate, "validate_every": 5}
    log = finetune(pipe, IMAGES, CAPTIONS, steps=10, batch=4, **more)
    steps, scores = log.curve("score")
    assert steps == [0, 5, 10] and scores[-1] < 0.8 * scores[0] and "loss" not in log.lines[0]
    assert same(seen[0], first) and same(seen[-1], weights(pipe)) and not same(seen[1], seen[2])
    with pytest.raises(KeyError, match="no 'clip'. It has: loss, score, seconds"):
        log.curve("clip")


def test_zeros_hold_through_training(pipe):
    pruned = pl.prune_magnitude(pipe.unet, 0.7)
    before = weights(pipe)
    finetune(pipe, IMAGES, CAPTIONS, steps=2, batch=2, ema=0.9, after_step=pruned.reapply)
    after, grown = weights(pipe), tuned(pipe)  # without it they grow back
    assert all((after[name][~mask] == 0).all() for name, mask in pruned.masks.items())
    still = [torch.equal(after[name][mask], before[name][mask]) for name, mask in pruned.masks.items() if mask.any()]
    assert not any(still), "a kept weight did not learn"
    assert torch.cat([grown[name][~mask] != 0 for name, mask in pruned.masks.items()]).float().mean() > 0.9


def test_the_seed_decides_looking_changes_nothing_and_an_interrupted_run_goes_on(whole, tmp_path):
    wanted, other = tuned(whole), tuned(whole, seed=1)
    looked = tuned(whole, validate=lambda step: {"x": torch.rand(1).item()}, validate_every=1)
    assert same(wanted, looked) and not same(wanted, other)
    with pytest.raises(KeyboardInterrupt):
        tuned(whole, folder=tmp_path, after_step=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert same(wanted, tuned(whole, folder=tmp_path))
    with pytest.raises(ValueError, match="other captions, batch or dropout"):
        finetune(whole, IMAGES, CAPTIONS[::-1], steps=2, batch=2, folder=tmp_path)


def test_the_loss_is_the_sum_of_its_parts_by_hand_and_reaches_the_student_alone(whole, batch):
    small = cut(whole)
    total, parts = Distillation(whole.unet, output=2.0, features=0.5).loss(small.unet, batch)
    assert not any(module._forward_hooks for unet in (small.unet, whole.unet) for module in unet.modules())
    ours, theirs = outputs(batch, small.unet), outputs(batch, whole.unet)
    assert parts == {
        "denoising_loss": pytest.approx(F.mse_loss(ours["answer"], batch.target).item(), rel=1e-5),
        "output_loss": pytest.approx(F.mse_loss(ours["answer"], theirs["answer"]).item(), rel=1e-5),
        "features_loss": pytest.approx(sum(F.mse_loss(ours[p], theirs[p]) for p in PATHS).item(), rel=1e-5),
    }
    by_hand = parts["denoising_loss"] + 2 * parts["output_loss"] + 0.5 * parts["features_loss"]
    assert total.item() == pytest.approx(by_hand, rel=1e-5) and min(parts.values()) > 0
    total.backward()
    assert all(p.grad is None for p in whole.unet.parameters())
    assert small.unet.down_blocks[0].resnets[0].conv1.weight.grad.abs().sum() > 0


def test_blocks_that_only_one_has_are_left_out_and_none_in_common_is_an_error(whole, pipe, batch):
    other = nn.Module()
    other.inner, other.forward = whole.unet, lambda *args: other.inner(*args)
    pipe.unet.mid_block = None
    _, parts = Distillation(whole.unet, features=1).loss(pipe.unet, batch)
    # without a mid block the way down is as before; only the way up differs
    ours, theirs = outputs(batch, pipe.unet, PATHS[:-1]), outputs(batch, whole.unet)
    wanted = sum(F.mse_loss(ours[p], theirs[p]) for p in PATHS[2:4])
    assert parts["features_loss"] == pytest.approx(wanted.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"no block with the same path.*teacher: none.*distill_output alone"):
        Distillation(other, features=1).loss(pipe.unet, batch)
    Distillation(other, output=1).loss(pipe.unet, batch)  # any module with .sample will do


def test_checkpointing_changes_memory_and_not_the_weights(whole):
    how, found = {"steps": 1, "batch": 2, "teacher": whole, "distill_features": 1, "distill_output": 1}, []
    for on in (False, True):
        small, kept = cut(whole), []
        small.unet.down_blocks[0].gradient_checkpointing = False
        with saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            finetune(small, IMAGES, CAPTIONS, checkpointing=on, **how)
        assert not small.unet.is_gradient_checkpointing
        found.append((sum(kept), small.unet.state_dict()))
    (plain, wanted), (less, again) = found
    assert less < 0.7 * plain
    assert all(torch.allclose(again[name], value, atol=1e-5) for name, value in wanted.items())


def test_a_distilled_run_goes_on_where_it_stopped_and_leaves_the_teacher_as_it_was_found(whole, tmp_path):
    unet, called = copy.deepcopy(whole.unet).train(), []
    unet.mid_block.eval()
    unet.register_forward_pre_hook(lambda *_: called.append(any(m.training for m in unet.modules())))
    modes = [m.training for m in unet.modules()]
    more = {"batch": 2, "teacher": unet, "distill_features": 1.0, "distill_output": 1.0, "decay": 0, "warmup": 1}
    more |= {"checkpointing": True, "bf16": True}
    straight, half, rest = (cut(whole) for _ in range(3))  # another process would start from the pruned weights
    finetune(straight, IMAGES, CAPTIONS, steps=2, **more)
    finetune(half, IMAGES, CAPTIONS, steps=1, folder=tmp_path, **more)
    line = finetune(rest, IMAGES, CAPTIONS, steps=2, folder=tmp_path, **more).lines[-1]
    assert same(weights(rest), weights(straight))
    total = line["denoising_loss"] + line["output_loss"] + line["features_loss"]
    assert line["step"] == 2 and line["loss"] == pytest.approx(total, rel=1e-4)
    assert [m.training for m in unet.modules()] == modes and called == [False] * 4
    assert same(unet.state_dict(), weights(whole))
    with pytest.raises(ValueError, match="another teacher's weight"):
        finetune(rest, IMAGES, CAPTIONS, steps=2, folder=tmp_path, batch=2)


def test_bad_options_and_teachers_change_nothing_and_a_rate_that_explodes_is_reported(whole, pipe):
    before, twin, other, narrow = weights(pipe), copy_of(whole), copy_of(whole), small_unet()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, prediction_type="epsilon")
    narrow.conv_out = nn.Conv2d(8, 3, 3, padding=1)
    output = {"distill_output": 1}
    for options, words in [
        ({"batch": 0}, "batch=0"),
        ({"learning_rate": 1}, "does not know learning_rate. Options: bf16"),
        ({"accelerator": 7}, "accelerator is a int"),
        (output, "need a teacher"),
        ({"teacher": twin}, "would never be asked"),
        ({"teacher": pipe, **output}, "shares .* weights.*copy"),
        ({"teacher": narrow, **output}, r"teacher answers \[1, 3"),
        ({"teacher": other, **output}, "teacher predicts 'epsilon'"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            finetune(pipe, IMAGES, CAPTIONS, **{"steps": 1, "batch": 1, **options})
    assert same(before, weights(pipe))
    with pytest.raises(ValueError, match="Lower lr"):
        finetune(pipe, IMAGES, CAPTIONS, steps=200, lr=1e30, batch=2, warmup=1, clip=1e30)
    pipe.unet.to(torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16.*round to nothing.*pipe.unet.float"):
        finetune(pipe, IMAGES, CAPTIONS, steps=1)


def line_fit(seed: int = 0, at: int = 0, happens=None):
    """Return a line to be fitted and its loss; at the `at`-th step something happens."""
    torch.manual_seed(seed)
    model, calls = nn.Linear(4, 1), []

    def loss(generator):
        calls.append(1)
        if len(calls) == at:
            happens()
        x = torch.randn(16, 4, generator=generator)
        return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean(), {"extra": 1.0}

    return model, loss


def test_the_rate_warms_up_holds_and_decays():
    rates = [lr_factor(s, FitConfig(steps=100, warmup=10, decay=0.2)) for s in range(100)]
    assert rates[0] == 0.1 and rates[90] == 0.5 and 0 < rates[99] < 0.06 and set(rates[9:81]) == {1.0}


def test_a_resumed_run_equals_an_uninterrupted_one_and_a_crash_loses_at_most_one_interval(tmp_path):
    config, handlers = FitConfig(steps=40, checkpoint_every=10), signal.getsignal(signal.SIGTERM)
    whole, loss = line_fit()
    fit(whole, loss, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="step 13"):
        fit(*line_fit(at=13, happens=lambda: os.kill(os.getpid(), signal.SIGTERM)), config, tmp_path / "part")
    with pytest.raises(ZeroDivisionError):
        fit(*line_fit(at=14, happens=lambda: 1 / 0), config, tmp_path / "part")
    assert signal.getsignal(signal.SIGTERM) == handlers
    assert torch.load(tmp_path / "part" / "checkpoint.pt", weights_only=True)["step"] == 20
    assert {path.name for path in (tmp_path / "part").iterdir()} == {"checkpoint.pt", "log.jsonl"}
    again, loss = line_fit(seed=9)  # other initial weights: the checkpoint must replace them
    fit(again, loss, config, tmp_path / "part")
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)


def test_of_repeated_lines_the_later_count_and_one_that_a_crash_cut_short_is_left_out(tmp_path):
    lines = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "loss": 3.0}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    assert [line["loss"] for line in read_log(tmp_path)] == [5.0, 3.0]
    fit(*line_fit(), FitConfig(steps=4, log_every=1), tmp_path)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]


def test_what_cannot_go_on_is_refused_and_kept(tmp_path):
    model, loss = line_fit()
    fit(model, loss, FitConfig(steps=5), tmp_path)
    with pytest.raises(ValueError, match="lr"):
        fit(model, loss, FitConfig(steps=10, lr=0.5), tmp_path)
    fit(model, loss, FitConfig(steps=10), tmp_path)  # more steps are allowed
    assert read_log(tmp_path)[-1]["step"] == 10
    path = tmp_path / "checkpoint.pt"
    for keep in (1000, 0):
        path.write_bytes(damaged := path.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged or cut short"):
            fit(model, loss, FitConfig(steps=20), tmp_path)
        assert path.read_bytes() == damaged
    for name, bad in {"steps": 0, "decay": 1.5, "device": "cdua"}.items():
        with pytest.raises(ValueError, match=name):
            FitConfig(**{"steps": 5, name: bad})
