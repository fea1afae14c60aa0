"""Which weights may be pruned, and which are left alone.

Comparing sizes makes sense where many weights do the same job: in convolutions and linear layers, in a denoiser more
than 99 % of all.  The layers next to the sample, norms, biases and embeddings are spared unless the caller says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..checks import nearest

GROUPS = (
    "ends",  # conv_in, conv_out, patch embedding, last projection: few weights, and everything passes through them
    "norms",  # one number scales or shifts a whole channel; a good scale is near 1, so its size says nothing
    "biases",  # few, and a small one is no less needed
    "embeddings",  # tables that are looked up: a row is used whole, and rare rows are small because they are rare
)
IGNORE = GROUPS
_FLOATS = ("float16", "bfloat16", "float32", "float64")

# Names that diffusers gives to the layers next to the sample, at any depth and at the top of a model.
_ENDS_ANYWHERE = ("conv_in", "conv_out", "quant_conv", "post_quant_conv")
_ENDS_ON_TOP = re.compile(r"(pos_embed\.proj|x_embedder(\.proj)?|patch_embedding|proj_in|proj_out(_[12])?)\Z")


@dataclass(frozen=True)
class Selection:
    """What may be pruned in a module.

    Attributes:
        weights: parameter name -> parameter, in the order of the module.
        ignored: parameter name -> the group or pattern that spared it.
    """

    weights: dict[str, nn.Parameter]
    ignored: dict[str, str]

    @property
    def n(self) -> int:
        """Number of weights that may be pruned."""
        return sum(weight.numel() for weight in self.weights.values())


def prunable_weights(module: nn.Module, ignore: Iterable[str] = IGNORE) -> Selection:
    """Choose the weights of a module that may be pruned.

    Args:
        module: a denoiser, a VAE, a text encoder, or any other module; a part of one works too.
        ignore: groups (see `GROUPS`), and patterns of parameter names or module paths with `*` and `?`, as in
            "mid_block*" or "*.attn2.*"; a path also spares all below it. An empty list spares nothing.

    Raises:
        TypeError: not a module, or no list of texts.
        ValueError: a pattern that matches nothing, nothing left to prune, or weights that have no order of size.
    """
    if not isinstance(module, nn.Module):
        hint = " Give one of its parts, as in pipe.unet." if hasattr(module, "components") else ""
        raise TypeError(f"Expected a torch module, got {type(module).__name__}.{hint}")
    if isinstance(ignore, str):
        raise TypeError(f"ignore is the string {ignore!r}; give a list, as in [{ignore!r}].")
    words = list(ignore)
    for word in words:
        if not isinstance(word, str) or not word:
            raise TypeError(f"ignore holds {word!r}; give names of groups ({', '.join(GROUPS)}) or patterns.")
    weights, ignored, used = {}, {}, set(GROUPS)
    for name, parameter in module.named_parameters():
        group = _group_of(module, name)
        spared_by = [word for word in words if word == group or (word not in GROUPS and _matches(word, name))]
        used.update(spared_by)
        if spared_by:
            ignored[name] = spared_by[0]
        else:
            weights[name] = parameter
    for word in words:
        if word not in used:
            paths = [path for path, _ in module.named_modules() if path]
            known = nearest(word, [*GROUPS, *paths, *weights, *ignored])
            raise ValueError(f"ignore={word!r} matches no parameter of {type(module).__name__}. {known}")
    if not weights:
        raise ValueError(
            f"{type(module).__name__} has no weights to prune: {len(ignored)} parameters are left alone "
            f"({', '.join(words) or 'none asked'}). Shorten ignore."
        )
    _check_values(weights)
    return Selection(weights, ignored)


def _group_of(module: nn.Module, name: str) -> str:
    """Return one of `GROUPS`, or "weights"."""
    path, _, own_name = name.rpartition(".")
    owner = module.get_submodule(path)
    if "Norm" in type(owner).__name__:
        return "norms"
    if own_name.endswith("bias") or own_name.startswith("bias"):
        return "biases"
    if not isinstance(owner, (_ConvNd, nn.Linear)) and own_name != "in_proj_weight":
        return "embeddings"
    if path.rpartition(".")[2] in _ENDS_ANYWHERE or _ENDS_ON_TOP.match(path):
        return "ends"
    return "weights"


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _check_values(weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        kind = str(weight.dtype).removeprefix("torch.")
        if weight.is_meta:
            raise ValueError(
                f"{name} is on the meta device: it has a shape and no values. Load the weights first, "
                "as in pl.load or from_pretrained."
            )
        if kind not in _FLOATS:
            raise ValueError(
                f"{name} is of type {kind}; allowed: {', '.join(_FLOATS)}. Prune before quantising, or leave it alone."
            )
        if not torch.isfinite(weight.detach()).all():
            raise ValueError(
                f"{name} holds NaN or infinite values, which have no order of size. "
                "Load an undamaged checkpoint, or leave it alone by name."
            )
