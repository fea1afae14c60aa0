"""N:M sparsity: of every M weights in a row at most N stay (Mishra et al. 2021; 2:4 is what some GPUs can multiply).

A group is M neighbours along the input of a layer: columns of a linear layer, input channels of a convolution at one
place of its kernel.  NVIDIA's sparse tensor cores skip half of a 2:4 linear layer; convolutions have no such kernels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .masks import PrunedWeights
from .select import IGNORE, prunable_weights


@torch.no_grad()
def nm_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Return the mask that keeps the `n` largest magnitudes of every `m` neighbours along the input, 1 <= n < m.

    `weight` is `[out, in, ...]`, with `in` a multiple of m. The mask is a bool tensor of the same shape, True = kept;
    of equal magnitudes the first are removed first.
    """
    _check_pattern(n, m)
    if weight.ndim < 2 or weight.shape[1] % m:
        raise ValueError(f"A weight of shape {tuple(weight.shape)} has no groups of {m} along its input.")
    along = weight.detach().abs().movedim(1, -1)
    groups = along.reshape(-1, m)
    order = groups.argsort(dim=1, stable=True)  # smallest first; stable: of equal ones, the first
    keep = torch.ones_like(groups, dtype=torch.bool).scatter_(1, order[:, : m - n], False)
    return keep.reshape(along.shape).movedim(-1, 1).contiguous()


def prune_nm(module: nn.Module, n: int = 2, m: int = 4, *, ignore: Iterable[str] = IGNORE) -> PrunedWeights:
    """Keep the `n` largest of every `m` neighbouring weights, in place, and return the handle.

    `module` and `ignore` are as for `prune_magnitude`; layers whose input is no multiple of m are left alone too.

    Example:
        >>> with prune_nm(pipe.unet) as pruned:
        ...     print(pruned.sparsity)
        0.5
    """
    _check_pattern(n, m)
    chosen = prunable_weights(module, ignore)
    fits = {name: w for name, w in chosen.weights.items() if w.ndim > 1 and w.shape[1] % m == 0}
    if not fits:
        raise ValueError(f"No layer of {type(module).__name__} has an input that is a multiple of {m}.")
    spared = {name: f"input is no multiple of {m}" for name in chosen.weights if name not in fits}
    masks = {name: nm_mask(weight, n, m) for name, weight in fits.items()}
    return PrunedWeights(module, masks, f"{n}:{m}", 1 - n / m, {**chosen.ignored, **spared})


def _check_pattern(n: int, m: int) -> None:
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in (n, m)) or not 1 <= n < m:
        raise ValueError(f"{n!r}:{m!r} is no pattern; give whole numbers with 1 <= n < m, as in 2:4.")


@torch.no_grad()
def to_semi_structured(module: nn.Module) -> dict[str, str]:
    """Replace the weights of linear layers by PyTorch's semi-structured form, in place and for good.

    The zeros must be there: prune with `prune_nm`, call `finish()` on its handle, then this. The module is on a CUDA
    device of compute capability 8.0 or later, in float16 or bfloat16. Without gradients; a state dict of the result
    holds the packed form.

    Returns path -> why, of each linear layer that stayed dense. Where none can be converted, it is a ValueError, and
    nothing is changed.
    """
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    problems = {path: why for path, layer in layers.items() if (why := _problem(layer.weight))}
    ready = [layer for path, layer in layers.items() if path not in problems]
    if not ready:
        example = "".join(f" For example, {path or 'the layer'} {why}." for path, why in list(problems.items())[:1])
        raise ValueError(f"None of the {len(layers)} linear layers of this module can be converted.{example}")
    device = ready[0].weight.device
    needed = "2:4 kernels need an NVIDIA GPU of compute capability 8.0 or later (Ampere, 2020)."
    if device.type != "cuda":
        raise ValueError(f"The weights are on {device.type!r}; {needed}")
    found = torch.cuda.get_device_capability(device)
    if found < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"{name} has compute capability {found[0]}.{found[1]}; {needed}")
    for layer in ready:
        packed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = nn.Parameter(packed, requires_grad=False)
    return problems


def _problem(weight: Tensor) -> str:
    """Say why PyTorch's CUTLASS kernels do not take a matrix, or "" if they do."""
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"is {str(weight.dtype).removeprefix('torch.')}; cast to float16 or bfloat16 first"
    if weight.shape[0] % 32 or weight.shape[1] % 64:
        return f"has shape {tuple(weight.shape)}; rows must be a multiple of 32 and columns of 64"
    if (weight.detach().reshape(-1, 4) != 0).sum(1).max() > 2:
        return "has groups of four with more than two weights that are not zero; prune with prune_nm first"
    return ""
