"""Removing whole blocks from a Stable Diffusion UNet by hand: the recipe of BK-SDM (Kim et al. 2023, section 3.1).

Of the two pairs of residual block and transformer that a level has on the way down the second goes, of the three on the
way up the middle one: the first changes the level's width, the last on the way up takes the skip connection from below.
No criterion chooses, which makes the recipe a baseline for those that do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from ..checks import nearest
from .structured import INSTEAD, PrunedUNet, build, cast, check_unet, count, own_weights, plain_config, sizes

VARIANTS = ("base", "small", "tiny")


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
        variant: "base": one pair per level down, two up. "small": and no mid block. "tiny": and no innermost level.

    Returns:
        The smaller UNet, with the weights of the blocks that stay, bit for bit.

    Example:
        >>> pipe.unet = pl.remove_blocks(pipe.unet, "base").unet
    """
    unet = check_unet(unet, "remove_blocks cuts", INSTEAD)
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is unknown. {nearest(str(variant), VARIANTS)}")
    config, found = _config(unet, variant), own_weights(unet, values=False)
    whole = count(build(plain_config(unet), torch.device("meta")))
    small = cast(build(config, unet.device), unet.dtype)
    weights, removed = {}, {}
    for name, value in found.items():
        new = _renamed(name, unet, variant)
        if new is None:
            block = "mid_block" if name.startswith("mid_block.") else ".".join(name.split(".")[:4])
            removed[block] = None
        else:
            weights[new] = value.clone()
    small.load_state_dict(weights, strict=True)
    return BlockPruned(unet=small, variant=variant, removed=tuple(removed), **sizes(whole, count(small)))


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
        for name, value in config.items():
            if isinstance(value, (list, tuple)) and len(value) == levels:  # one entry per level, some from within
                upward = name in ("up_block_types", "reverse_transformer_layers_per_block")
                config[name] = tuple(value[1:] if upward else value[:-1])
    return config


def _renamed(name: str, unet: UNet2DConditionModel, variant: str) -> str | None:
    """Return the name of a weight in the smaller UNet, or None if it goes."""
    side, *rest = name.split(".")
    if side == "mid_block":
        return name if variant == "base" else None
    if side not in ("down_blocks", "up_blocks"):
        return name
    level, kind, *rest = rest
    level = new_level = int(level)
    if variant == "tiny":
        last = len(unet.down_blocks) - 1
        if level == (last if side == "down_blocks" else 0):
            return None
        if kind == "downsamplers" and level == last - 1:
            return None  # nothing below is left
        new_level = level if side == "down_blocks" else level - 1
    if kind in ("resnets", "attentions"):
        pair, *rest = rest
        last_pair = str(len(getattr(unet, side)[level].resnets) - 1)
        kept = {"0": "0"} if side == "down_blocks" else {"0": "0", last_pair: "1"}
        if pair not in kept:
            return None
        rest = [kept[pair], *rest]
    return ".".join([side, str(new_level), kind, *rest])
