"""The latents that a pipeline's generation ends with, whatever the pipeline returns.

They are what the sampler's last step returns.  No picture is decoded, and pipelines that offer no latents give theirs
all the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Finished", "check_prompts", "ends_with_latents", "no_progress_bar", "prompt_argument"]


class Finished(Exception):
    """Ends a pipeline's call after its last step.

    Attributes:
        latents: what that step returned; with guidance some pipelines carry each twice.
    """

    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = latents


@contextmanager
def ends_with_latents(pipe: DiffusionPipeline, noise: list[torch.Generator]) -> Iterator[None]:
    """Raise `Finished` from the scheduler's last step, inside a `with` block.

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
            raise Finished(result[0] if isinstance(result, tuple) else result.prev_sample)
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
