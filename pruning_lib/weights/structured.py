"""Structured pruning of a UNet: whole channels and heads go, and what is left is a smaller ordinary UNet.

Every level of the UNet is narrowed to one width.  That is less free than pruning each layer for itself, but the result
has a configuration: `save_pretrained` writes it, and plain diffusers reads it back.  Torch-Pruning follows the
dependencies and scores the channels (`channels.py`); Taylor scores follow Diff-Pruning (`taylor.py`).

Untouched are the latents at both ends, the text states, and the width of the time embedding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._text import nearest
from ..training.denoising import DenoisingTask
from .channels import channel_groups, choose, scorer, trace
from .rebuild import heads_of_levels, rebuild
from .smaller import Smaller, cast, check_unet, sizes
from .taylor import TaylorPasses, accumulate_gradients

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["IMPORTANCES", "Narrowed", "narrow_widths", "prune_structured", "width_unit"]

IMPORTANCES = ("magnitude", "taylor", "random")
HEADS = ("narrow", "whole")


@dataclass(frozen=True, kw_only=True)
class Narrowed(Smaller):
    """A narrower UNet and what was removed to get it.

    Attributes:
        importance: how channels were scored.
        heads: what became of attention heads, "narrow" or "whole".
        widths_before, widths_after: channels of each level.
        kept: path of a layer -> its kept output channels, int64; one layer stands for each group of coupled ones.
        passes: which timesteps Taylor scores used; None for others.
    """

    importance: str
    heads: str
    widths_before: tuple[int, ...]
    widths_after: tuple[int, ...]
    kept: dict[str, Tensor] = field(repr=False)
    passes: TaylorPasses | None = field(default=None, repr=False)


def width_unit(unet: UNet2DConditionModel, level: int) -> int:
    """Return what a level's width must be a multiple of: its norm groups and its attention heads divide it."""
    heads = heads_of_levels(unet)[level]
    return math.lcm(unet.config.norm_num_groups or 1, heads)


