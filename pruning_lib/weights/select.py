"""Which weights may be pruned: those of convolutions and linear layers, where many weights do the same job.

The layers next to the sample, norms, biases and embeddings are spared unless the caller says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..checks import nearest

IGNORE = (  # groups
    "ends",  # conv_in, conv_out, patch embedding, last projection: few weights, and everything passes through them
    "norms",  # one number scales or shifts a whole channel; a good scale is near 1, so its size says nothing
    "biases",  # few, and a small one is no less needed
    "embeddings",  # tables that are looked up: a row is used whole, and rare rows are small because they are rare
)
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
    """Choose the weights of a module, any one or a part of one, that may be pruned.

    `ignore` holds groups (those of `IGNORE`), and patterns of parameter names or module paths with `*` and `?`, as in
    "mid_block*" or "*.attn2.*"; a path also spares all below it. An empty list spares nothing.

    Raises:
        TypeError: not a module, or no list of texts.
        ValueError: a pattern that matches nothing, nothing left to prune, or weights that have no order of size.
    """
    if not isinstance(module, nn.Module):
        hint = " Give one of its parts, as in pipe.unet." if hasattr(module, "components") else ""
        raise TypeError(f"Expected a torch module, got {type(module).__name__}.{hint}")
    words = [ignore] if isinstance(ignore, str) else list(ignore)
    if isinstance(ignore, str) or not all(isinstance(word, str) and word for word in words):
        raise TypeError(f"ignore={ignore!r}; give a list of groups ({', '.join(IGNORE)}) and patterns.")
    kind = type(module).__name__
    weights, ignored, used = {}, {}, set(IGNORE)
    for name, parameter in module.named_parameters():
        group = _group_of(module, name)
        spared_by = [word for word in words if word == group or (word not in IGNORE and _matches(word, name))]
        used.update(spared_by)
        if spared_by:
            ignored[name] = spared_by[0]
        else:
            weights[name] = parameter
    for word in words:
        if word not in used:
            paths = [path for path, _ in module.named_modules() if path]
            known = nearest(word, [*IGNORE, *paths, *weights, *ignored])
            raise ValueError(f"ignore={word!r} matches no parameter of {kind}. {known}")
    if not weights:
        spared = f"{len(ignored)} parameters are left alone ({', '.join(words) or 'none asked'})"
        raise ValueError(f"{kind} has no weights to prune: {spared}. Shorten ignore.")
    for name, weight in weights.items():
        dtype = str(weight.dtype).removeprefix("torch.")
        if weight.is_meta:
            raise ValueError(f"{name} is on the meta device, without values. Load the weights first, as pl.load does.")
        if dtype not in _FLOATS:
            raise ValueError(f"{name} is {dtype}; allowed: {', '.join(_FLOATS)}. Prune before quantising.")
        if not torch.isfinite(weight.detach()).all():
            raise ValueError(f"{name} holds NaN or infinity. Load an undamaged checkpoint, or ignore it by name.")
    return Selection(weights, ignored)


def _group_of(module: nn.Module, name: str) -> str:
    """Return one of `IGNORE`, or "weights"."""
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
