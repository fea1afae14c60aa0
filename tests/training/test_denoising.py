"""The denoising objective: its target, its randomness, and what it accepts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.finetuning.denoising import DenoisingTask, noise_schedule, noisy_batch


class Spy(nn.Module):
    """Answers with 1/4 and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(0.25))

    def forward(self, noisy, t, text):
        self.noisy, self.t, self.text = noisy, t, text
        return SimpleNamespace(sample=self.answer.expand_as(noisy))


CLEAN = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))


def batch(schedule=None, seed=0, clean=CLEAN, **options):
    text, nothing = torch.ones(len(clean), 5, 6), torch.zeros(1, 5, 6)
    generator = torch.Generator().manual_seed(seed)
    return noisy_batch(schedule or DDPMScheduler(), clean, text, nothing, generator, **options)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_target_follows_the_scheduler(kind):
    schedule, unet = DDPMScheduler(prediction_type=kind), Spy()
    loss = batch(schedule).loss(unet)
    generator = torch.Generator().manual_seed(0)  # dropped captions, timesteps, noise, in this order
    torch.rand(4, generator=generator)
    t = ((torch.arange(4) + torch.rand(4, generator=generator)) * 250).long()
    noise = torch.randn(CLEAN.shape, generator=generator)
    a = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    target = {"epsilon": noise, "sample": CLEAN, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * CLEAN}[kind]
    assert torch.allclose(loss, (0.25 - target).square().mean(), atol=1e-6) and loss.requires_grad
    assert torch.allclose(unet.noisy, a.sqrt() * CLEAN + (1 - a).sqrt() * noise, atol=1e-6)
    assert torch.equal(unet.t, t)


def test_captions_are_dropped_at_the_rate_asked_for_and_a_batch_covers_all_noise_levels():
    seen = torch.cat([batch(seed=seed, caption_dropout=0.25).text.mean((1, 2)) for seed in range(200)])
    assert set(seen.tolist()) == {0.0, 1.0} and 1 - seen.mean() == pytest.approx(0.25, abs=0.05)
    drawn = batch(clean=torch.zeros(8, 2, 3, 3))
    assert (drawn.timesteps // 125).tolist() == list(range(8))
    shared = torch.cat([drawn.share(rank, 3).timesteps for rank in range(3)])
    assert torch.equal(shared.sort().values, drawn.timesteps), "shares make up the batch"


def test_any_sampler_with_noise_levels_will_do():
    levels = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    schedule = noise_schedule(EulerDiscreteScheduler.from_config(levels.config))
    assert torch.equal(schedule.alphas_cumprod, levels.alphas_cumprod)
    assert schedule.config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        noise_schedule(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="prediction_type='flow'"):
        noise_schedule(DDIMScheduler(prediction_type="flow"))


def test_a_task_encodes_as_the_pipeline_does_and_the_model_knows_its_own_pictures():
    pipe = pl.load("emoji-sd")
    images, captions = pb.training_images()[:8], pb.captions()[:8]
    task = DenoisingTask.of(pipe, images, captions)
    wanted = pipe.encode_prompt(captions, "cpu", 1, True)
    assert torch.allclose(task.states, wanted[0], atol=1e-5)
    assert torch.allclose(task.nothing, wanted[1][:1], atol=1e-5)
    shuffled = DenoisingTask(task.latents, task.states.roll(1, 0), task.nothing, task.schedule)
    seeded = torch.Generator().manual_seed
    with torch.no_grad():
        back = pipe.vae.decode(task.latents / pipe.vae.config.scaling_factor).sample
        own, wrong = (t.loss(pipe.unet, seeded(0), 16, caption_dropout=0) for t in (task, shuffled))
    assert (back - (images / 127.5 - 1)).square().mean() < 0.02 and own < wrong / 3
    unet = Spy()
    task.loss_at(unet, 7, seeded(0), 5)
    assert unet.t.tolist() == [7] * 5 and not torch.equal(unet.text[0], task.nothing[0])
    with pytest.raises(ValueError, match="timestep=1000; allowed: 0 to 999"):
        task.loss_at(unet, 1000, torch.Generator(), 2)
    for given, shape, words in (
        (pipe, (2, 3, 64, 64), "2 images and 1 captions"),
        (pipe, (1, 3, 32, 32), "32 x 32 pixels; this pipeline draws 64 x 64"),
        (pipe.unet, (1, 3, 64, 64), "lacks unet"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            DenoisingTask.of(given, torch.zeros(shape), ["a"])
