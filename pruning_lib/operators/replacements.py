"""Modules that stand where an operator stood: they take its arguments, and give its shapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Identity", "Pool", "Shortcut", "Stretch", "Zero", "low_rank", "pointwise"]


def _first(args: tuple, kwargs: dict) -> Tensor:
    # Operators are called with the stream first, or by this name.
    return args[0] if args else kwargs["hidden_states"]


class Identity(nn.Module):
    """Pass on what came in."""

    def forward(self, *args, return_dict: bool | None = None, **kwargs) -> Tensor | tuple[Tensor]:
        """Return the first argument; as a tuple where the caller says `return_dict=False`, as diffusers' modules do."""
        stream = _first(args, kwargs)
        return stream if return_dict is None else (stream,)


class Zero(nn.Module):
    """A residual branch that adds nothing."""

    def forward(self, *args, **kwargs) -> Tensor:
        """Return zeros of the shape of the first argument; they take no memory."""
        stream = _first(args, kwargs)
        return stream.new_zeros(()).expand(stream.shape)


class Shortcut(nn.Module):
    """A residual block without its branch: only the way around it is left.

    Args:
        block: a `ResnetBlock2D`; its 1x1 projection and its resampling are kept, with their weights.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.upsample, self.downsample = block.upsample, block.downsample
        self.conv_shortcut, self.scale = block.conv_shortcut, block.output_scale_factor

    def forward(self, *args, **kwargs) -> Tensor:
        """Return what the block would, were its branch zero."""
        stream = args[0] if args else kwargs["input_tensor"]
        for part in (self.upsample, self.downsample, self.conv_shortcut):
            stream = stream if part is None else part(stream)
        return stream / self.scale if self.scale != 1 else stream


class Pool(nn.Module):
    """Halve height and width by the mean of 2 x 2 positions.

    Args:
        ceil: round odd sizes up, as a convolution that pads on all sides does.
    """

    def __init__(self, ceil: bool = True):
        super().__init__()
        self.ceil = ceil

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        """Return `[b, c, h / 2, w / 2]`."""
        return F.avg_pool2d(hidden_states, 2, ceil_mode=self.ceil)


class Stretch(nn.Module):
    """Double height and width by repeating each position."""

    def forward(self, hidden_states: Tensor, output_size=None, *args, **kwargs) -> Tensor:
        """Return `[b, c, 2 h, 2 w]`, or of `output_size`."""
        size = tuple(output_size) if output_size is not None else [2 * n for n in hidden_states.shape[-2:]]
        return F.interpolate(hidden_states, size=size, mode="nearest")


@torch.no_grad()
def pointwise(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the 1x1 convolution whose weights are the sums over the window: the same where the input is flat."""
    small = nn.Conv2d(
        conv.in_channels, conv.out_channels, 1, conv.stride, groups=conv.groups, bias=conv.bias is not None,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    if not conv.weight.is_meta:
        small.weight.copy_(conv.weight.sum((2, 3), keepdim=True))
        if conv.bias is not None:
            small.bias.copy_(conv.bias)
    return small.requires_grad_(conv.weight.requires_grad)


@torch.no_grad()
def low_rank(layer: nn.Linear | nn.Conv2d) -> nn.Sequential:
    """Return two layers, together the best approximation of `layer` with half its weights (Eckart and Young 1936)."""
    weight = layer.weight
    out, inner = weight.shape[:2]
    rank = half_rank(out, inner)
    kind = {"device": weight.device, "dtype": weight.dtype}
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        pair = (
            nn.Conv2d(inner, rank, 1, bias=False, **kind),
            nn.Conv2d(rank, out, 1, layer.stride, bias=bias, **kind),
        )
    else:
        pair = nn.Linear(inner, rank, bias=False, **kind), nn.Linear(rank, out, bias=bias, **kind)
    if not weight.is_meta:
        u, s, v = torch.linalg.svd(weight.reshape(out, inner).float(), full_matrices=False)
        root = s[:rank].sqrt()
        pair[0].weight.copy_((root[:, None] * v[:rank]).reshape(pair[0].weight.shape))
        pair[1].weight.copy_((u[:, :rank] * root).reshape(pair[1].weight.shape))
        if bias:
            pair[1].bias.copy_(layer.bias)
    return nn.Sequential(*pair).requires_grad_(weight.requires_grad)


def half_rank(out: int, inner: int) -> int:
    """Return the largest rank at which two factors hold at most half the weights of an `out` x `inner` matrix, or 0."""
    return out * inner // 2 // (out + inner)
