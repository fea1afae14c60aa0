"""From cut layers to an ordinary UNet: a configuration for the new widths, and the weights that are left.

Two things do not follow from cutting alone.  The scores of attention are divided by the root of a head's width, so a
narrower head would give larger ones.  And the number of waves that tell the UNet the time is the width of its first
level, so its first linear layer has to be fitted to fewer waves.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from ..measure.inputs import example_inputs
from .smaller import build, plain_config

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["heads_of_levels", "rebuild"]

TIMES = 1000  # timesteps at which the time embedding is fitted


@torch.no_grad()
def rebuild(work: UNet2DConditionModel, widths: tuple[int, ...], heads: str) -> UNet2DConditionModel:
    """Build the smaller UNet from a configuration, give it the weights that are left, and compare the outputs.

    Args:
        work: the UNet whose layers were cut; its configuration is still that of the whole one. It is changed.
        widths: channels of each level after cutting.
        heads: "narrow" or "whole", see `prune_structured`.

    Raises:
        ValueError: both do not compute the same, or its time embedding cannot be narrowed.
    """
    before = tuple(work.config.block_out_channels)
    config = plain_config(work)
    config["block_out_channels"] = widths
    config["time_embedding_dim"] = work.time_embedding.linear_2.out_features
    if heads == "whole":
        now = [max(1, n * a // b) for n, a, b in zip(heads_of_levels(work), widths, before, strict=True)]
        name = "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim"
        config[name] = tuple(now)
    small = build(config, work.device)
    for path, module in work.named_modules():
        if isinstance(module, Attention):
            _fit_heads(module, small.get_submodule(path).heads, heads)
    if widths[0] != before[0]:
        _fit_time(work, small)
    small.load_state_dict(work.state_dict(), strict=True)
    inputs = example_inputs(small, device=work.device)
    if not torch.allclose(work(**inputs).sample, small(**inputs).sample, rtol=1e-4, atol=1e-5):
        raise ValueError(
            "The smaller model does not compute what the pruned layers compute; please report this model."
        )
    return small


def _fit_heads(attention: Attention, heads: int, mode: str) -> None:
    """Set the number of heads, and keep the size of the scores: they are divided by the root of a head's width."""
    width = attention.to_q.out_features // heads
    if mode == "narrow":
        old = attention.inner_dim // attention.heads
        attention.to_q.weight.mul_((width / old) ** 0.5)
        if attention.to_q.bias is not None:
            attention.to_q.bias.mul_((width / old) ** 0.5)
    attention.heads = heads
    attention.inner_dim = attention.to_q.out_features


def _fit_time(work: nn.Module, small: nn.Module) -> None:
    """Refit the first layer of the time embedding by least squares: a narrower UNet gets fewer waves of the time."""
    if work.config.time_embedding_type != "positional":
        raise ValueError(
            f"This UNet's time embedding is {work.config.time_embedding_type!r}; only 'positional' ones can be "
            "narrowed. Give widths= that leave the first level as it is."
        )
    t, layer = torch.arange(TIMES), work.time_embedding.linear_1  # on the CPU: not every device has float64
    weight, bias = (p.detach().cpu().double() for p in (layer.weight, layer.bias))
    old, new = work.time_proj(t).double(), small.time_proj(t).double()
    ones = torch.ones(TIMES, 1, dtype=torch.float64)
    # the slowest waves are nearly constant over all timesteps: small singular values are left out
    solution = torch.linalg.pinv(torch.cat([new, ones], 1), rtol=1e-6) @ (old @ weight.T + bias)
    layer.weight = nn.Parameter(solution[:-1].T.to(layer.weight).contiguous())
    layer.bias = nn.Parameter(solution[-1].to(layer.bias).contiguous())
    layer.in_features = new.shape[1]
    work.time_proj = copy.deepcopy(small.time_proj)


def heads_of_levels(unet: UNet2DConditionModel) -> list[int]:
    """Return the number of attention heads of each level, 1 where it has none."""
    levels = len(unet.config.block_out_channels)
    found = [1] * levels
    for level in range(levels):
        places = [unet.down_blocks[level], unet.up_blocks[levels - 1 - level]]
        if level == levels - 1 and unet.mid_block is not None:
            places.append(unet.mid_block)
        heads = {m.heads for place in places for m in place.modules() if isinstance(m, Attention)}
        found[level] = math.lcm(*heads) if heads else 1
    return found
