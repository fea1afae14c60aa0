"""The latents that a pipeline's generation ends with, whatever the pipeline returns.

They are what the sampler's last step returns.  No picture is decoded, and pipelines that offer no latents give theirs
all the same.

Latents of a pipeline for fixed seeds, so that only what was changed in the denoiser can make a difference.

The latent is what the scheduler's last step returns: no picture is decoded, and pipelines that offer no latents give
theirs all the same.  Texts are encoded once.  Latent i has its own generator, so the batch size does not change noise.

A generation as one differentiable function: from prompts and seeds to the last latents, and on to pictures.

The pipeline itself runs, with its own text encoding, guidance and sampler; only the `torch.no_grad` around its call is
left out.  What the sampler's last step returns are the latents, so pipelines that offer no latents give theirs too.

Loading a pipeline without progress bars and notes: a reader asked for a model, not for a log.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from .checks import nearest
from .denoisers import denoiser_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "SamplingFinished",
    "LatentSampler",
    "Unroll",
    "check_prompts",
    "ends_with_latents",
    "no_progress_bar",
    "prompt_argument",
    "quietly",
]


class SamplingFinished(Exception):
    """Ends a pipeline's call after its last step.

    Attributes:
        latents: what that step returned; with guidance some pipelines carry each twice.
    """

    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = latents


@contextmanager
def ends_with_latents(pipe: DiffusionPipeline, noise: list[torch.Generator]) -> Iterator[None]:
    """Raise `SamplingFinished` from the scheduler's last step, inside a `with` block.

    Args:
        pipe: a pipeline that calls `scheduler.step` once for each of its timesteps.
        noise: one generator per latent; steps that draw noise draw from these, also where the pipeline hands them none.
    """
    scheduler, step, calls = pipe.scheduler, pipe.scheduler.step, 0
    parameters = inspect.signature(step).parameters

    @functools.wraps(step)
    def last(*args, **kwargs):
        nonlocal calls
        if "generator" in parameters and kwargs.get("generator") is None:
            sample = kwargs["sample"] if "sample" in kwargs else args[2]
            kwargs["generator"] = noise * (len(sample) // len(noise))
        result = step(*args, **kwargs)
        calls += 1
        if calls == len(scheduler.timesteps):
            raise SamplingFinished(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    scheduler.step = last
    try:
        yield
    finally:
        del scheduler.step


@contextmanager
def no_progress_bar(pipe: DiffusionPipeline) -> Iterator[None]:
    """Switch a pipeline's progress bar off inside a `with` block."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before


def prompt_argument(pipe: DiffusionPipeline, taken: Mapping[str, object]) -> str:
    """Return the argument by which a pipeline is asked for several latents.

    Args:
        pipe: a diffusers pipeline.
        taken: the parameters of its call.

    Raises:
        TypeError: it takes neither prompts nor numbers of classes nor a batch size.
    """
    for name in ("prompt", "class_labels", "batch_size"):
        if name in taken:
            return name
    raise TypeError(
        f"{type(pipe).__name__} takes neither prompt nor class_labels nor batch_size, so it is not known how to ask "
        "it for several latents."
    )


def check_prompts(pipe: DiffusionPipeline, prompts: object, argument: str) -> tuple | None:
    """Return what several latents are asked for by, after checking that the pipeline draws from such.

    Args:
        pipe: a diffusers pipeline.
        prompts: texts or numbers of classes; None or empty for a pipeline that takes neither.
        argument: as `prompt_argument` returns it.

    Returns:
        The prompts; None for a pipeline that takes none.

    Raises:
        ValueError: none where some are needed, some where none are taken, one text instead of a list, or another kind.
    """
    name = type(pipe).__name__
    if argument == "batch_size":
        if prompts is not None and len(prompts):
            raise ValueError(f"{name} is unconditional and takes no prompts. Give prompts=None.")
        return None
    text = argument == "prompt"
    wanted, example = ("texts", "['lion', 'pizza']") if text else ("numbers of classes", "[207, 360]")
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence) or not prompts:
        raise ValueError(
            f"prompts={prompts!r}, but {name} draws from {wanted}. Give a list of at least one, such as {example}."
        )
    wrong = [p for p in prompts if not isinstance(p, str if text else int)]
    if wrong:
        raise ValueError(f"prompts holds {wrong[0]!r}, but {name} draws from {wanted}, such as {example}.")
    return tuple(prompts)


