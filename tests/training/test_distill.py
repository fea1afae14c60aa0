"""Distillation: each loss is what it says, gradients flow to the student alone, and bad teachers are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DiTTransformer2DModel
from small_pipe import copy_of, small_unet, with_unet
from torch import nn
from torch.nn import functional as F

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.finetuning.distill import Distillation, block_outputs, block_paths, frozen
from pruning_lib.finetuning.finetune import checkpointed, finetune

IMAGES, CAPTIONS = pb.training_images()[:4], pb.captions()[:4]
PATHS = ["down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block"]


@pytest.fixture(scope="module")
def whole():
    pipe = pl.load("emoji-sd")
    return with_unet(pipe, small_unet())


@pytest.fixture(scope="module")
def batch(whole):
    return DenoisingTask.of(whole, IMAGES, CAPTIONS).draw(torch.Generator().manual_seed(0), 4)


class Through(nn.Module):
    """What stands where a residual block was taken out."""

    def forward(self, hidden, *args, **kwargs):
        return hidden


def cut(pipe):
    """A copy that lacks two operators inside its blocks."""
    small = copy_of(pipe)
    small.unet.down_blocks[0].resnets[1] = Through()
    small.unet.up_blocks[1].resnets[0].conv2 = nn.Identity()
    return small


def test_blocks_are_those_of_the_denoiser():
    assert block_paths(small_unet()) == PATHS
    dit = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=3, sample_size=8)
    assert block_paths(dit) == [f"transformer_blocks.{i}" for i in range(3)]
    assert block_paths(nn.Linear(2, 2)) == []
    unet = small_unet()
    unet.mid_block = None
    assert block_paths(unet) == PATHS[:-1]


def test_outputs_are_what_the_next_block_is_given(whole, batch):
    with torch.no_grad(), block_outputs(whole.unet, PATHS) as found:
        batch.predict(whole.unet)
    seen = {}
    handle = whole.unet.mid_block.register_forward_pre_hook(lambda m, args: seen.update(mid=args[0]))
    with torch.no_grad():
        batch.predict(whole.unet)
    handle.remove()
    assert sorted(found) == sorted(PATHS) and torch.equal(found["down_blocks.1"], seen["mid"])
    assert not any(module._forward_hooks for module in whole.unet.modules())


def test_the_loss_is_the_sum_of_its_parts_by_hand(whole, batch):
    small = cut(whole)
    total, parts = Distillation(whole.unet, output=2.0, features=0.5).loss(small.unet, batch)
    with torch.no_grad(), block_outputs(small.unet, PATHS) as ours, block_outputs(whole.unet, PATHS) as theirs:
        answer, wanted = batch.predict(small.unet), batch.predict(whole.unet)
    features = sum(F.mse_loss(ours[p], theirs[p]) for p in PATHS)
    assert parts["denoising_loss"] == pytest.approx(F.mse_loss(answer, batch.target).item(), rel=1e-5)
    assert parts["output_loss"] == pytest.approx(F.mse_loss(answer, wanted).item(), rel=1e-5)
    assert parts["features_loss"] == pytest.approx(features.item(), rel=1e-5)
    by_hand = parts["denoising_loss"] + 2 * parts["output_loss"] + 0.5 * parts["features_loss"]
    assert total.item() == pytest.approx(by_hand, rel=1e-5)
    assert parts["output_loss"] > 0 and parts["features_loss"] > 0


def test_a_twin_has_nothing_to_learn_from_its_teacher(whole, batch):
    twin = copy_of(whole)
    total, parts = Distillation(whole.unet, output=1, features=1).loss(twin.unet, batch)
    assert parts["output_loss"] == parts["features_loss"] == 0
    assert total.item() == pytest.approx(batch.loss(twin.unet).item())


def test_gradients_reach_the_student_alone(whole, batch):
    small = cut(whole)
    Distillation(whole.unet, features=1).loss(small.unet, batch)[0].backward()
    assert all(p.grad is None for p in whole.unet.parameters())
    assert small.unet.down_blocks[0].resnets[0].conv1.weight.grad.abs().sum() > 0


def test_blocks_that_differ_are_left_out(whole, batch):
    small = copy_of(whole)
    small.unet.mid_block = None
    _, parts = Distillation(whole.unet, features=1).loss(small.unet, batch)
    # without a mid block the way down is as before; only the way up differs
    with torch.no_grad(), block_outputs(small.unet, PATHS[:-1]) as ours, block_outputs(whole.unet, PATHS) as theirs:
        batch.predict(small.unet), batch.predict(whole.unet)
    wanted = sum(F.mse_loss(ours[p], theirs[p]) for p in PATHS[2:4])
    assert parts["features_loss"] == pytest.approx(wanted.item(), rel=1e-5)


def test_nothing_in_common_is_an_error(whole, batch):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_unet()

        def forward(self, *args):
            return self.inner(*args)

    with pytest.raises(ValueError, match=r"no block with the same path.*teacher: none.*distill_output alone"):
        Distillation(Other(), features=1).loss(whole.unet, batch)
    Distillation(Other(), output=1).loss(whole.unet, batch)  # any module with .sample will do


@pytest.mark.parametrize("bf16", [False, True])
def test_checkpointing_changes_memory_and_not_the_gradient(whole, batch, bf16):
    found = []
    for on in (False, True):
        small, kept = cut(whole), []
        small.unet.train()
        pack = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)  # noqa: B023
        with checkpointed(small.unet, on), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with pack:
                total, _ = Distillation(whole.unet, output=1, features=1).loss(small.unet, batch)
            total.backward()
        assert not small.unet.is_gradient_checkpointing
        found.append((sum(kept), total.item(), {n: p.grad for n, p in small.unet.named_parameters()}))
    (plain, a, grads), (less, b, again) = found
    assert less < 0.7 * plain and a == pytest.approx(b, rel=1e-6)
    for name, grad in grads.items():
        assert (grad is None and again[name] is None) or torch.allclose(grad, again[name], atol=1e-5), name


def test_checkpointing_is_restored_as_it_was(whole):
    small = copy_of(whole)
    small.unet.down_blocks[0].gradient_checkpointing = True
    before = [m.gradient_checkpointing for m in small.unet.modules() if hasattr(m, "gradient_checkpointing")]
    with pytest.raises(RuntimeError, match="boom"), checkpointed(small.unet):
        assert all(m.gradient_checkpointing for m in small.unet.down_blocks)
        raise RuntimeError("boom")
    after = [m.gradient_checkpointing for m in small.unet.modules() if hasattr(m, "gradient_checkpointing")]
    assert before == after and sum(before) == 1
    with pytest.raises(TypeError, match="Linear has no enable_gradient_checkpointing"), checkpointed(nn.Linear(1, 1)):
        pass


def test_the_teacher_is_left_as_it_was_found(whole):
    small, unet = cut(whole), copy.deepcopy(whole.unet).train()
    unet.mid_block.eval()
    modes, before = [m.training for m in unet.modules()], copy.deepcopy(unet.state_dict())
    finetune(small, IMAGES, CAPTIONS, steps=2, batch=2, teacher=unet, distill_output=1, distill_features=1)
    assert [m.training for m in unet.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    with frozen(unet, small.unet, "cpu"):
        assert not any(m.training for m in unet.modules())


def test_a_student_that_lost_operators_comes_closer_to_its_teacher(whole):
    small = cut(whole)
    log = finetune(
        small,
        IMAGES,
        CAPTIONS,
        steps=16,
        lr=3e-3,
        batch=4,
        ema=0,
        log_every=1,
        warmup=1,
        teacher=whole,
        distill_output=30,
        distill_features=30,  # this teacher knows nothing about the data
    )
    for name in ("output_loss", "features_loss"):
        losses = log.curve(name)[1]
        assert len(losses) == 16 and sum(losses[-3:]) < 0.6 * sum(losses[:3]), name


def test_all_options_together(whole):
    small = cut(whole)
    more = {"checkpointing": True, "bf16": True, "teacher": whole, "distill_output": 1, "distill_features": 1}
    log = finetune(small, IMAGES, CAPTIONS, steps=2, batch=2, log_every=1, **more)
    line = log.lines[-1]
    total = line["denoising_loss"] + line["output_loss"] + line["features_loss"]
    assert line["loss"] == pytest.approx(total, rel=1e-4) and not small.unet.is_gradient_checkpointing


def test_a_distilled_run_goes_on_where_it_stopped(whole, tmp_path):
    start, more = cut(whole), {"batch": 2, "teacher": whole, "distill_features": 1.0, "distill_output": 1.0}
    straight, halves = copy_of(start), copy_of(start)
    finetune(straight, IMAGES, CAPTIONS, steps=4, decay=0, warmup=1, folder=tmp_path / "a", **more)
    finetune(halves, IMAGES, CAPTIONS, steps=2, decay=0, warmup=1, folder=tmp_path / "b", **more)
    halves = copy_of(start)  # another process would start from the pruned weights
    log = finetune(halves, IMAGES, CAPTIONS, steps=4, decay=0, warmup=1, folder=tmp_path / "b", **more)
    wanted = straight.unet.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in halves.unet.state_dict().items())
    assert [line["step"] for line in log.lines][-1] == 4
    with pytest.raises(ValueError, match="another teacher's weight"):
        finetune(halves, IMAGES, CAPTIONS, steps=4, folder=tmp_path / "b", batch=2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"distill_output": 1}, ValueError, "need a teacher"),
        ({"teacher": "self"}, ValueError, "would never be asked"),
        ({"teacher": "self", "distill_output": 1}, ValueError, "shares .* weights.*copy"),
        ({"teacher": "twin", "distill_output": -1}, ValueError, "distill_output=-1"),
        ({"teacher": "twin", "distill_features": float("nan")}, ValueError, "distill_features=nan"),
        ({"teacher": "narrow", "distill_output": 1}, ValueError, r"teacher answers \[1, 3"),
        ({"teacher": 7, "distill_output": 1}, TypeError, "teacher is a int"),
        ({"teacher": "other", "distill_output": 1}, ValueError, "teacher predicts 'epsilon'"),
        ({"accelerator": 7}, TypeError, "accelerator is a int"),
    ],
)
def test_bad_teachers_change_nothing(whole, options, error, words):
    small = copy_of(whole)
    other = copy_of(whole)
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, prediction_type="epsilon")
    narrow = small_unet()
    narrow.conv_out = nn.Conv2d(8, 3, 3, padding=1)
    teachers = {"self": small, "twin": copy_of(whole), "narrow": narrow, "other": other}
    if isinstance(options.get("teacher"), str):
        options = {**options, "teacher": teachers[options["teacher"]]}
    before = copy.deepcopy(small.unet.state_dict())
    with pytest.raises(error, match=words):
        finetune(small, IMAGES, CAPTIONS, steps=1, batch=1, **options)
    assert all(torch.equal(before[name], value) for name, value in small.unet.state_dict().items())
