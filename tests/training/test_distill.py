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
    return with_unet(pl.load("emoji-sd"), small_unet())


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


@torch.no_grad()
def outputs(batch, unet, paths=PATHS) -> dict[str, torch.Tensor]:
    with block_outputs(unet, paths) as found:
        found["answer"] = batch.predict(unet)
    assert not any(module._forward_hooks for module in unet.modules())
    return found


def test_blocks_are_those_of_the_denoiser_and_their_outputs_what_the_next_is_given(whole, batch):
    dit = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=3, sample_size=8)
    assert block_paths(whole.unet) == PATHS and block_paths(nn.Linear(2, 2)) == []
    assert block_paths(dit) == [f"transformer_blocks.{i}" for i in range(3)]
    seen = {}
    handle = whole.unet.mid_block.register_forward_pre_hook(lambda m, args: seen.update(mid=args[0]))
    found = outputs(batch, whole.unet)
    handle.remove()
    assert sorted(found) == sorted([*PATHS, "answer"]) and torch.equal(found["down_blocks.1"], seen["mid"])


def test_the_loss_is_the_sum_of_its_parts_by_hand_and_reaches_the_student_alone(whole, batch):
    small = cut(whole)
    total, parts = Distillation(whole.unet, output=2.0, features=0.5).loss(small.unet, batch)
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


def test_a_twin_has_nothing_to_learn_from_its_teacher(whole, batch):
    twin = copy_of(whole)
    total, parts = Distillation(whole.unet, output=1, features=1).loss(twin.unet, batch)
    assert parts["output_loss"] == parts["features_loss"] == 0
    assert total.item() == pytest.approx(batch.loss(twin.unet).item())


def test_blocks_that_only_one_has_are_left_out(whole, batch):
    small = copy_of(whole)
    small.unet.mid_block = None
    _, parts = Distillation(whole.unet, features=1).loss(small.unet, batch)
    # without a mid block the way down is as before; only the way up differs
    ours, theirs = outputs(batch, small.unet, PATHS[:-1]), outputs(batch, whole.unet)
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
    switched = [m for m in small.unet.modules() if hasattr(m, "gradient_checkpointing")]
    before = [m.gradient_checkpointing for m in switched]
    with pytest.raises(RuntimeError, match="boom"), checkpointed(small.unet):
        assert all(m.gradient_checkpointing for m in small.unet.down_blocks)
        raise RuntimeError("boom")
    assert before == [m.gradient_checkpointing for m in switched] and sum(before) == 1
    with pytest.raises(TypeError, match="Linear has no enable_gradient_checkpointing"), checkpointed(nn.Linear(1, 1)):
        pass


def test_a_student_comes_closer_to_its_teacher_which_is_left_as_it_was_found(whole):
    small, unet = cut(whole), copy.deepcopy(whole.unet).train()
    unet.mid_block.eval()
    modes, before = [m.training for m in unet.modules()], copy.deepcopy(unet.state_dict())
    more = {"distill_output": 30, "distill_features": 30}  # this teacher knows nothing about the data
    options = {"steps": 12, "lr": 3e-3, "batch": 4, "ema": 0, "log_every": 1, "warmup": 1}
    log = finetune(small, IMAGES, CAPTIONS, teacher=unet, **more, **options)
    for name in ("output_loss", "features_loss"):
        losses = log.curve(name)[1]
        assert len(losses) == 12 and sum(losses[-3:]) < 0.6 * sum(losses[:3]), name
    assert [m.training for m in unet.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    with frozen(unet, small.unet, "cpu"):
        assert not any(m.training for m in unet.modules())


def test_a_distilled_run_with_all_options_goes_on_where_it_stopped(whole, tmp_path):
    more = {"batch": 2, "teacher": whole, "distill_features": 1.0, "distill_output": 1.0, "decay": 0, "warmup": 1}
    more |= {"checkpointing": True, "bf16": True}
    straight, half, rest = (cut(whole) for _ in range(3))  # another process would start from the pruned weights
    finetune(straight, IMAGES, CAPTIONS, steps=4, folder=tmp_path / "a", **more)
    finetune(half, IMAGES, CAPTIONS, steps=2, folder=tmp_path / "b", **more)
    line = finetune(rest, IMAGES, CAPTIONS, steps=4, folder=tmp_path / "b", **more).lines[-1]
    wanted = straight.unet.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in rest.unet.state_dict().items())
    total = line["denoising_loss"] + line["output_loss"] + line["features_loss"]
    assert line["step"] == 4 and line["loss"] == pytest.approx(total, rel=1e-4)
    with pytest.raises(ValueError, match="another teacher's weight"):
        finetune(rest, IMAGES, CAPTIONS, steps=4, folder=tmp_path / "b", batch=2)


@pytest.mark.parametrize(
    ("teacher", "options", "error", "words"),
    [
        (None, {"distill_output": 1}, ValueError, "need a teacher"),
        ("self", {}, ValueError, "would never be asked"),
        ("self", {"distill_output": 1}, ValueError, "shares .* weights.*copy"),
        ("twin", {"distill_output": -1}, ValueError, "distill_output=-1"),
        ("twin", {"distill_features": float("nan")}, ValueError, "distill_features=nan"),
        ("narrow", {"distill_output": 1}, ValueError, r"teacher answers \[1, 3"),
        (7, {"distill_output": 1}, TypeError, "teacher is a int"),
        ("other", {"distill_output": 1}, ValueError, "teacher predicts 'epsilon'"),
    ],
)
def test_bad_teachers_change_nothing(whole, teacher, options, error, words):
    small, other, narrow = copy_of(whole), copy_of(whole), small_unet()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, prediction_type="epsilon")
    narrow.conv_out = nn.Conv2d(8, 3, 3, padding=1)
    teacher = {"self": small, "twin": copy_of(whole), "narrow": narrow, "other": other}.get(teacher, teacher)
    with pytest.raises(error, match=words):
        finetune(small, IMAGES, CAPTIONS, steps=1, batch=1, teacher=teacher, **options)
    wanted = whole.unet.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in small.unet.state_dict().items())
