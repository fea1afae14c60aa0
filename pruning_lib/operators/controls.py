"""Rankings to hold a score against: chance, size, and how much an operator adds.

A ranking is a list of paths, the first to go at the front, as `choose` and `Scores.ranked` have it.  A score that does
not beat these has learned nothing from the latents it was computed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .denoiser import denoiser_of
from .find import Operators, find_operators
from .generate import LatentSampler
from .modify import replacement

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["contributions", "output_ranking", "params_ranking", "random_ranking"]


def random_ranking(operators: Operators, seed: int = 0) -> list[str]:
    """Return the paths in an order drawn by chance.

    Args:
        operators: as `find_operators` lists them.
        seed: of the order.
    """
    order = torch.randperm(len(operators), generator=torch.Generator().manual_seed(seed)).tolist()
    return [operators[i].path for i in order]


def params_ranking(operators: Operators, *, largest_first: bool = False) -> list[str]:
    """Return the paths by number of parameters; equal ones in the order in which they run.

    Args:
        operators: as `find_operators` lists them.
        largest_first: False removes small operators first, as if size were worth; True the large ones, as if it were
            only cost.
    """
    sign = -1 if largest_first else 1
    return [op.path for op in sorted(operators, key=lambda op: sign * op.params)]


def output_ranking(
    pipe: DiffusionPipeline, prompts: Sequence[str] | Sequence[int] | None, *, operators: Operators | None = None,
    **sampling,
) -> list[str]:  # fmt: skip
    """Return the paths by what each operator adds, least first; arguments as in `contributions`."""
    found = contributions(pipe, prompts, operators=operators, **sampling)
    return sorted(found, key=found.__getitem__)


@torch.no_grad()
def contributions(
    pipe: DiffusionPipeline, prompts: Sequence[str] | Sequence[int] | None, *, operators: Operators | None = None,
    **sampling,
) -> dict[str, float]:  # fmt: skip
    """Measure what each operator adds to the stream while the unpruned pipeline generates.

    At every call the operator's default modification gets the same input; the contribution is the mean of
    |output - output of the modification| over elements, latents and steps.  For a residual branch that is the mean
    absolute value of the branch.  One generation serves all operators, where a score needs one for each; what is not
    seen is how the rest of the model reacts.

    Args:
        pipe: a diffusers pipeline whose denoiser is of a known family; left as it was.
        prompts: as in `score_operators`; equal arguments mean equal latents.
        operators: which ones. Default: all of `find_operators`.
        sampling: `num_latents`, `steps`, `guidance_scale`, `seed`, `batch` and `options`, as in `LatentSampler`.

    Returns:
        Path -> contribution >= 0, in the units of the stream there, in the order of `operators`.

    Raises:
        TypeError: not a pipeline with a denoiser of a known family.
        ValueError: no prompts, or numbers out of range.

    Example:
        >>> added = contributions(pipe, ["lion", "pizza"], num_latents=2, steps=4)
        >>> min(added, key=added.get)
    """
    _, denoiser = denoiser_of(pipe)
    sampler = LatentSampler(pipe, prompts, **sampling)
    operators = find_operators(denoiser) if operators is None else operators
    with _Meter(denoiser, operators) as meter:
        sampler.draw()
    return {path: float(meter.total[path]) / max(meter.count[path], 1) for path in operators.paths}


class _Meter:
    """Hooks that compare every operator with its modification on the inputs it gets."""

    def __init__(self, denoiser: nn.Module, operators: Operators):
        self.total = dict.fromkeys(operators.paths, 0.0)
        self.count = dict.fromkeys(operators.paths, 0)
        self._busy, self._hooks = False, []
        # All replacements are made first: some share inner modules, hooks included, with what they replace.
        pairs = {op.path: denoiser.get_submodule(op.path) for op in operators}
        made = {op.path: replacement(pairs[op.path], op.modifications[0]) for op in operators}
        for path, module in pairs.items():
            self._hooks.append(module.register_forward_hook(self._hook(path, made[path]), with_kwargs=True))

    def _hook(self, path: str, cheap: nn.Module):
        def compare(module, args, kwargs, output):
            if self._busy:  # a replacement is running, and calls a module that it shares
                return
            self._busy = True
            try:
                difference = (_tensor(output).float() - _tensor(cheap(*args, **kwargs)).float()).abs()
            finally:
                self._busy = False
            self.total[path] += difference.sum(dtype=torch.float64)  # read at the end: each reading waits
            self.count[path] += difference.numel()

        return compare

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()


def _tensor(output: Tensor | tuple | object) -> Tensor:
    output = getattr(output, "sample", output)  # a transformer of a UNet returns an object by default
    return output[0] if isinstance(output, tuple) else output
