"""The library on a pretended GPU: no two devices meet, and values are read where that is worth a wait."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from on_gpu import STEPS, draw, some
from pretended import CUDA, PretendedGPU, real
from small_pipe import small_unet
from tiny import laid_out, tiny

from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.finetuning.finetune import Distillation
from pruning_lib.finetuning.loop import FitConfig, fit
from pruning_lib.operators.find import find_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.steps.replay import HOLDS
from pruning_lib.steps.supernet import SuperNet, loss_and_gradient


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr("pruning_lib.finetuning.loop.check_device", torch.device)
    return PretendedGPU()


READ = (lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.sum().item(), lambda x: x[x > 0])
FINE = (lambda x: x + torch.tensor(1.0), lambda x: x[0], torch.zeros_like)
WRONG = (lambda x: x + torch.ones(2), lambda x: torch.ones(2, 2)[x.long()])


def test_what_it_pretends(gpu):
    for what in (*READ, *FINE):
        with gpu:
            what(torch.ones(2, 2, device="cuda:0"))
        assert gpu.waits == ({__name__: 1} if what in READ else {})
    for what in WRONG:
        with gpu, pytest.raises(RuntimeError, match="same device"):
            what(torch.ones(2, 2, device="cuda:0"))


@pytest.mark.parametrize("hold", HOLDS)
def test_a_schedule_waits_at_the_first_call_only(gpu, hold):
    pipe = tiny()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    held, schedule = gpu.holds(pipe), some(laid_out(pipe, STEPS)).holding(hold)
    with gpu, schedule.applied(held):
        found = draw(held, output_type="pt")
    # One reading compares the sampler's timesteps with the schedule's, one finds the row of the first call.
    assert set(gpu.waits) == {"pruning_lib.steps.replay"} and gpu.waits.total() <= 2
    with schedule.applied(pipe):
        torch.testing.assert_close(real(found), draw(pipe, output_type="pt"), atol=1e-3, rtol=0)


def test_gates_wait_as_often_however_many_they_are(gpu):
    pipe = tiny()
    grid = laid_out(pipe, 2)

    def slopes(pipe):
        with SuperNet(pipe, grid, guidance_scale=1) as net:
            return loss_and_gradient(net, torch.full(grid.shape, 0.5), ["lion"], [0], loss="l1")

    with gpu:
        value, slope = slopes(gpu.holds(pipe))
    assert gpu.waits.total() <= 9 < grid.shape[1]
    wanted = slopes(pipe)
    assert value == pytest.approx(wanted[0], rel=1e-2) and slope[1].any()
    torch.testing.assert_close(slope, wanted[1], rtol=0.05, atol=1e-3 * wanted[1].abs().max().item())


def test_operators_are_scored_with_one_reading_per_batch(gpu):
    pipe = tiny()
    how = {"operators": find_operators(pipe.unet, ["upsampler", "downsampler"]), "num_latents": 2, "steps": 1}
    with gpu:
        scores = score_operators(gpu.holds(pipe), ["lion"], progress=False, **how)
    assert gpu.waits.pop("pruning_lib.operators.score") == 1 + len(how["operators"])
    assert set(gpu.waits) == {"pruning_lib.operators.scores"}  # once per run: which weights are scored
    assert scores.values() == pytest.approx(score_operators(pipe, ["lion"], progress=False, **how).values(), rel=1e-3)


def test_training_with_a_teacher_and_an_average(gpu, tmp_path):
    student, teacher, chance = small_unet(0), small_unet(1), torch.Generator().manual_seed(2)
    data = [torch.randn(shape, generator=chance) for shape in ((4, 4, 16, 16), (4, 5, 128), (1, 5, 128))]

    def train(student, teacher, device):
        task = DenoisingTask(*(x.to(device) for x in data), DDPMScheduler())
        listens = Distillation(teacher, output=1, features=1)
        config = FitConfig(steps=2, lr=1e-3, device=str(device), log_every=10)
        fit(student, lambda g: listens.loss(student, task.draw(g, 2)), config, tmp_path / str(device), progress=False)
        return student.state_dict()

    held = gpu.holds(student), gpu.holds(teacher)
    with gpu:
        found = {name: real(weight) for name, weight in train(*held, CUDA).items()}
    wanted = train(student, teacher, torch.device("cpu"))
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-4
    assert gpu.waits.total() <= 2 * 4 + 2 + len(wanted) * 8  # a step: 4; the checkpoint: all
