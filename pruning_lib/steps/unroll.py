"""A generation as one differentiable function: from prompts and seeds to the last latents, and on to pictures.

The pipeline itself runs, with its own text encoding, guidance and sampler; only the `torch.no_grad` around its call is
left out.  What the sampler's last step returns are the latents, so pipelines that offer no latents give theirs too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._text import nearest
from ..measure.latents import Finished, check_prompts, ends_with_latents, no_progress_bar, prompt_argument

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Unroll"]


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
        self, pipe: DiffusionPipeline, *, steps: int, guidance_scale: float | None = None,
        options: Mapping[str, object] | None = None,
    ):  # fmt: skip
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
            except Finished as finished:
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
