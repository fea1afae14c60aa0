"""Carry out a plan: on a live denoiser, reversibly; or on a copy, which becomes the pruned pipeline.

What is replaced leaves the module tree, so its parameters and MACs are gone, and everything that counts, saves, moves
or trains the model sees the smaller one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from .denoiser import denoiser_of
from .modify import replacement
from .plan import Plan, as_plan
from .replacements import Identity

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["CONFIG_KEY", "Cut", "change_operators", "pruned_copy", "remove_operators"]

CONFIG_KEY = "pruning_lib"  # where the configuration of a pruned denoiser keeps its plans
# Norms that serve one branch only: without it they would run for nothing.
_NORM_OF = {"attn1": "norm1", "attn2": "norm2", "ff": "norm3"}


class Cut:
    """Changes to a live denoiser that can be taken back; also a context manager.

    Args:
        denoiser: the model.
        plan: what was done.
    """

    def __init__(self, denoiser: nn.Module, plan: Plan):
        self.plan, self._denoiser = plan, denoiser
        self._originals: dict[str, nn.Module] = {}
        self._config = getattr(denoiser, "_internal_dict", None)

    def __repr__(self) -> str:
        state = "in place" if self._originals else "taken back"
        return f"<Cut of {len(self.plan)} operators, {state}: {', '.join(self.plan.paths)}>"

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *error) -> None:
        self.restore()

    def swap(self, path: str, new: nn.Module) -> None:
        """Put `new` where the module `path` is, and remember what was there."""
        self._originals.setdefault(path, self._denoiser.get_submodule(path))
        _put(self._denoiser, path, new)

    def restore(self) -> None:
        """Put everything back; the model is bit for bit what it was. Doing it twice does no harm."""
        for path, module in reversed(self._originals.items()):
            _put(self._denoiser, path, module)
        if self._originals and self._config is not None:
            self._denoiser._internal_dict = self._config
        self._originals = {}


def change_operators(denoiser: nn.Module, plan: Plan | Iterable[str] | Mapping[str, str]) -> Cut:
    """Change operators of a live denoiser in place.

    Args:
        denoiser: of a known family.
        plan: a plan for it, paths (each operator's default modification), or path -> modification.

    Returns:
        A handle; `restore()`, or leaving it as a context, puts everything back. Parameters that an optimiser or a hook
        already holds are not replaced there.

    Raises:
        KeyError: no such operator.
        ValueError: a plan for another denoiser, a modification that is not allowed, or weights that are not there.

    Example:
        >>> with change_operators(pipe.unet, ["mid_block.attentions.0"]):
        ...     image = pipe("lion").images[0]
    """
    plan = as_plan(plan, denoiser)
    cut = Cut(denoiser, plan)
    # Made before anything is swapped, so that an error changes nothing.
    made = {path: _replace(denoiser, path, how) for path, how in plan.changes}
    for path, new in made.items():
        cut.swap(path, new)
        parent, name = path.rpartition(".")[::2]
        norm = f"{parent}.{_NORM_OF.get(name, '')}"
        if dict(plan.changes)[path] == "zero" and type(_get(denoiser, norm)) is nn.LayerNorm:
            cut.swap(norm, Identity())
    if hasattr(denoiser, "register_to_config"):
        before = (denoiser.config.get(CONFIG_KEY) or {}).get("plans", [])
        denoiser.register_to_config(**{CONFIG_KEY: {"plans": [*before, plan.to_dict()]}})
    return cut


def remove_operators(
    pipe: DiffusionPipeline, plan: Plan | Iterable[str] | Mapping[str, str]
) -> DiffusionPipeline:
    """Return a pipeline without some operators; the given one stays as it is.

    The denoiser is a copy, in which the operators are gone; the other components are shared. `save_pretrained` of the
    result writes what was done beside the weights, and `load_pruned` reads it.

    Args:
        pipe: a diffusers pipeline whose denoiser is of a known family.
        plan: a plan for it, such as `scores.lowest(12)`; or paths; or path -> modification.

    Returns:
        A pipeline of the same class.

    Raises:
        TypeError: not such a pipeline.
        KeyError: no such operator.
        ValueError: a plan for another denoiser, or a modification that is not allowed.

    Example:
        >>> small = remove_operators(pipe, ["mid_block.resnets.0", "down_blocks.3.resnets.1"])
        >>> small("lion").images[0]
    """
    name, denoiser = denoiser_of(pipe)
    small = copy.copy(pipe)
    small.register_modules(**{name: pruned_copy(denoiser, plan)})
    return small


def pruned_copy(denoiser: nn.Module, plan: Plan | Iterable[str] | Mapping[str, str]) -> nn.Module:
    """Return a copy of a denoiser in which a plan is carried out; arguments and errors as in `change_operators`."""
    with change_operators(denoiser, plan):  # so that what is removed is never copied
        return copy.deepcopy(denoiser)


def _replace(denoiser: nn.Module, path: str, how: str) -> nn.Module:
    module = denoiser.get_submodule(path)
    weights = list(module.parameters())
    if how not in ("identity", "zero") and any(w.is_meta for w in weights) and hasattr(module, "_hf_hook"):
        raise ValueError(
            f"The weights of {path} are offloaded at the moment, so {how!r} cannot be made from them. Call "
            "pipe.remove_all_hooks() first, and enable offloading afterwards."
        )
    return replacement(module, how)


def _get(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _put(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, name = path.rpartition(".")[::2]
    # Through _modules, so that lists work too and the order of modules, hence of weights, stays.
    model.get_submodule(parent)._modules[name] = new
