"""Carry out a plan: on a live denoiser, reversibly; or on a copy, which becomes the pruned pipeline.

What is replaced leaves the module tree, so all that counts, saves, moves or trains the model sees the smaller one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from ..denoisers import denoiser_of
from .find import KINDS, find_operators
from .plan import Plan, plan_for
from .replace import Identity, replacement

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CONFIG_KEY = "pruning_lib"  # where the configuration of a pruned denoiser keeps its plans
# Norms that serve one branch only: without it they would run for nothing.
_NORM_OF = {"attn1": "norm1", "attn2": "norm2", "ff": "norm3"}


class Replacement:
    """Changes of a plan, which is not checked again, to a live denoiser; they can be taken back. A context manager."""

    def __init__(self, denoiser: nn.Module, plan: Plan):
        self.plan, self._denoiser = plan, denoiser
        self._config = getattr(denoiser, "_internal_dict", None)
        made = {}  # all of it before anything is swapped, so that an error changes nothing
        for path, how in plan.changes:
            module = denoiser.get_submodule(path)
            gone = any(weight.is_meta for weight in module.parameters()) and hasattr(module, "_hf_hook")
            if gone and how not in ("identity", "zero"):
                raise ValueError(
                    f"The weights of {path} are offloaded at the moment, so {how!r} cannot be made from them. Call "
                    "pipe.remove_all_hooks() first, and enable offloading afterwards."
                )
            made[path] = replacement(module, how)
            parent, _, name = path.rpartition(".")
            norm = getattr(denoiser.get_submodule(parent), _NORM_OF.get(name, ""), None)
            if how == "zero" and type(norm) is nn.LayerNorm:
                made[f"{parent}.{_NORM_OF[name]}"] = Identity()
        self._originals = {path: denoiser.get_submodule(path) for path in made}
        self._put(made)

    def __repr__(self) -> str:
        state = "in place" if self._originals else "taken back"
        return f"<Replacement of {len(self.plan)} operators, {state}: {', '.join(self.plan.paths)}>"

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, *error) -> None:
        self.restore()

    def restore(self) -> None:
        """Put everything back; the model is bit for bit what it was. Doing it twice does no harm."""
        self._put(self._originals)
        if self._config is not None:
            self._denoiser._internal_dict = self._config
        self._originals, self._config = {}, None

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        for path, module in modules.items():
            parent, _, name = path.rpartition(".")
            # Through _modules, so that lists work too and the order of modules, hence of weights, stays.
            self._denoiser.get_submodule(parent)._modules[name] = module


def change_operators(denoiser: nn.Module, plan: Plan | Iterable[str] | Mapping[str, str]) -> Replacement:
    """Change operators of a live denoiser of a known family in place.

    `plan` is a plan for it, paths (each operator's default modification), or path -> modification. Returns a handle;
    `restore()`, or leaving it as a context, puts everything back. Parameters that an optimiser or a hook already holds
    are not replaced there. No such operator is a KeyError; a plan for another denoiser, a modification that is not
    allowed, or weights that are not there, a ValueError.

    Example:
        >>> with change_operators(pipe.unet, ["mid_block.attentions.0"]):
        ...     image = pipe("lion").images[0]
    """
    if isinstance(plan, Plan):
        plan.check(denoiser)
    else:
        plan = plan_for(plan, find_operators(denoiser, tuple(KINDS)))
    handle = Replacement(denoiser, plan)
    if hasattr(denoiser, "register_to_config"):
        before = (denoiser.config.get(CONFIG_KEY) or {}).get("plans", [])
        denoiser.register_to_config(**{CONFIG_KEY: {"plans": [*before, plan.to_dict()]}})
    return handle


def remove_operators(pipe: DiffusionPipeline, plan: Plan | Iterable[str] | Mapping[str, str]) -> DiffusionPipeline:
    """Return a pipeline of the same class without some operators; the given one stays as it is.

    The denoiser, of a known family, is a copy in which the operators are gone; the other components are shared. `plan`
    and errors are as in `change_operators`. `save_pretrained` of the result writes what was done beside the weights,
    for `pl.load` and `load_pruned`; diffusers alone would fill the missing weights with random numbers.

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


def load_pruned(folder: str | Path, *, dtype: torch.dtype = torch.float32, **options) -> DiffusionPipeline:
    """Load a pipeline that `remove_operators` made and `save_pretrained` wrote.

    It is bit for bit as it was saved, in evaluation mode, on the CPU; `options` go to diffusers' `from_pretrained`.
    Raises OSError where files are missing, ValueError where the denoiser was not pruned by this package, or its plans,
    configuration and weights do not fit.
    """
    from diffusers import DiffusionPipeline  # here: it brings half of diffusers and transformers

    from ..sampling import quietly

    parts = json.loads((Path(folder) / "model_index.json").read_text("utf-8"))
    name = "unet" if parts.get("unet", [None])[0] else "transformer"
    denoiser = _load_denoiser(Path(folder) / name, dtype)
    with quietly():
        return DiffusionPipeline.from_pretrained(folder, **{name: denoiser}, torch_dtype=dtype, **options)


def _load_denoiser(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Build the base without weights, carry out its plans, and read the weights that are left."""
    import diffusers
    from accelerate import init_empty_weights

    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    done = config.pop(CONFIG_KEY, None)
    if done is None:
        raise ValueError(f"{path} holds no plan: this denoiser was not pruned here. Load it with from_pretrained.")
    try:
        with init_empty_weights(include_buffers=False):  # tables of positions are computed, not saved
            denoiser = getattr(diffusers, config["_class_name"]).from_config(config).eval()
        for plan in done["plans"]:
            change_operators(denoiser, Plan.from_dict(plan))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The plans in {path} do not fit the configuration there: {error}") from error
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        raise OSError(f"{folder} has no diffusion_pytorch_model*.safetensors. Save with safe_serialization=True.")
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    try:
        denoiser.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # missing, unknown, or of another shape
        raise ValueError(
            f"The weights in {folder} do not fit the plan in its config.json: {shorten(str(error), 400)} Take both "
            "from the same save_pretrained."
        ) from error
    denoiser.register_to_config(_name_or_path=str(folder))
    return nn.Module.to(denoiser, dtype)  # diffusers' own `to` warns about half precision on a CPU
