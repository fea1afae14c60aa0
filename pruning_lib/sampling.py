"""Prompts and seeds in, latents or pictures out: with gradients to train through, without them to score and to look.

The pipeline itself runs; its latents are what the scheduler's last step returns, so that no picture need be decoded.
Every latent has a generator of its own: neither the batch nor its neighbours change its noise.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from .capture import as_it_was, stepping, to_latents
from .checks import check_whole, nearest
from .denoisers import denoiser_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

# The argument by which a pipeline is asked for several latents -> what is given there, and what that means in words.
_ASKED_BY = {
    "prompt": (str, "draws from texts, such as ['lion', 'pizza']"),
    "class_labels": (int, "draws from numbers of classes, such as [207, 360]"),
    "batch_size": (int, "is unconditional and takes one number for each latent, such as range(4)"),
}


class Unroll:
    """A generation as one function, from prompts and seeds to the last latents, and on to pictures.

    Gradients flow while autograd is on, as it is by default, and reach whatever hooks put into the denoiser.

    Args:
        pipe: a diffusers pipeline that takes prompts, numbers of classes, or nothing.
        steps: `num_inference_steps`, >= 1.
        guidance_scale: of the pipeline's call. Default: the pipeline's own.
        options: other arguments of the pipeline's call, for example {"height": 512, "width": 512}.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        *,
        steps: int,
        guidance_scale: float | None = None,
        options: Mapping[str, object] | None = None,
    ):
        denoiser_of(pipe)  # a pipeline it must be
        self.pipe, self.name = pipe, type(pipe).__name__
        self.stepped: Callable[[object], None] = lambda timestep: None  # is told every step of the scheduler
        self.again: Callable[[], None] = lambda: None  # is told that a run begins anew
        self._run = inspect.unwrap(type(pipe).__call__)  # without torch.no_grad
        takes = inspect.signature(self._run).parameters
        self.argument = next((argument for argument in _ASKED_BY if argument in takes), "")
        check_whole("steps", steps, 1)
        scale = {} if guidance_scale is None else {"guidance_scale": float(guidance_scale)}
        self.call: dict[str, object] = {"num_inference_steps": steps, **scale, **(options or {})}
        for argument, value in self.call.items():
            if argument not in takes:
                raise ValueError(f"{self.name} takes no {argument!r}. {nearest(argument, takes)}")
            if isinstance(value, Mapping) and {*value} == {"digest"}:
                raise ValueError(
                    f"{argument} was noted as a digest only ({value['digest']}), since it is no plain value. Give it "
                    f"again: options={{{argument!r}: ...}}."
                )

    @property
    def options(self) -> dict[str, object]:
        """What the pipeline is called with besides prompts, noise and the number of steps."""
        return {key: value for key, value in self.call.items() if key != "num_inference_steps"}

    def check(self, prompts: object) -> list:
        """Return prompts as a list, after checking that the pipeline draws from such."""
        if isinstance(prompts, Sequence) and prompts and all(isinstance(prompt, Mapping) for prompt in prompts):
            return list(prompts)
        if not self.argument:
            raise TypeError(
                f"{self.name} takes none of {', '.join(_ASKED_BY)}. Give a prompt as the arguments of its call, such "
                "as [{'image': image}], or [{}] where `options` say it all."
            )
        kind, wanted = _ASKED_BY[self.argument]
        if not isinstance(prompts, Sequence) or isinstance(prompts, (str, bytes)) or not prompts:
            raise ValueError(f"prompts={prompts!r}, but {self.name} {wanted}. Give a list of at least one.")
        wrong = [prompt for prompt in prompts if not isinstance(prompt, kind)]
        if wrong:
            raise ValueError(f"prompts holds {wrong[0]!r}, but {self.name} {wanted}.")
        return list(prompts)

    def seeds(self, prompts: Sequence, seeds: Sequence[int] | None) -> list[int]:
        """Return one seed for each prompt: those given, or 1000, 1001, ..."""
        seeds = list(range(1000, 1000 + len(prompts)) if seeds is None else seeds)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one for each.")
        return seeds

    def asked(self, prompts: Sequence, seeds: Sequence[int]) -> dict[str, object]:
        """Return the arguments of the pipeline's call that ask for these."""
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        # one alone is given as it is: some pipelines take no list, and the numbers are the same
        told = {"generator": noise if len(noise) > 1 else noise[0], **self.call}
        if isinstance(prompts[0], Mapping):
            return {**told, **_together(prompts)}
        return {self.argument: len(seeds) if self.argument == "batch_size" else list(prompts), **told}

    def latents(self, prompts: Sequence, seeds: Sequence[int]) -> Tensor:
        """Draw latents `[n, ...]` in the denoiser's type, with a graph behind them if gates with gradients are there.

        Args:
            prompts: n texts or numbers of classes; of a pipeline without either, n numbers that are not looked at.
            seeds: n seeds; latent i starts from noise of seed i, whatever stands beside it.
        """
        asked = self.asked(prompts, seeds)
        no_bar = {**getattr(self.pipe, "_progress_bar_config", {}), "disable": True}
        noise = asked["generator"]
        last = _LastStep(noise if isinstance(noise, list) else [noise])
        # a copy, for solvers with a memory keep outputs, and the graph behind them
        scheduler = copy.deepcopy(self.pipe.scheduler) if torch.is_grad_enabled() else self.pipe.scheduler

        def again() -> None:  # from the same noise
            last.steps = 0
            torch.manual_seed(seeds[0])
            for generator, seed in zip(last.noise, seeds, strict=False):
                generator.manual_seed(seed)
            self.again()

        with ExitStack() as stack:
            stack.enter_context(as_it_was(self.pipe))
            if scheduler is not self.pipe.scheduler:
                stack.enter_context(replaced(self.pipe, "scheduler", scheduler))
            stack.enter_context(stepping(scheduler, self.stepped))
            stack.enter_context(replaced(self.pipe, "_progress_bar_config", no_bar))
            stack.enter_context(replaced(scheduler, "step", last.of(scheduler)))
            for name in ("vae", "vqvae"):
                if isinstance(vae := getattr(self.pipe, name, None), nn.Module) and hasattr(vae, "decode"):
                    channels = getattr(vae.config, "out_channels", 3)
                    stack.enter_context(replaced(vae, "decode", functools.partial(_nothing, channels)))
            hook = denoiser_of(self.pipe)[1].register_forward_pre_hook(last.called, with_kwargs=True)
            stack.callback(hook.remove)
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(seeds[0])  # some pipelines draw from the global generator, too
            try:
                to_latents(self.pipe, functools.partial(self._run, self.pipe), asked, again)
            finally:
                self.pipe.maybe_free_model_hooks()  # what the pipeline itself does at its end
        if last.latents is None:
            raise TypeError(f"{self.name} has no last latents: it does not call scheduler.step.")
        frames = last.latents.ndim < max(last.seen) == 5  # each a sample to the scheduler
        if frames and len(last.latents) > len(seeds):
            return last.latents.unflatten(0, (len(seeds), -1))
        return last.latents[: len(seeds)]  # with guidance some pipelines carry each twice

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents, differentiably, to floats in [0, 1], `[n, 3, h, w]`, of the autoencoder's type if any.

        Packed latents are unpacked by the pipeline; those that still are no `[n, c, h, w]` are a ValueError.
        """
        found = (getattr(self.pipe, name, None) for name in ("vae", "vqvae", "movq"))
        vae = next((part for part in found if isinstance(part, nn.Module)), None)
        if vae is None:
            return (latents / 2 + 0.5).clamp(0, 1)
        config, unpack = vae.config, getattr(self.pipe, "_unpack_latents", None)
        if latents.ndim == 3 and unpack is not None:
            usual = getattr(self.pipe, "default_sample_size", 0) * self.pipe.vae_scale_factor
            sides = [self.call.get(side) or usual for side in ("height", "width")]
            latents = unpack(latents, *sides, self.pipe.vae_scale_factor)
        channels = getattr(config, "latent_channels", None)
        if latents.ndim != 4 or latents.shape[1] != (channels or latents.shape[1]):
            raise ValueError(
                f"The last latents of {self.name} have shape {tuple(latents.shape)}, and its {type(vae).__name__} does "
                "not decode them as they are. Use loss='latent', which decodes nothing."
            )
        latents, scale = latents.to(vae.dtype), getattr(config, "scaling_factor", None) or 1.0
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is not None and std is not None:
            mean, std = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, std))
            latents = latents * std / scale + mean
        else:
            latents = latents / scale + (getattr(config, "shift_factor", None) or 0.0)
        return (vae.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


def pictures(
    pipe: DiffusionPipeline, prompts: Sequence, seeds: Sequence[int], *, batch: int = 16, **sampling
) -> Tensor:
    """Draw pictures by the pipeline's own call, decoding included.

    Args:
        pipe, sampling: as in `Unroll`; `steps` it needs, `guidance_scale` and `options` it may have.
        prompts: n texts or numbers of classes; n numbers for an unconditional pipeline.
        seeds: n seeds; picture i starts from noise of seed i, whatever stands beside it.
        batch: pictures per call, >= 1.

    Returns:
        float32 `[n, 3, h, w]` in [0, 1] on the CPU.
    """
    unroll, parts = Unroll(pipe, **sampling), []
    prompts = unroll.check(prompts)
    seeds = unroll.seeds(prompts, seeds)
    check_whole("batch", batch, 1)
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        images = pipe(**unroll.asked(prompts[part], seeds[part]), output_type="np").images
        parts.append(torch.from_numpy(images).permute(0, 3, 1, 2))
    return torch.cat(parts).contiguous()


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Give an object an attribute of its own, and take it away again."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before) if had else delattr(owner, name)


def _together(prompts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Put the arguments of several calls, each for one latent, into one: tensors and lists one after the other."""
    merged = {}
    for key, first in prompts[0].items():
        parts = [prompt[key] for prompt in prompts]
        if isinstance(first, Tensor):
            merged[key] = torch.cat(parts)
        elif isinstance(first, list):
            merged[key] = [member for part in parts for member in part]
        else:
            merged[key] = first if len(parts) == 1 else parts
    return merged


