"""Removing whole blocks from a Stable Diffusion UNet by hand: the recipe of BK-SDM (Kim et al. 2023, section 3.1).

A level of the UNet has two pairs of a residual block and a transformer on the way down and three on the way up.  Going
down the second pair goes; going up the middle one goes.  The first pair of a level changes its width, and the last one
on the way up takes the skip connection that the level below sends, so these stay.

- "base": one pair per level down, two up.
- "small": and no mid block.
- "tiny": and no innermost level.

No criterion chooses: the recipe is the same for every model, which makes it a baseline for those that choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..checks import nearest
from .structured import PrunedUNet, build, cast, check_unet, plain_config, sizes

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["VARIANTS", "BlockPruned", "remove_blocks"]

VARIANTS = ("base", "small", "tiny")
# Fields of the configuration with one entry per level, in the order of the levels; those of the way up are reversed.
_PER_LEVEL = (
    "block_out_channels",
    "down_block_types",
    "attention_head_dim",
    "num_attention_heads",
    "cross_attention_dim",
    "only_cross_attention",
    "transformer_layers_per_block",
    "layers_per_block",
)
_UP = ("up_block_types", "reverse_transformer_layers_per_block")
_PAIR = re.compile(r"^(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions)\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class BlockPruned(PrunedUNet):
    """A UNet with fewer blocks.

    Attributes:
        variant: "base", "small" or "tiny".
        removed: paths in the model it was cut from, such as "down_blocks.0.resnets.1", in order.
    """

    variant: str
    removed: tuple[str, ...]


@torch.no_grad()
def remove_blocks(unet: UNet2DConditionModel, variant: str = "base") -> BlockPruned:
    """Return a copy of a UNet without the blocks that BK-SDM removes; the given one stays as it is.

    Args:
        unet: a `UNet2DConditionModel` with at least two layers per block, such as that of Stable Diffusion 1.x and 2.x.
        variant: "base", "small" or "tiny".

    Returns:
        The smaller UNet, with the weights of the blocks that stay, bit for bit.

    Raises:
        TypeError: another kind of denoiser.
        ValueError: an unknown variant, or a UNet that the recipe does not fit.

    Example:
        >>> pipe.unet = pl.remove_blocks(pipe.unet, "base").unet
    """
    check_unet(unet, "remove_blocks cuts")
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is unknown. {nearest(str(variant), VARIANTS)}")
    config = _config(unet, variant)
    drop = variant == "tiny"
    last = len(unet.config.block_out_channels) - 1
    weights, gone = {}, []
    for name, value in unet.state_dict().items():
        new = _renamed(name, unet, last, drop)
        if new is None or (name.startswith("mid_block.") and variant != "base"):
            gone.append(name)
        else:
            weights[new] = value.clone()
    small = cast(build(config, unet.device), unet.dtype)
    small.load_state_dict(weights, strict=True)
    return BlockPruned(unet=small, variant=variant, removed=_paths(gone), **sizes(unet, small))


def _config(unet: UNet2DConditionModel, variant: str) -> dict[str, object]:
    config, levels = plain_config(unet), len(unet.config.block_out_channels)
    layers = config["layers_per_block"]
    each = [layers] * levels if isinstance(layers, int) else list(layers)
    if min(each) < 2:
        raise ValueError(
            f"layers_per_block={layers}: a level with one pair has none to spare. The recipe needs two or more."
        )
    config["layers_per_block"] = 1
    if variant != "base":
        if unet.mid_block is None:
            raise ValueError(f"This UNet has no mid block, which {variant!r} removes. Use variant='base'.")
        config["mid_block_type"] = None
    if variant == "tiny":
        widths = config["block_out_channels"]
        if levels < 3 or widths[-1] != widths[-2]:
            raise ValueError(
                f"'tiny' drops the innermost level, so the two innermost must be equally wide; widths here: {widths}."
            )
        for name in _PER_LEVEL:
            if isinstance(config.get(name), (list, tuple)):
                config[name] = tuple(config[name])[:-1]
        for name in _UP:
            if isinstance(config.get(name), (list, tuple)):
                config[name] = tuple(config[name])[1:]
    return config


def _renamed(name: str, unet: UNet2DConditionModel, last: int, drop: bool) -> str | None:
    """Return the name of a weight in the smaller UNet, or None if it goes."""
    side, level = name.split(".")[0], name.split(".")[1]
    if side not in ("down_blocks", "up_blocks"):
        return name
    level = int(level)
    if drop and (level == last if side == "down_blocks" else level == 0):
        return None
    if drop and side == "down_blocks" and level == last - 1 and ".downsamplers." in name:
        return None  # nothing below is left
    new_level = level - 1 if drop and side == "up_blocks" else level
    match = _PAIR.match(name)
    if match is None:
        return f"{side}.{new_level}.{name.split('.', 2)[2]}"
    pair, count = int(match[4]), len(getattr(unet, side)[level].resnets)
    kept = {0: 0} if side == "down_blocks" else {0: 0, count - 1: 1}
    if pair not in kept:
        return None
    return f"{side}.{new_level}.{match[3]}.{kept[pair]}.{name[match.end() :]}"


def _paths(names: Iterable[str]) -> tuple[str, ...]:
    """Shorten names of weights to the blocks they belong to, each once."""
    found = []
    for name in names:
        parts = name.split(".")
        found.append("mid_block" if parts[0] == "mid_block" else ".".join(parts[:4]))
    return tuple(dict.fromkeys(found))
