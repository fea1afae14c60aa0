"""Latents and pictures: those of the pipeline itself, each with noise of its own, and with gradients if wanted."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from tiny_pipes import PIPES, PROMPTS, pipe_of

from pruning_lib.operators.score import LatentSampler
from pruning_lib.sampling import Unroll, pictures

EXTRA = {"text, transformer": {"options": {"clean_caption": False, "use_resolution_binning": False}}}


def how(name: str, steps: int = 2) -> dict:
    """Return the arguments of a sampler for a pipeline of `PIPES`."""
    guidance = {"guidance_scale": 2.0} if name in PROMPTS else {}
    return {"steps": steps, **guidance, **EXTRA.get(name, {})}


def sampler(name: str, pipe, **options) -> LatentSampler:
    return LatentSampler(pipe, PROMPTS.get(name), **{"num_latents": 3, **how(name), **options})


SCHEDULERS = [None, EulerDiscreteScheduler(), HeunDiscreteScheduler(), PNDMScheduler(skip_prk_steps=True)]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_latents_end_where_the_pipeline_ends(scheduler) -> None:
    pipe = pipe_of("text")
    pipe.scheduler = scheduler or pipe.scheduler
    noise = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    wanted = pipe(PROMPTS["text"], generator=noise, **options).images
    assert torch.equal(sampler("text", pipe, steps=3, seed=5).draw(), wanted) and len(wanted.unique(dim=0)) == 3


@pytest.mark.parametrize("name", PIPES)
def test_neither_the_batch_nor_chance_changes_them_and_nothing_is_decoded(name: str) -> None:
    pipe = pipe_of(name)
    for part in ("vae", "vqvae"):
        if hasattr(pipe, part):
            getattr(pipe, part).decode = None  # a call would fail
    whole = sampler(name, pipe, batch=3).draw()
    torch.manual_seed(99)  # random steps must not follow the global state
    parts = sampler(name, pipe, batch=2).draw()
    assert whole.shape == (3, 4, 8, 8) and whole.isfinite().all() and whole.std() > 0.1
    assert torch.allclose(whole, parts, atol=1e-4)
    assert not torch.allclose(whole, sampler(name, pipe, batch=3, seed=1).draw(), atol=1e-2)
    again = LatentSampler(pipe, **sampler(name, pipe).arguments(), batch=3)
    assert torch.equal(again.draw(), whole) and again.settings() == sampler(name, pipe, batch=2).settings()


@pytest.mark.parametrize("name", ["text", "classes", "unconditional latents"])
def test_pictures_are_the_pipelines_own(name: str) -> None:
    pipe = pipe_of(name)
    pipe.scheduler = DDIMScheduler()
    unroll, prompts = Unroll(pipe, **how(name)), PROMPTS.get(name, [0, 0, 0])
    images = pipe(**unroll.asked(prompts, [4, 9, 2]), output_type="np").images
    own = torch.from_numpy(images).permute(0, 3, 1, 2)
    found = pictures(pipe, prompts, [4, 9, 2], batch=2, **how(name))
    assert found.shape == own.shape and found.dtype == torch.float32 and torch.allclose(found, own, atol=1e-4)
    with torch.no_grad():
        decoded = unroll.pictures(unroll.latents(prompts, [4, 9, 2]))
    assert torch.allclose(decoded, own, atol=1e-4), "decoding for training is decoding for the eye"


def test_gradients_reach_the_weights_through_all_steps() -> None:
    pipe = pipe_of("text")
    weight = pipe.unet.requires_grad_(False).conv_in.weight.requires_grad_()
    unroll, ends = Unroll(pipe, **how("text")), []

    def loss() -> torch.Tensor:
        return unroll.pictures(unroll.latents(["lion"], [0])).double().square().mean()

    loss().backward()
    with torch.no_grad():
        way = weight.grad / weight.grad.norm()
        for step in (0.01, -0.02):
            weight += step * way
            ends.append(loss().item())
    assert (ends[0] - ends[1]) / 0.02 == pytest.approx(weight.grad.norm().item(), rel=0.05)


def test_texts_are_encoded_once_and_taken_in_turn_and_the_pipeline_is_left_as_it_was() -> None:
    pipe, calls = pipe_of("text"), []
    pipe.set_progress_bar_config(leave=False)
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    drawn = sampler("text", pipe, num_latents=5, batch=4)
    first, second = drawn.draw(), drawn.draw()
    assert torch.equal(first, second) and len(calls) == 4, "text and empty text for each of two batches"
    same = LatentSampler(pipe, [PROMPTS["text"][1]], num_latents=5, **how("text")).draw()
    close = [torch.allclose(a, b, atol=1e-4) for a, b in zip(first, same, strict=True)]
    assert close == [False, True, False, False, True], "latent i has prompt i modulo 3"
    pipe.unet.forward = None
    with pytest.raises(TypeError):
        drawn.draw()
    assert pipe._progress_bar_config == {"leave": False}
    assert "step" not in vars(pipe.scheduler) and "encode_prompt" not in vars(pipe)


def test_what_cannot_be_asked_is_refused() -> None:
    pipes = {name: pipe_of(name) for name in ("text", "classes", "unconditional")}
    for name, prompts, change, says in [
        ("text", "lion", {}, "Give a list"),
        ("text", [3], {}, "holds 3"),
        ("classes", None, {}, r"\[207, 360\]"),
        ("unconditional", ["lion"], {}, "unconditional"),
        ("text", ["lion"], {"num_latents": 1}, "num_latents=1"),
        ("text", ["lion"], {"batch": 0.5}, "batch=0.5"),
        ("unconditional", None, {"guidance_scale": 3.0}, "takes no 'guidance_scale'"),
        ("text", ["lion"], {"options": {"hight": 64}}, "Did you mean 'height'"),
    ]:
        with pytest.raises(ValueError, match=says):
            LatentSampler(pipes[name], prompts, **change)
    for prompts, seeds, says in [(["lion"], [0], "holds 'lion'.*range"), ([0], [0, 1], "2 seeds for 1 prompts")]:
        with pytest.raises(ValueError, match=says):
            pictures(pipes["unconditional"], prompts, seeds, steps=2)
    with pytest.raises(TypeError, match="looks like a denoiser"):
        Unroll(pipes["text"].unet, steps=2)
