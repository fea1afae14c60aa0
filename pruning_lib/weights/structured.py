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

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .._text import nearest
from ..measure.inputs import example_inputs
from ..training.denoising import DenoisingTask
from .channels import channel_groups, choose, scorer, trace
from .smaller import Smaller, plain_config, sizes
from .taylor import TaylorPasses, accumulate_gradients

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
    heads = _heads(unet)[level]
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
    work = copy.deepcopy(unet).float().eval()
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
    small = _rebuild(work, after, heads, before)
    if unet.dtype != torch.float32:
        small = small.to(unet.dtype)
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


@torch.no_grad()
def _rebuild(
    work: UNet2DConditionModel, after: tuple[int, ...], heads: str, before: tuple[int, ...]
) -> nn.Module:
    """Build the smaller UNet from a configuration, give it the weights that are left, and compare the outputs."""
    config = plain_config(work)
    config["block_out_channels"] = after
    config["time_embedding_dim"] = work.time_embedding.linear_2.out_features
    if heads == "whole":
        now = [n * a // b for n, a, b in zip(_heads(work), after, before, strict=True)]
        name = "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim"
        config[name] = tuple(now)
    small = UNet2DConditionModel.from_config(config).eval().to(next(work.parameters()).device)
    for path, module in work.named_modules():
        if isinstance(module, Attention):
            _fit_heads(module, small.get_submodule(path).heads, heads)
    if after[0] != before[0]:
        _fit_time(work, small)
    small.load_state_dict(work.state_dict(), strict=True)
    inputs = example_inputs(small, device=next(work.parameters()).device)
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
    t = torch.arange(1000, device=next(work.parameters()).device)
    layer = work.time_embedding.linear_1
    old, new = work.time_proj(t).double(), small.time_proj(t).double()
    ones = torch.ones(len(t), 1, dtype=torch.float64, device=t.device)
    wanted = old @ layer.weight.double().T + layer.bias.double()
    # lstsq without a rank guess of its own: the slowest waves are nearly constant, so the problem is ill-conditioned
    solution = torch.linalg.pinv(torch.cat([new, ones], 1), rtol=1e-6) @ wanted
    layer.weight = nn.Parameter(solution[:-1].T.to(layer.weight).contiguous())
    layer.bias = nn.Parameter(solution[-1].to(layer.bias).contiguous())
    layer.in_features = new.shape[1]
    work.time_proj = copy.deepcopy(small.time_proj)


def _heads(unet: UNet2DConditionModel) -> list[int]:
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


def _check(unet: object, importance: str, task: object, heads: str) -> None:
    if not isinstance(unet, UNet2DConditionModel):
        hint = " Pass its unet: pipe.unet." if hasattr(unet, "components") else ""
        raise TypeError(
            f"prune_structured narrows a UNet2DConditionModel; got {type(unet).__name__}.{hint} Transformers such as "
            "DiT and PixArt have one width throughout, and Torch-Pruning cannot follow their modulation and patches."
        )
    for name, value, allowed in (("importance", importance, IMPORTANCES), ("heads", heads, HEADS)):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is unknown. {nearest(str(value), allowed)}")
    if importance == "taylor" and not isinstance(task, DenoisingTask):
        raise ValueError(
            "importance='taylor' needs gradients, and so images: pass task=DenoisingTask.of(pipe, images, captions)."
        )


def _check_widths(unet: UNet2DConditionModel, widths: Sequence[int] | None, heads: str) -> tuple[int, ...]:
    before, now = tuple(unet.config.block_out_channels), _heads(unet)
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
