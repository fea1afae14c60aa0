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
    """Answers with a constant and remembers what it was asked."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))

    def forward(self, noisy, t, text):
        self.noisy, self.t, self.text = noisy, t, text
        return SimpleNamespace(sample=self.answer.expand_as(noisy))


CLEAN = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
TEXT, NOTHING = torch.ones(4, 5, 6), torch.zeros(1, 5, 6)


def batch(schedule=None, seed=0, clean=CLEAN, **options):
    text = TEXT[:1].expand(len(clean), -1, -1)
    return noisy_batch(
        schedule or DDPMScheduler(), clean, text, NOTHING, torch.Generator().manual_seed(seed), **options
    )


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_target_follows_the_scheduler(kind):
    schedule, unet = DDPMScheduler(prediction_type=kind), Spy(0.25)
    drawn = batch(schedule)
    generator = torch.Generator().manual_seed(0)  # dropped captions, timesteps, noise, in this order
    torch.rand(4, generator=generator)
    t = ((torch.arange(4) + torch.rand(4, generator=generator)) * 250).long()
    noise = torch.randn(CLEAN.shape, generator=generator)
    a = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    target = {"epsilon": noise, "sample": CLEAN, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * CLEAN}[kind]
    loss = drawn.loss(unet)
    assert torch.allclose(loss, (0.25 - target).square().mean(), atol=1e-6) and loss.requires_grad
    assert torch.allclose(unet.noisy, a.sqrt() * CLEAN + (1 - a).sqrt() * noise, atol=1e-6)
    assert torch.equal(unet.t, t)


def test_captions_are_dropped_at_the_rate_asked_for():
    seen = torch.cat([batch(seed=seed, caption_dropout=0.25).text.mean((1, 2)) for seed in range(200)])
    assert set(seen.tolist()) == {0.0, 1.0} and 1 - seen.mean() == pytest.approx(0.25, abs=0.05)


def test_a_batch_covers_all_noise_levels_and_shares_make_it_up():
    drawn = batch(clean=torch.zeros(8, 2, 3, 3))
    assert (drawn.timesteps // 125).tolist() == list(range(8))
    parts = [drawn.share(rank, 3).timesteps.tolist() for rank in range(3)]
    assert sorted(sum(parts, [])) == drawn.timesteps.tolist() and parts[1] == drawn.timesteps[1::3].tolist()
    many = torch.cat([batch(seed=seed, clean=torch.zeros(8, 1, 1, 1)).timesteps for seed in range(500)])
    assert many.min() < 10 and many.max() > 989 and many.float().mean() == pytest.approx(499.5, abs=5)


def test_any_sampler_with_noise_levels_will_do():
    levels = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    for other in (DDIMScheduler, EulerDiscreteScheduler):
        schedule = noise_schedule(other.from_config(levels.config))
        assert torch.equal(schedule.alphas_cumprod, levels.alphas_cumprod)
        assert schedule.config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        noise_schedule(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="prediction_type='flow'"):
        noise_schedule(DDIMScheduler(prediction_type="flow"))


@pytest.fixture(scope="module")
def pipe():
    return pl.load("emoji-sd")


def test_a_task_encodes_as_the_pipeline_does_and_the_model_knows_its_own_pictures(pipe):
    images, captions = pb.training_images()[:8], pb.captions()[:8]
    task = DenoisingTask.of(pipe, images, captions)
    wanted = pipe.encode_prompt(captions, "cpu", 1, True)
    assert torch.allclose(task.states, wanted[0], atol=1e-5) and task.levels == 1000
    assert torch.allclose(task.nothing, wanted[1][:1], atol=1e-5)
    shuffled = DenoisingTask(task.latents, task.states.roll(1, 0), task.nothing, task.schedule)
    with torch.no_grad():
        back = pipe.vae.decode(task.latents / pipe.vae.config.scaling_factor).sample
        own, wrong = [
            t.loss(pipe.unet, torch.Generator().manual_seed(0), 16, caption_dropout=0) for t in (task, shuffled)
        ]
    assert (back - (images / 127.5 - 1)).square().mean() < 0.02 and own < wrong / 3
    unet = Spy()
    task.loss_at(unet, 7, torch.Generator().manual_seed(0), 5)
    assert unet.t.tolist() == [7] * 5 and not torch.equal(unet.text[0], task.nothing[0])
    with pytest.raises(ValueError, match="timestep=1000; allowed: 0 to 999"):
        task.loss_at(unet, 1000, torch.Generator(), 2)


@pytest.mark.parametrize(
    ("images", "captions", "words"),
    [
        (torch.zeros(2, 3, 64, 64), ["a"], "2 images and 1 captions"),
        (torch.zeros(1, 3, 64, 64), "a", "one string"),
        (torch.zeros(1, 3, 32, 32), ["a"], "32 x 32 pixels; this pipeline draws 64 x 64"),
        (torch.full((1, 3, 64, 64), 2.0), ["a"], r"expected \[0, 1\]"),
    ],
)
def test_data_that_do_not_fit_are_refused(pipe, images, captions, words):
    with pytest.raises(ValueError, match=words):
        DenoisingTask.of(pipe, images, captions)
    with pytest.raises(TypeError, match="lacks unet"):
        DenoisingTask.of(pipe.unet, images, captions)