class LatentSampler:
    """Draws the same latents again and again.

    Args:
        pipe: a diffusers pipeline with a denoiser and a scheduler; text-to-image, class-conditional or unconditional.
        prompts: texts, or numbers of classes, taken in turn; None for an unconditional pipeline.
        num_latents: how many, >= 2.
        steps: denoising steps, >= 1.
        guidance_scale: of the pipeline's call. Default: the pipeline's own.
        seed: latent i starts from noise of seed `seed` + i.
        batch: latents at a time, >= 1. A pipeline with guidance calls its denoiser with twice as many.
        options: further arguments of the pipeline's call, such as `{"height": 256}`.

    Raises:
        TypeError: not a pipeline, or one that takes neither prompts nor class labels nor a batch size.
        ValueError: prompts that the pipeline does not take, or numbers out of range.

    Example:
        >>> LatentSampler(pipe, ["lion", "pizza"], num_latents=4, steps=10).draw().shape
        torch.Size([4, 4, 16, 16])
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence[str] | Sequence[int] | None,
        *,
        num_latents: int = 16,
        steps: int = 10,
        guidance_scale: float | None = None,
        seed: int = 0,
        batch: int = 16,
        options: Mapping[str, object] | None = None,
    ):
        denoiser_of(pipe)
        _check_number("num_latents", num_latents, 2, ": of fewer latents there is no standard deviation")
        _check_number("steps", steps, 1)
        _check_number("batch", batch, 1)
        _check_number("seed", seed, 0)
        self.pipe, self.batch, self.seed, self.num_latents = pipe, batch, seed, num_latents
        taken = inspect.signature(type(pipe).__call__).parameters
        self.argument = prompt_argument(pipe, taken)
        self.prompts = check_prompts(pipe, prompts, self.argument)
        self.call = {"num_inference_steps": steps, **(options or {})}
        if guidance_scale is not None:
            self.call["guidance_scale"] = guidance_scale
        for name in self.call:
            if name not in taken:
                raise ValueError(f"{type(pipe).__name__} takes no {name}. {nearest(name, taken)}")
        self._texts: dict[tuple[int, int], object] = {}

    @property
    def parts(self) -> list[range]:
        """The latents of each batch."""
        starts = range(0, self.num_latents, self.batch)
        return [range(start, min(start + self.batch, self.num_latents)) for start in starts]

    def settings(self) -> dict[str, object]:
        """Return what decides the latents besides the models; the batch size does not."""
        scheduler = self.pipe.scheduler
        plain = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        return {
            "pipeline": type(self.pipe).__name__,
            "scheduler": {"class": type(scheduler).__name__, **plain},
            "prompts": None if self.prompts is None else list(self.prompts),
            "num_latents": self.num_latents,
            "seed": self.seed,
            "call": dict(self.call),
        }

    def arguments(self) -> dict[str, object]:
        """Return the arguments that make a sampler of the same latents for the same pipeline."""
        options = dict(self.call)
        return {
            "prompts": None if self.prompts is None else list(self.prompts),
            "num_latents": self.num_latents,
            "steps": options.pop("num_inference_steps"),
            "guidance_scale": options.pop("guidance_scale", None),
            "seed": self.seed,
            "options": options,
        }

    def draw(self) -> Tensor:
        """Return the latents, float32 `[num_latents, ...]` on the CPU."""
        return torch.cat([self.draw_part(index) for index in range(len(self.parts))])

    def draw_part(self, index: int, around: AbstractContextManager | None = None) -> Tensor:
        """Return the latents of one batch; the pipeline is called inside the context `around`."""
        part = self.parts[index]
        noise = [torch.Generator().manual_seed(self.seed + i) for i in part]
        which: dict[str, object] = {"batch_size": len(part)}
        if self.prompts is not None:
            which = {self.argument: [self.prompts[i % len(self.prompts)] for i in part]}
        with (
            no_progress_bar(self.pipe),
            self._encoded_once(index),
            ends_with_latents(self.pipe, noise),
            around or nullcontext(),
        ):
            try:
                self.pipe(**which, generator=noise, **self.call)
            except SamplingFinished as finished:
                latents = finished.latents[: len(part)]  # with guidance some pipelines carry each twice
                return latents.float().cpu()
            finally:
                self.pipe.maybe_free_model_hooks()  # what the pipeline itself does at its end
        raise TypeError(
            f"{type(self.pipe).__name__} does not call scheduler.step once for each of its timesteps, so its last "
            "latents cannot be told."
        )

    @contextmanager
    def _encoded_once(self, index: int) -> Iterator[None]:
        encode = getattr(self.pipe, "encode_prompt", None)
        if encode is None:
            yield
            return
        calls = 0

        @functools.wraps(encode)
        def remembered(*args, **kwargs):
            nonlocal calls
            key, calls = (index, calls), calls + 1
            if key not in self._texts:
                self._texts[key] = encode(*args, **kwargs)
            return self._texts[key]

        self.pipe.encode_prompt = remembered
        try:
            yield
        finally:
            del self.pipe.encode_prompt


def _check_number(name: str, value: object, least: int, why: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}; it must be a whole number >= {least}{why}.")


class Unroll:
    """Draws latents of a pipeline, with gradients where they are asked for.

    Gradients flow while autograd is on, as it is by default, and reach whatever hooks put into the denoiser.

    Args:
        pipe: a diffusers pipeline that takes prompts, numbers of classes, or nothing.
        steps: `num_inference_steps`, >= 1.
        guidance_scale: of the pipeline's call. Default: the pipeline's own.
        options: other arguments of the pipeline's call, for example {"height": 512, "width": 512}.

    Raises:
        TypeError: a pipeline that cannot be asked for several latents.
        ValueError: an argument that the pipeline does not take, or numbers out of range.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        *,
        steps: int,
        guidance_scale: float | None = None,
        options: Mapping[str, object] | None = None,
    ):
        self._run = inspect.unwrap(type(pipe).__call__)  # without torch.no_grad
        takes = inspect.signature(self._run).parameters
        self.pipe, self.argument = pipe, prompt_argument(pipe, takes)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"steps={steps!r}; it must be a whole number >= 1.")
        self.call: dict[str, object] = {"num_inference_steps": steps}
        if guidance_scale is not None:
            self.call["guidance_scale"] = float(guidance_scale)
        self.call |= dict(options or {})
        for name in self.call:
            if name not in takes:
                raise ValueError(f"{type(pipe).__name__} takes no {name!r}. {nearest(name, list(takes))}")

    def check(self, prompts: object) -> list:
        """Return prompts as a list, after checking that the pipeline draws from such.

        Raises:
            ValueError: none, one text instead of a list, or of the wrong kind; see `measure.latents.check_prompts`.
        """
        if self.argument != "batch_size":
            return list(check_prompts(self.pipe, prompts, self.argument))
        if not isinstance(prompts, Sequence) or not prompts or not all(isinstance(p, int) for p in prompts):
            raise ValueError(
                f"prompts={prompts!r}, but {type(self.pipe).__name__} is unconditional. Give one number for each "
                "latent, such as range(4)."
            )
        return list(prompts)

    def seeds(self, prompts: Sequence, seeds: Sequence[int] | None) -> list[int]:
        """Return one seed for each prompt: those given, or 1000, 1001, ...

        Raises:
            ValueError: another number of seeds than of prompts.
        """
        seeds = list(range(1000, 1000 + len(prompts))) if seeds is None else list(seeds)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one for each.")
        return seeds

    def latents(self, prompts: Sequence, seeds: Sequence[int]) -> Tensor:
        """Draw.

        Args:
            prompts: n texts or numbers of classes; of a pipeline without either, n numbers that are not looked at.
            seeds: n seeds; latent i starts from noise of seed i, whatever stands beside it.

        Returns:
            `[n, ...]` in the denoiser's type, with a graph behind it if gates with gradients were in the way.
        """
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        which = len(noise) if self.argument == "batch_size" else list(prompts)
        with no_progress_bar(self.pipe), ends_with_latents(self.pipe, noise):
            try:
                self._run(self.pipe, **{self.argument: which}, generator=noise, **self.call)
            except SamplingFinished as finished:
                return finished.latents[: len(noise)]  # with guidance some pipelines carry each twice
            finally:
                self.pipe.maybe_free_model_hooks()
        raise TypeError(
            f"{type(self.pipe).__name__} does not call scheduler.step once for each of its timesteps, so its last "
            "latents cannot be told."
        )

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents, differentiably.

        Returns:
            Floats in [0, 1], `[n, 3, h, w]`, of the autoencoder's type; pipelines without one draw pixels themselves.
        """
        vae = getattr(self.pipe, "vae", None) or getattr(self.pipe, "vqvae", None)
        if not isinstance(vae, nn.Module):
            return (latents / 2 + 0.5).clamp(0, 1)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scaled = latents.to(vae.dtype) / (getattr(vae.config, "scaling_factor", None) or 1.0) + shift
        return (vae.decode(scaled, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back progress bars and notes about optional packages: a reader asked for a model, not for a log."""
    old = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled(), diffusers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # the newest diffusers prefers `dtype`; the older ones we also support know only `torch_dtype`
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(old)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            diffusers_logging.enable_progress_bar()
