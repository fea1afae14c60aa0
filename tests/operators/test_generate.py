"""Latents: those of the pipeline itself, the same for every batch size, without a picture, texts encoded once."""

from __future__ import annotations

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from tiny_pipes import PIPES, PROMPTS, pipe_of

from pruning_lib.sampling import LatentSampler

EXTRA = {"text, transformer": {"options": {"clean_caption": False, "use_resolution_binning": False}}}


def sampler(name: str, pipe=None, **options) -> LatentSampler:
    options = {"num_latents": 3, "steps": 2, **EXTRA.get(name, {}), **options}
    if name in PROMPTS:
        options.setdefault("guidance_scale", 2.0)
    return LatentSampler(pipe or pipe_of(name), PROMPTS.get(name), **options)


def test_latents_are_those_of_the_pipeline() -> None:
    pipe = pipe_of("text")
    noise = [torch.Generator().manual_seed(5 + i) for i in range(3)]
    mine = sampler("text", pipe, seed=5).draw()
    wanted = pipe(
        PROMPTS["text"], generator=noise, num_inference_steps=2, guidance_scale=2.0, output_type="latent"
    ).images
    assert torch.equal(mine, wanted) and len(mine.unique(dim=0)) == 3


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


SCHEDULERS = [EulerDiscreteScheduler(), HeunDiscreteScheduler(), PNDMScheduler(skip_prk_steps=True)]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_other_schedulers_end_where_the_pipeline_ends(scheduler) -> None:
    pipe = pipe_of("text")
    pipe.scheduler = scheduler
    noise = [torch.Generator().manual_seed(i) for i in range(3)]
    wanted = pipe(
        PROMPTS["text"], generator=noise, num_inference_steps=3, guidance_scale=2.0, output_type="latent"
    ).images
    assert torch.equal(sampler("text", pipe, steps=3).draw(), wanted)


def test_texts_are_encoded_once_and_taken_in_turn() -> None:
    pipe, calls = pipe_of("text"), []
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    drawn = sampler("text", pipe, num_latents=5, batch=4)
    first, second = drawn.draw(), drawn.draw()
    assert torch.equal(first, second)
    assert len(calls) == 4, "text and empty text for each of two batches"
    same = LatentSampler(pipe, [PROMPTS["text"][1]], num_latents=5, steps=2, guidance_scale=2.0).draw()
    close = [torch.allclose(a, b, atol=1e-4) for a, b in zip(first, same, strict=True)]
    assert close == [False, True, False, False, True], "latent i has prompt i modulo 3"


def test_the_pipeline_is_left_as_it_was() -> None:
    pipe = pipe_of("text")
    pipe.set_progress_bar_config(leave=False)
    drawn = sampler("text", pipe)
    drawn.draw()
    pipe.unet.forward = None
    with pytest.raises(TypeError):
        drawn.draw()
    assert pipe._progress_bar_config == {"leave": False}
    assert "step" not in vars(pipe.scheduler) and "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize(
    ("name", "prompts", "change", "says"),
    [
        ("text", [], {}, "at least one"),
        ("text", None, {}, "draws from texts"),
        ("text", "lion", {}, "Give a list"),
        ("text", [3], {}, "holds 3"),
        ("classes", ["lion"], {}, "numbers of classes"),
        ("classes", None, {}, r"\[207, 360\]"),
        ("unconditional", ["lion"], {}, "unconditional"),
        ("text", ["lion"], {"num_latents": 1}, "no standard deviation"),
        ("text", ["lion"], {"steps": 0}, "steps=0"),
        ("text", ["lion"], {"batch": 0.5}, "batch=0.5"),
        ("text", ["lion"], {"seed": -1}, "seed=-1"),
        ("unconditional", None, {"guidance_scale": 3.0}, "takes no guidance_scale"),
        ("text", ["lion"], {"options": {"hight": 64}}, "Did you mean 'height'"),
    ],
)
def test_wrong_arguments_are_refused(name, prompts, change, says) -> None:
    with pytest.raises(ValueError, match=says):
        LatentSampler(pipe_of(name), prompts, **change)


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(TypeError, match="looks like a denoiser"):
        LatentSampler(pipe_of("text").unet, ["lion"])