def _nothing(channels: int, latents: Tensor, *args: object, return_dict: bool = True, **kwargs: object) -> object:
    """Stand in for `vae.decode` where nobody looks at the picture."""
    sample = latents.new_zeros(len(latents), channels, 8, 8)
    return DecoderOutput(sample=sample) if return_dict else (sample,)


class _LastStep:
    """Notes what the scheduler's last step returned, and gives steps that draw noise that of the latents."""

    def __init__(self, noise: list[torch.Generator]):
        self.noise, self.latents, self.steps = noise, None, 0
        self.seen = {0}  # numbers of dimensions of what the denoiser was called with

    def called(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.seen |= {value.ndim for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}

    def of(self, scheduler: SchedulerMixin) -> Callable:
        """Return `scheduler.step`, watched."""
        step = scheduler.step
        takes = [*inspect.signature(step).parameters]
        place = takes.index("generator") if "generator" in takes else -1

        @functools.wraps(step)
        def watched(*args, **kwargs):
            if place >= len(args) and kwargs.get("generator") is None:  # some pipelines hand none on
                sample = kwargs["sample"] if "sample" in kwargs else args[2]
                kwargs["generator"] = self.noise * (len(sample) // len(self.noise))
            result = step(*args, **kwargs)
            self.latents = result[0] if isinstance(result, tuple) else result.prev_sample
            self.steps += 1
            if self.steps == len(scheduler.timesteps):  # what pipelines do with it needs no graph
                plain = self.latents.detach()
                result = (plain, *result[1:]) if isinstance(result, tuple) else type(result)(plain)
            return result

        return watched


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back progress bars and notes about optional packages: a reader asked for a model, not for a log."""
    verbosity = transformers_logging.get_verbosity()
    bars = [logging for logging in (transformers_logging, diffusers_logging) if logging.is_progress_bar_enabled()]
    transformers_logging.set_verbosity_error()
    for logging in bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():  # older versions of diffusers that we also support do not know `dtype`
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for logging in bars:
            logging.enable_progress_bar()
