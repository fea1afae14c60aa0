"""A model's structure without its weights: the same modules, every tensor on the meta device.

The copy is made from the live structure, not from the configuration, so that a denoiser whose layers were removed or
narrowed is counted as it stands.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

__all__ = ["skeleton"]

# What other libraries hang on an instance to change how it is called: accelerate's offloading, diffusers' hooks,
# patched forward methods.  They move weights or skip work; the structure underneath is what we want.
_PATCHES = {"forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl"}


def skeleton(module: nn.Module) -> nn.Module:
    """Return a copy of `module` with every tensor on the meta device and without hooks, in evaluation mode.

    Args:
        module: any module, on any device, in any dtype; it is only read.

    Returns:
        A module of the same class and structure. Floating-point tensors become float32, so that models with mixed
        types run; tied parameters stay tied. It needs no memory to speak of.
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    return _copy(module, {}).eval()


def _copy(module: nn.Module, seen: dict[int, object]) -> nn.Module:
    if id(module) in seen:
        return seen[id(module)]
    copy = seen[id(module)] = module.__new__(type(module))
    for name, value in vars(module).items():
        if name in _PATCHES:
            continue
        if name == "_modules":
            value = type(value)((key, child and _copy(child, seen)) for key, child in value.items())
        elif name in ("_parameters", "_buffers"):
            value = type(value)((key, _empty(tensor, seen)) for key, tensor in value.items())
        elif "_hooks" in name and isinstance(value, dict):
            value = OrderedDict()
        else:
            value = _empty(value, seen)
        copy.__dict__[name] = value
    return copy


def _empty(value: object, seen: dict[int, object]) -> object:
    if not isinstance(value, Tensor):
        return value
    if id(value) not in seen:
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        empty = torch.empty(value.shape, dtype=dtype, device="meta")
        seen[id(value)] = (
            nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty
        )
    return seen[id(value)]
