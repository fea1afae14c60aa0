"""The denoising objective: its target, its randomness, and what it accepts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.finetuning.denoising import DenoisingTask, denoising_loss, noise_schedule, spread_timesteps


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


def drawn(seed: int = 0):
    """Repeat what the loss draws: dropped captions, timesteps, noise."""
    generator = torch.Generator().manual_seed(seed)
    torch.rand(4, generator=generator)
    t = spread_timesteps(4, 1000, generator)
    return t, torch.randn(CLEAN.shape, generator=generator)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_target_follows_the_scheduler(kind):
    schedule, unet = DDPMScheduler(prediction_type=kind), Spy(0.25)
    t, noise = drawn()
    a = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    target = {"epsilon": noise, "sample": CLEAN, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * CLEAN}[kind]
    loss = denoising_loss(unet, schedule, CLEAN, TEXT, NOTHING, torch.Generator().manual_seed(0))
    assert torch.allclose(loss, (0.25 - target).square().mean(), atol=1e-6)
    assert torch.allclose(unet.noisy, a.sqrt() * CLEAN + (1 - a).sqrt() * noise, atol=1e-6)
    assert torch.equal(unet.t, t) and loss.requires_grad


def test_captions_are_dropped_at_the_rate_asked_for():
    unet, schedule, seen = Spy(), DDPMScheduler(), []
    for seed in range(200):
        denoising_loss(unet, schedule, CLEAN, TEXT, NOTHING, torch.Generator().manual_seed(seed), caption_dropout=0.25)
        seen += unet.text.mean((1, 2)).tolist()
    assert set(seen) == {0.0, 1.0} and 1 - sum(seen) / len(seen) == pytest.approx(0.25, abs=0.05)


def test_a_batch_covers_all_noise_levels():
    t = spread_timesteps(8, 1000, torch.Generator().manual_seed(0))
    assert (t // 125).tolist() == list(range(8))
    many = torch.cat([spread_timesteps(8, 1000, torch.Generator().manual_seed(s)) for s in range(500)])
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


class TestTask:
    @pytest.fixture(scope="class")
    def pipe(self):
        return pl.load("emoji-sd")

    def test_it_encodes_as_the_pipeline_does(self, pipe):
        images, captions = pb.training_images()[:3], pb.captions()[:3]
        task = DenoisingTask.of(pipe, images, captions)
        wanted = pipe.encode_prompt(captions, "cpu", 1, True)
        assert torch.allclose(task.states, wanted[0], atol=1e-5)
        assert torch.allclose(task.nothing, wanted[1][:1], atol=1e-5)
        with torch.no_grad():
            back = pipe.vae.decode(task.latents / pipe.vae.config.scaling_factor).sample
        assert (back - (images / 127.5 - 1)).square().mean() < 0.02
        assert task.levels == 1000

    def test_the_trained_model_knows_its_own_pictures(self, pipe):
        task = DenoisingTask.of(pipe, pb.training_images()[:16], pb.captions()[:16])
        shuffled = DenoisingTask(task.latents, task.states.roll(1, 0), task.nothing, task.schedule)
        with torch.no_grad():
            own, wrong = (
                t.loss(pipe.unet, torch.Generator().manual_seed(0), 16, caption_dropout=0) for t in (task, shuffled)
            )
        assert own < wrong / 3

    def test_one_timestep(self, pipe):
        task, unet = DenoisingTask.of(pipe, pb.training_images()[:2], pb.captions()[:2]), Spy()
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
    def test_bad_data(self, pipe, images, captions, words):
        with pytest.raises(ValueError, match=words):
            DenoisingTask.of(pipe, images, captions)

    def test_other_pipelines(self, pipe):
        with pytest.raises(TypeError, match="lacks unet"):
            DenoisingTask.of(pipe.unet, pb.training_images()[:1], ["a"])
