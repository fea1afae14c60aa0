"""What can be done to an operator while all shapes stay valid (LD-Pruner, arXiv 2404.11936: remove, or make cheaper).

Whole blocks and branches are removed; bare layers, which nothing leads around, are made cheaper.  Both choices are
defaults: each operator lists what it allows, and any entry may be asked for.
"""

from __future__ import annotations

import copy

from torch import nn

from .._text import nearest
from .replacements import Identity, Pool, Shortcut, Stretch, Zero, half_rank, low_rank, pointwise

__all__ = ["MODIFICATIONS", "allowed", "modifications", "replacement"]

MODIFICATIONS: dict[str, str] = {
    "identity": "what comes in goes out",
    "zero": "the branch adds nothing to the stream",
    "shortcut": "the residual branch is gone; the block's own 1x1 projection and resampling stay",
    "resample": "pooling down, or repeating up, without the convolution",
    "pointwise": "a 1x1 convolution whose weights are the sums over the window",
    "low rank": "two thin layers with half the weights, from the singular value decomposition",
}


def modifications(operator) -> dict[str, str]:
    """Return what can be done to an operator: name -> one line. The first is the default.

    Args:
        operator: an `Operator`, as `find_operators` lists them.
    """
    return {name: MODIFICATIONS[name] for name in operator.modifications}


def allowed(
    module: nn.Module, kind: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> tuple[str, ...]:
    """Return the names of the modifications that keep a module's shapes, the default first; empty: none does.

    Args:
        module: the operator's module.
        kind: its kind, one of `KINDS`.
        in_shape, out_shape: of the stream, batch first.
    """
    same = in_shape == out_shape
    if kind == "resnet":
        plain = (
            same and module.conv_shortcut is None and module.upsample is None and module.downsample is None
        )
        return ("identity",) if plain and module.output_scale_factor == 1 else ("shortcut",)
    if kind in ("transformer", "transformer block"):
        return ("identity",) * same
    if kind == "norm":
        return ("identity",) * any(True for _ in module.parameters())
    if kind in ("self-attention", "cross-attention", "feed-forward"):
        # Attention in a UNet without text adds the stream to its own output; elsewhere the caller does.
        whole = getattr(module, "residual_connection", False)
        return ("identity",) * bool(whole and same) or ("zero",) * same
    if kind in ("downsampler", "upsampler"):
        return _of_sampler(module)
    if kind == "convolution":
        flat = module.stride == (1, 1) or all(k > 1 for k in module.kernel_size)
        return ("pointwise",) * flat + ("identity",) * same
    if kind == "linear":
        fits = half_rank(*module.weight.shape[:2]) > 0 and getattr(module, "groups", 1) == 1
        return ("low rank",) * fits + ("identity",) * same
    raise ValueError(f"kind={kind!r} is unknown.")


def _of_sampler(module: nn.Module) -> tuple[str, ...]:
    if getattr(module, "use_conv_transpose", False) or getattr(module, "norm", None) is not None:
        return ()
    if not isinstance(getattr(module, "conv", None), nn.Conv2d) or not getattr(module, "interpolate", True):
        return ()  # nothing is cheaper than resampling alone
    same = module.channels == module.out_channels
    return ("resample",) * same + ("pointwise",)


def replacement(module: nn.Module, how: str) -> nn.Module:
    """Return the module that stands in for `module`.

    Args:
        module: of a kind that allows it; it is only read. On the meta device the result has shapes without values.
        how: one of `MODIFICATIONS`.

    Raises:
        ValueError: an unknown modification.
    """
    if how not in MODIFICATIONS:
        raise ValueError(f"Modification {how!r} is unknown. {nearest(str(how), MODIFICATIONS)}")
    return _MAKE[how](module).train(module.training)


def _resample(module: nn.Module) -> nn.Module:
    if "Down" in type(module).__name__:
        return Pool(ceil=module.padding != 0)
    return Stretch()


def _pointwise(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        return pointwise(module)
    small = copy.copy(module)  # a down- or upsampler: the same module around a smaller convolution
    conv = pointwise(module.conv)
    # Some hold the same convolution under two names.
    small._modules = {
        name: conv if child is module.conv else child for name, child in module._modules.items()
    }
    if "Down" in type(module).__name__ and module.padding == 0:
        small.padding = 1  # the convolution no longer looks past the edge
    return small


_MAKE = {
    "identity": lambda module: Identity(),
    "zero": lambda module: Zero(),
    "shortcut": Shortcut,
    "resample": _resample,
    "pointwise": _pointwise,
    "low rank": low_rank,
}
