"""What can be done to an operator while all shapes stay valid (LD-Pruner, arXiv 2404.11936: remove, or make cheaper).

Whole blocks and branches are removed; bare layers, which nothing leads around, are made cheaper.  The modules here
stand where an operator stood: they take its arguments, and give its shapes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import nearest

MODIFICATIONS: dict[str, str] = {
    "identity": "what comes in goes out",
    "zero": "the branch adds nothing to the stream",
    "shortcut": "the residual branch is gone; the block's own 1x1 projection and resampling stay",
    "resample": "pooling down, or repeating up, without the convolution",
    "pointwise": "a 1x1 convolution whose weights are the sums over the window",
    "low rank": "two thin layers with half the weights, from the singular value decomposition",
}


def allowed(module: nn.Module, kind: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the modifications that keep the shapes of a module of a kind, the default first; empty: none does."""
    same = in_shape == out_shape
    if kind == "resnet":
        plain = same and module.conv_shortcut is None and module.upsample is None and module.downsample is None
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
        if getattr(module, "use_conv_transpose", False) or getattr(module, "norm", None) is not None:
            return ()
        if not isinstance(getattr(module, "conv", None), nn.Conv2d) or not getattr(module, "interpolate", True):
            return ()  # nothing is cheaper than resampling alone
        return ("resample",) * (module.channels == module.out_channels) + ("pointwise",)
    if kind == "convolution":
        flat = module.stride == (1, 1) or all(k > 1 for k in module.kernel_size)
        return ("pointwise",) * flat + ("identity",) * same
    fits = _half_rank(module.weight) > 0 and getattr(module, "groups", 1) == 1  # a linear layer
    return ("low rank",) * fits + ("identity",) * same


def replacement(module: nn.Module, how: str) -> nn.Module:
    """Return the module that stands in for `module`, which is of a kind that allows it and is only read.

    On the meta device the result has shapes without values. `how` is one of `MODIFICATIONS`, else a ValueError.
    """
    if how not in MODIFICATIONS:
        raise ValueError(f"Modification {how!r} is unknown. {nearest(str(how), MODIFICATIONS)}")
    return _MAKE[how](module).train(module.training)


class Identity(nn.Module):
    """Pass on what came in; as a tuple where the caller says `return_dict=False`, as diffusers' modules do."""

    def forward(self, *args, return_dict: bool | None = None, **kwargs) -> Tensor | tuple[Tensor]:
        stream = args[0] if args else kwargs["hidden_states"]
        return stream if return_dict is None else (stream,)


class Zero(nn.Module):
    """A residual branch that adds nothing: zeros that take no memory."""

    def forward(self, *args, **kwargs) -> Tensor:
        stream = args[0] if args else kwargs["hidden_states"]
        return stream.new_zeros(()).expand(stream.shape)


class Shortcut(nn.Module):
    """A `ResnetBlock2D` without its branch; its 1x1 projection and its resampling are kept, with their weights."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.upsample, self.downsample = block.upsample, block.downsample
        self.conv_shortcut, self.scale = block.conv_shortcut, block.output_scale_factor

    def forward(self, *args, **kwargs) -> Tensor:
        stream = args[0] if args else kwargs["input_tensor"]
        for part in (self.upsample, self.downsample, self.conv_shortcut):
            stream = stream if part is None else part(stream)
        return stream / self.scale if self.scale != 1 else stream


class Stretch(nn.Module):
    """Double height and width, or go to `output_size`, by repeating each position."""

    def forward(self, hidden_states: Tensor, output_size=None, *args, **kwargs) -> Tensor:
        size = tuple(output_size) if output_size is not None else [2 * n for n in hidden_states.shape[-2:]]
        return F.interpolate(hidden_states, size=size, mode="nearest")


def _resample(module: nn.Module) -> nn.Module:
    # A convolution that pads on all sides rounds odd sizes up.
    return nn.AvgPool2d(2, ceil_mode=module.padding != 0) if "Down" in type(module).__name__ else Stretch()


def _pointwise(module: nn.Module) -> nn.Module:
    """Return the 1x1 convolution whose weights are the sums over the window: the same where the input is flat."""
    if isinstance(module, nn.Conv2d):
        return _layer(module, module.weight.sum((2, 3)))
    small, conv = copy.copy(module), _pointwise(module.conv)  # a sampler: the same around a smaller convolution
    # Some hold the same convolution under two names.
    small._modules = {name: conv if child is module.conv else child for name, child in module._modules.items()}
    if "Down" in type(module).__name__ and module.padding == 0:
        small.padding = 1  # the convolution no longer looks past the edge
    return small


@torch.no_grad()
def _low_rank(layer: nn.Linear | nn.Conv2d) -> nn.Sequential:
    """Return two layers, together the best approximation of `layer` with half its weights (Eckart and Young 1936)."""
    rank = _half_rank(layer.weight)
    u, s, v = torch.linalg.svd(layer.weight.flatten(1).float(), full_matrices=False)
    root = s[:rank].sqrt()
    return nn.Sequential(_layer(layer, root[:, None] * v[:rank], first=True), _layer(layer, u[:, :rank] * root))


@torch.no_grad()
def _layer(like: nn.Linear | nn.Conv2d, weight: Tensor, *, first: bool = False) -> nn.Linear | nn.Conv2d:
    """Return a layer of the kind of another, of this matrix; the first of two has neither bias nor stride."""
    bias, (out, inner) = like.bias is not None and not first, weight.shape
    kind = {"bias": bias, "device": weight.device, "dtype": like.weight.dtype}
    if isinstance(like, nn.Linear):
        small = nn.Linear(inner, out, **kind)
    else:
        small = nn.Conv2d(inner * like.groups, out, 1, 1 if first else like.stride, groups=like.groups, **kind)
    small.weight.copy_(weight.reshape(small.weight.shape))
    if bias:
        small.bias.copy_(like.bias)
    return small.requires_grad_(like.weight.requires_grad)


def _half_rank(weight: Tensor) -> int:
    """Return the largest rank at which two factors hold at most half the weights of a matrix, or 0."""
    out, inner = weight.shape[:2]
    return out * inner // 2 // (out + inner)


_MAKE = {
    "identity": lambda module: Identity(),
    "zero": lambda module: Zero(),
    "shortcut": Shortcut,
    "resample": _resample,
    "pointwise": _pointwise,
    "low rank": _low_rank,
}
