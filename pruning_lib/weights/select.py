"""Which weights may be pruned, and which are left alone.

Magnitude pruning compares weights with each other, and that only makes sense where many of them do the same job.  Four
groups are left alone by default:

- `ends`: the layers that touch the sample itself (`conv_in`, `conv_out`, patch embedding, last projection).  They hold
  few weights, and everything passes through them.
- `norms`: scales and shifts of normalisation layers; one number multiplies or moves a whole channel, and a good value
  is near 1, so its size says nothing about its worth.
- `biases`: few, and a bias that is small is no less needed.
- `embeddings`: tables that are looked up (tokens, positions, classes, scale-and-shift tables); a row is used whole, and
  rare rows are small because they were trained rarely.

What remains are the weights of convolutions and linear layers, in a denoiser more than 99 % of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..checks import nearest

__all__ = ["GROUPS", "IGNORE", "Selection", "group_of", "prunable_weights"]

GROUPS = ("ends", "norms", "biases", "embeddings")
IGNORE = GROUPS
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

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


def group_of(owner: nn.Module, path: str, own_name: str) -> str:
    """Say to which group a parameter belongs: one of `GROUPS`, or "weights".

    Args:
        owner: the module that holds the parameter.
        path: its path in the model, "" for the model itself.
        own_name: the parameter's name in its owner, as in "weight".
    """
    if "Norm" in type(owner).__name__:
        return "norms"
    if own_name.endswith("bias") or own_name.startswith("bias"):
        return "biases"
    if not isinstance(owner, (_ConvNd, nn.Linear)) and own_name != "in_proj_weight":
        return "embeddings"
    if path.rpartition(".")[2] in _ENDS_ANYWHERE or _ENDS_ON_TOP.match(path):
        return "ends"
    return "weights"


def prunable_weights(module: nn.Module, ignore: Iterable[str] = IGNORE) -> Selection:
    """Choose the weights of a module that may be pruned.

    Args:
        module: a denoiser, a VAE, a text encoder, or any other module; a part of one works too.
        ignore: groups (see `GROUPS`), and patterns of parameter names or module paths with `*` and `?`, as in
            "mid_block*" or "*.attn2.*"; a path also spares all below it. An empty list spares nothing.

    Raises:
        TypeError: not a module, or one string in place of a list.
        ValueError: a pattern that matches nothing, nothing left to prune, or weights on the meta device, of a type that
            is no floating point (quantised), or not finite.
    """
    if not isinstance(module, nn.Module):
        hint = " Give one of its parts, as in pipe.unet." if hasattr(module, "components") else ""
        raise TypeError(f"Expected a torch module, got {type(module).__name__}.{hint}")
    patterns = _patterns(ignore)
    parameters = dict(module.named_parameters())
    owners = dict(module.named_modules())
    weights, spared, used = {}, {}, set()
    for name, parameter in parameters.items():
        path, _, own_name = name.rpartition(".")
        group = group_of(owners[path], path, own_name)
        by = [word for word in patterns if word == group or (word not in GROUPS and _matches(word, name))]
        used.update(by)
        if by:
            spared[name] = by[0]
        else:
            weights[name] = parameter
    for word in patterns:
        if word not in used and word not in GROUPS:
            options = [*GROUPS, *dict.fromkeys(part for name in parameters for part in _prefixes(name))]
            raise ValueError(
                f"ignore={word!r} matches no parameter of {type(module).__name__}. {nearest(word, options)}"
            )
    if not weights:
        raise ValueError(
            f"{type(module).__name__} has no weights to prune: {len(parameters)} parameters, "
            f"{len(spared)} of them left alone ({', '.join(patterns) or 'none asked'}). Shorten ignore."
        )
    _check_values(weights)
    return Selection(weights, spared)


def _patterns(ignore: Iterable[str]) -> Sequence[str]:
    if isinstance(ignore, str):
        raise TypeError(f"ignore is the string {ignore!r}; give a list, as in [{ignore!r}].")
    patterns = list(ignore)
    wrong = [word for word in patterns if not isinstance(word, str) or not word]
    if wrong:
        raise TypeError(f"ignore holds {wrong[0]!r}; give names of groups ({', '.join(GROUPS)}) or patterns.")
    return patterns


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _check_values(weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        if weight.is_meta:
            raise ValueError(
                f"{name} is on the meta device: it has a shape and no values. Load the weights first, "
                "as in pl.load or from_pretrained."
            )
        if weight.dtype not in FLOATS:
            allowed = ", ".join(str(kind).removeprefix("torch.") for kind in FLOATS)
            raise ValueError(
                f"{name} is of type {str(weight.dtype).removeprefix('torch.')}; allowed: {allowed}. "
                "Prune before quantising, or leave it alone."
            )
        if not torch.isfinite(weight.detach()).all():
            raise ValueError(
                f"{name} holds NaN or infinite values, which have no order of size. "
                "Load an undamaged checkpoint, or leave it alone by name."
            )
