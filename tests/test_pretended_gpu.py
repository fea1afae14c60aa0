"""The library on a pretended GPU: no two devices meet, and values are read where that is worth a wait."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from pretended import CUDA, PretendedGPU, real
from small_pipe import small_unet
from tiny import laid_out, tiny
from torch import nn

from pruning_book.rivals.rankings import contributions
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.finetuning.distill import Distillation
from pruning_lib.finetuning.loop import FitConfig, fit
from pruning_lib.operators.find import find_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.quality import clip_score, psnr, ssim
from pruning_lib.steps.hooks import Control, attach
from pruning_lib.steps.supernet import SuperNet, loss_and_gradient
from pruning_lib.steps.units import units_of
from pruning_lib.weights.magnitude import SCOPES, prune_magnitude
from pruning_lib.weights.nm import prune_nm


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr("pruning_lib.finetuning.loop.check_device", torch.device)
    return PretendedGPU()


@pytest.fixture(scope="module")
def pipe():
    found = tiny()
    found.scheduler = DDIMScheduler.from_config(found.scheduler.config, prediction_type="v_prediction")
    return found


READ = [
    lambda x: x.sum().item(),
    lambda x: float(x[0, 0]),
    lambda x: bool((x > 0).any()),
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: x[x > 0],
    lambda x: x.nonzero(),
    lambda x: torch.zeros(2, 2).copy_(x),
]
WRONG = [
    lambda x: x + torch.ones(2),
    lambda x: torch.cat([x, torch.ones(2, 2)]),
    lambda x: x.numpy(),
    lambda x: nn.functional.linear(x, torch.ones(2, 2)),
    lambda x: x.index_select(0, torch.tensor([0])),
    lambda x: torch.ones(2, 2)[x.long()],
    lambda x: x.add_(torch.ones(2, 2)),
    lambda x: torch.randn(2, generator=torch.Generator(), device=x.device),
]
FINE = [
    lambda x: x + torch.tensor(1.0),
    lambda x: x[torch.tensor([0])],
    lambda x: torch.zeros_like(x) + x[:1],
    lambda x: torch.zeros(2, device=x.device) + x,
    lambda x: torch.tensor([1.0, 2.0], device="cuda:0") + x,
]


def test_what_it_pretends(gpu):
    for what in READ:
        with gpu:
            what(torch.ones(2, 2, device="cuda:0"))
        assert gpu.reads == {"test_pretended_gpu.py": 1}
    for what in WRONG:
        with gpu, pytest.raises((RuntimeError, TypeError), match="cuda"):
            what(torch.ones(2, 2, device="cuda:0"))
    for what in FINE:
        with gpu:
            assert what(torch.ones(2, 2, device="cuda:0")).is_cuda
        assert not gpu.reads


class Bad(Control):
    """Reads a value of every unit, or keeps its values on the CPU."""

    def __init__(self, how):
        self.how, self.values = how, 0

    def unit(self, index, compute):
        values = compute()
        self.values += len(values)
        return [self.how(value) for value in values]


@pytest.mark.parametrize("how", [lambda x: x * x.mean().item(), lambda x: x + torch.ones(x.shape)])
def test_a_bad_control_is_caught(gpu, pipe, how):
    unet, control = gpu.holds(pipe.unet), Bad(how)
    text = torch.zeros(1, 77, unet.config.cross_attention_dim)
    with gpu, torch.no_grad(), attach(unet, units_of(unet, "blocks"), control):
        call = [x.to(CUDA) for x in (torch.zeros(1, 4, 8, 8), torch.tensor(5), text)]
        try:
            unet(*call)
        except RuntimeError as error:
            assert "same device" in str(error)
        else:
            assert gpu.reads["test_pretended_gpu.py"] == control.values > 0


@pytest.mark.parametrize("name, hold", [("sd-1.5", "value"), ("sd-1.5", "prediction"), ("dit-xl-2-256", "value")])
def test_a_schedule_waits_at_the_first_call_only(gpu, pipe, name, hold):
    pipe, steps = pipe if name == "sd-1.5" else tiny(name), 4
    grid, held = laid_out(pipe, steps), gpu.holds(pipe)
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[1], on[2, ::2] = False, False
    which = {"prompt": ["lion"]} if name == "sd-1.5" else {"class_labels": [7]}

    def draw(pipe):
        noise = [torch.Generator().manual_seed(0)]
        with grid.schedule(on, hold=hold).applied(pipe) as control:
            made = pipe(**which, num_inference_steps=steps, generator=noise, output_type="pt").images
            assert control.called == int(grid.calls(on).sum())
        return made

    with gpu:
        found = draw(held)
    # One reading compares the sampler's timesteps with the schedule's, one finds the row of the first call.
    reads = gpu.mine(gpu.reads)
    assert set(reads) == {"pruning_lib/steps/replay.py"} and sum(reads.values()) <= 2
    assert not gpu.mine(gpu.uploads)
    torch.testing.assert_close(torch.as_tensor(real(found)), torch.as_tensor(draw(pipe)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("loss, dtype", [("ssim", torch.float32), ("latent", torch.float16)])
def test_gates_wait_as_often_however_many_they_are(gpu, pipe, loss, dtype):
    pipe = copy.deepcopy(pipe)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.to(dtype)
    grid = laid_out(pipe, 2)
    gates = torch.full(grid.shape, 0.5)

    def slopes(pipe):
        with SuperNet(pipe, grid, guidance_scale=1) as net:
            return loss_and_gradient(net, gates, ["lion"], [0], loss=loss)

    with gpu:
        value, slope = slopes(gpu.holds(pipe))
    assert sum(gpu.mine(gpu.reads).values()) <= 7 < grid.shape[1]
    assert sum(gpu.mine(gpu.uploads).values()) <= 2
    assert slope.isfinite().all() and slope[1].any()
    if dtype == torch.float32:
        wanted, slope_wanted = slopes(pipe)
        assert value == pytest.approx(wanted, rel=1e-2, abs=1e-6)
        torch.testing.assert_close(slope, slope_wanted, rtol=0.05, atol=1e-3 * slope_wanted.abs().max().item())


def test_operators_are_scored_with_one_reading_per_batch(gpu, pipe):
    chosen = ["down_blocks.1.resnets.0", "mid_block.attentions.0"]
    how = {"num_latents": 2, "steps": 1, "guidance_scale": 1}
    held, found = gpu.holds(pipe), find_operators(pipe.unet)
    operators = type(found)([op for op in found if op.path in chosen], found.base)
    with gpu:
        scores = score_operators(held, ["lion"], operators=operators, progress=False, **how)
        reads = gpu.mine(gpu.reads)
        added = contributions(held, ["lion"], operators=operators, **{**how, "steps": 2})
    assert reads.pop("pruning_lib/sampling.py") == 1 + len(chosen)
    assert set(reads) == {"pruning_lib/operators/scores.py"}  # once per run: which weights are scored
    assert gpu.reads["pruning_book/rivals/rankings.py"] == len(chosen)
    wanted = score_operators(pipe, ["lion"], operators=operators, progress=False, **how)
    for path in chosen:
        assert scores[path].avg_dist == pytest.approx(wanted[path].avg_dist, rel=1e-3)
    assert added == pytest.approx(contributions(pipe, ["lion"], operators=operators, **{**how, "steps": 2}), rel=1e-3)


@pytest.mark.parametrize("scope", [*SCOPES, "2:4"])
def test_masks_lie_beside_the_weights_and_are_the_same(gpu, scope):
    plain = small_unet()
    held = gpu.holds(plain)
    before = {name: real(weight).clone() for name, weight in held.named_parameters()}

    def prune(unet):
        return prune_nm(unet) if scope == "2:4" else prune_magnitude(unet, 0.5, scope=scope)

    with gpu:
        pruned = prune(held)
        pruned.reapply()
        assert {mask.device for mask in pruned.masks.values()} == {CUDA}
        masks = {name: real(mask) for name, mask in pruned.masks.items()}
        pruned.restore()
    wanted = prune(plain).masks
    assert masks.keys() == wanted.keys() and all(torch.equal(masks[name], wanted[name]) for name in wanted)
    assert all(torch.equal(real(weight), before[name]) for name, weight in held.named_parameters())


def test_training_with_a_teacher_and_an_average(gpu, tmp_path):
    student, teacher, torch_ = small_unet(0), small_unet(1), torch.Generator().manual_seed(2)
    data = [torch.randn(shape, generator=torch_) for shape in ((4, 4, 16, 16), (4, 5, 128), (1, 5, 128))]

    def train(student, teacher, device):
        task = DenoisingTask(*(x.to(device) for x in data), DDPMScheduler())
        listens = Distillation(teacher, output=1, features=1)
        config = FitConfig(steps=3, lr=1e-3, device=str(device), log_every=10)
        fit(student, lambda g: listens.loss(student, task.draw(g, 2)), config, tmp_path / str(device), progress=False)
        return student.state_dict()

    held = gpu.holds(student), gpu.holds(teacher)
    with gpu:
        found = {name: real(weight) for name, weight in train(*held, CUDA).items()}
    wanted = train(student, teacher, torch.device("cpu"))
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-4
    assert sum(gpu.mine(gpu.reads).values()) <= 3 * 4 + 2 + len(wanted) * 8  # a step: 4; the checkpoint: all


def test_pictures_are_compared_where_the_first_ones_are(gpu):
    a, b = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()
    vectors = nn.functional.normalize(a.flatten(1), dim=1)
    for measure in (ssim, psnr):
        with gpu:
            values = [measure(a.to(CUDA), other) for other in (b, b.to(CUDA))]
        assert all(value.is_cuda for value in values)
        torch.testing.assert_close(real(values[0]), measure(a, b))

    class Judge:
        def embed_images(self, images):
            return vectors.to(CUDA)

        embed_texts = embed_images

    with gpu:
        assert clip_score(Judge(), a.to(CUDA), ["x", "y"]).tolist() == pytest.approx([100, 100])


def test_ssim_is_not_rounded_under_autocast():
    a = torch.linspace(0.1, 0.9, 32).expand(1, 3, 32, 32)
    b = a + 0.005 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ssim(a, b)
    assert torch.equal(rounded, ssim(a, b)) and rounded < 1
