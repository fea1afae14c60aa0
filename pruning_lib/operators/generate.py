"""Latents of a pipeline for fixed seeds, so that only what was changed in the denoiser can make a difference.

The latent is what the scheduler's last step returns: no picture is decoded, and pipelines that offer no latents give
theirs all the same.  Texts are encoded once.  Latent i has its own generator, so the batch size does not change noise.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._text import nearest
from ..measure.latents import Finished, check_prompts, ends_with_latents, no_progress_bar, prompt_argument
from .denoiser import denoiser_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["LatentSampler"]


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
        self, pipe: DiffusionPipeline, prompts: Sequence[str] | Sequence[int] | None, *, num_latents: int = 16,
        steps: int = 10, guidance_scale: float | None = None, seed: int = 0, batch: int = 16,
        options: Mapping[str, object] | None = None,
    ):  # fmt: skip
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
            except Finished as finished:
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