def narrow_widths(unet: UNet2DConditionModel, ratio: float) -> tuple[int, ...]:
    """Return the width of each level after about `ratio` of its channels were removed.

    Rounded to the nearest width that norm groups and heads divide, at least one unit; a half is rounded up.  Levels of
    different width stay different, because a UNet has extra layers between them.

    Args:
        unet: the UNet.
        ratio: share of the channels to remove, in [0, 1).

    Raises:
        ValueError: a ratio outside [0, 1).
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ValueError(f"ratio={ratio!r}; it is the share of channels to remove and must lie in [0, 1).")
    before = tuple(unet.config.block_out_channels)
    after: list[int] = []
    for level, width in enumerate(before):
        last = before[level - 1] if level else 0
        if width == last:
            after.append(after[-1])
            continue
        unit = width_unit(unet, level)
        wanted = min(width, max(unit, unit * math.floor((1 - ratio) * width / unit + 0.5)))
        if after and wanted == after[-1]:
            wanted = wanted + unit if width > last or wanted == unit else wanted - unit
        after.append(wanted)
    return tuple(after)


def prune_structured(
    unet: UNet2DConditionModel, ratio: float | None = None, *, widths: Sequence[int] | None = None,
    importance: str = "magnitude", task: DenoisingTask | None = None, heads: str = "narrow", threshold: float = 0.05,
    timesteps: int = 50, seed: int = 0,
) -> Narrowed:  # fmt: skip
    """Return a narrower copy of a UNet; the given one stays as it is.

    Args:
        unet: a `UNet2DConditionModel`, on any device.
        ratio: share of the channels to remove from every level, in [0, 1); rounded, see `narrow_widths`. Parameters
            and MACs fall about with the square of what is left.
        widths: instead of `ratio`: the channels each level keeps.
        importance: "magnitude", "taylor" or "random", see `channels.scorer`.
        task: images and captions for "taylor", as `DenoisingTask.of(pipe, images, captions)` makes it.
        heads: "narrow" keeps every attention head and makes it narrower; "whole" removes whole heads, which fits only
            where the new width is a multiple of the width of a head.
        threshold, timesteps: for "taylor", see `accumulate_gradients`.
        seed: for "random" and for the noise of "taylor".

    Returns:
        The smaller UNet with a report. Its output was checked against the pruned layers themselves.

    Raises:
        TypeError: another kind of denoiser.
        ValueError: arguments out of range, widths that do not fit, or a model that Torch-Pruning cannot trace.

    Example:
        >>> small = pl.prune_structured(pipe.unet, 0.5)
        >>> pipe.unet = small.unet
        >>> pipe.save_pretrained("smaller")
    """
    _check(unet, importance, task, heads)
    after = _check_widths(
        unet, narrow_widths(unet, ratio) if widths is None and ratio is not None else widths, heads
    )
    before = tuple(unet.config.block_out_channels)
    work = cast(copy.deepcopy(unet).eval(), torch.float32)
    passes = None
    if importance == "taylor":
        passes = accumulate_gradients(work, task, threshold=threshold, count=timesteps, seed=seed)
    graph = trace(work)
    groups, score = channel_groups(work, graph), scorer(importance, seed)
    kept = {}
    for group in groups:  # all are chosen before any is cut
        share = after[group.level] / before[group.level]
        if share < 1:
            norm_groups = work.config.norm_num_groups or 1
            kept[group.root] = choose(
                group, score(group.group), share, norm_groups, whole_heads=heads == "whole"
            )
    _cut(work, graph, kept)
    small = rebuild(work, after, heads)
    small = cast(small, unet.dtype)
    return Narrowed(
        unet=small, importance=importance, heads=heads, widths_before=before, widths_after=after, kept=kept,
        passes=passes, **sizes(unet, small),
    )  # fmt: skip


@torch.no_grad()
def _cut(work: nn.Module, graph, kept: dict[str, Tensor]) -> None:
    for path, keep in kept.items():
        layer = work.get_submodule(path)
        pruner = graph.get_pruner_of_module(layer)
        size = pruner.get_out_channels(layer)
        gone = sorted(set(range(size)) - set(keep.tolist()))
        graph.get_pruning_group(layer, pruner.prune_out_channels, gone).prune()
    for module in work.modules():  # the samplers remember how many channels they expect
        if hasattr(module, "conv") and hasattr(module, "channels") and isinstance(module.conv, nn.Conv2d):
            module.channels = module.conv.in_channels


def _check(unet: object, importance: str, task: object, heads: str) -> None:
    reason = " Transformers such as DiT and PixArt have one width throughout, and Torch-Pruning cannot follow them."
    check_unet(unet, "prune_structured narrows", reason)
    for name, value, allowed in (("importance", importance, IMPORTANCES), ("heads", heads, HEADS)):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is unknown. {nearest(str(value), allowed)}")
    if importance == "taylor" and not isinstance(task, DenoisingTask):
        raise ValueError(
            "importance='taylor' needs gradients, and so images: pass task=DenoisingTask.of(pipe, images, captions)."
        )


def _check_widths(unet: UNet2DConditionModel, widths: Sequence[int] | None, heads: str) -> tuple[int, ...]:
    before, now = tuple(unet.config.block_out_channels), heads_of_levels(unet)
    if widths is None:
        raise ValueError(
            "Give ratio=, the share of channels to remove, or widths=, the channels each level keeps."
        )
    widths = tuple(widths)
    if len(widths) != len(before):
        raise ValueError(
            f"widths={widths} has {len(widths)} entries; this UNet has {len(before)} levels: {before}."
        )
    for level, (width, old) in enumerate(zip(widths, before, strict=True)):
        unit = width_unit(unet, level)
        if heads == "whole":
            unit = math.lcm(unet.config.norm_num_groups or 1, old // now[level])
        if not 0 < width <= old or width % unit:
            more = ", and whole heads stay" if heads == "whole" else ""
            raise ValueError(
                f"widths[{level}]={width}; allowed: {', '.join(str(w) for w in range(unit, old + 1, unit))} "
                f"(norm groups and heads must divide it{more})."
            )
    for level in range(1, len(before)):
        if (before[level] == before[level - 1]) != (widths[level] == widths[level - 1]):
            same = "equal" if before[level] == before[level - 1] else "different"
            raise ValueError(
                f"widths={widths}: levels {level - 1} and {level} have {same} widths in this UNet, {before}, and must "
                f"stay {same}: a UNet has an extra layer between levels exactly where their widths differ."
            )
    return widths
