"""Which channels of a UNet may go together, how much each set is worth, and which of them to keep.

Torch-Pruning traces which channels only go together (Fang et al. 2023, DepGraph). Each such *group* gets a level of the
UNet and a list of kept channels, equally many for all groups of a level, so that the result is an ordinary UNet.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

# Their width is that of the inputs, the outputs or the time embedding, which stay.
_FIXED = re.compile(r"^(conv_out|time_embedding|add_embedding|class_embedding|encoder_hid_proj|add_time_proj)(\.|$)")
_LEVEL = re.compile(r"^(down_blocks|up_blocks)\.(\d+)\.|^(conv_in|mid_block)(\.|$)")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that only go together.

    Attributes:
        group: Torch-Pruning's group, with every layer that changes.
        root: path of the layer whose output channels are counted.
        level: of the UNet, 0 for the first.
        size: number of channels.
        heads: number of attention heads the channels are split into, 0 outside attention.
        whole_heads: True where heads are of one width, and go whole.
        gated: True where the second half of the channels gates the first (GEGLU), or one half scales and one shifts.
        normed: True where a GroupNorm reads the channels.
    """

    group: Any
    root: str
    level: int
    size: int
    heads: int = 0
    whole_heads: bool = False
    gated: bool = False
    normed: bool = False


def torch_pruning() -> ModuleType:
    """Import Torch-Pruning, which nothing else here needs, or say how to install it."""
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'prune_structured needs torch-pruning. Install it: pip install "pruning-lib[structured]"'
        ) from error
    return torch_pruning


def trace(unet: nn.Module, inputs: dict[str, object]) -> Any:
    """Run the UNet once and return its dependency graph."""
    tp = torch_pruning()
    for parameter in unet.parameters():  # the graph is read off what autograd recorded
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                unet, inputs, forward_fn=lambda m, x: m(**x), output_transform=lambda out: out.sample, verbose=False
            )
    except Exception as error:  # whatever a foreign tracer stumbles over, the reader needs to know which model it was
        told = str(error) or type(error).__name__
        raise ValueError(f"Torch-Pruning {tp.__version__} cannot trace this {type(unet).__name__}: {told}") from error


def channel_groups(unet: nn.Module, graph: Any, small: nn.Module) -> list[ChannelGroup]:
    """Return every group of prunable channels; each belongs to one level. `small` is what the UNet shall become."""
    names = {module: name for name, module in unet.named_modules()}
    all_widths = unet.config.block_out_channels
    heads = {m.to_q: (m.heads, small.get_submodule(names[m]).heads) for m in unet.modules() if isinstance(m, Attention)}
    gates = {m.proj for m in unet.modules() if isinstance(m, GEGLU)}
    gates |= {m.time_emb_proj for m in unet.modules() if getattr(m, "time_embedding_norm", "") == "scale_shift"}
    found = []
    for group in graph.get_all_groups():
        modules = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        # A norm over joined channels would belong to the levels of both; layers with weights say where they are made.
        paths = [names[m] for m in modules if isinstance(m, (nn.Conv2d, nn.Linear))]
        root, size = group[0][0].target.module, len(group[0][1])
        at = {level_of(path, len(all_widths)) for path in paths} - {None}
        if not at or any(_FIXED.match(path) for path in paths):
            continue
        if len({all_widths[level] for level in at}) != 1:
            raise ValueError(f"The channels of {names[root]} belong to levels {sorted(at)} of different width.")
        before, after = next((heads[m] for m in modules if m in heads), (0, 0))
        split = {
            "heads": before,
            "whole_heads": before != after,
            "gated": root in gates,
            "normed": any(isinstance(m, nn.GroupNorm) for m in modules),
        }
        found.append(ChannelGroup(group, names[root], min(at), size, **split))
    return found


def level_of(path: str, levels: int) -> int | None:
    """Return the level of a UNet that a layer belongs to, or None."""
    match = _LEVEL.match(path)
    if match is None:
        return None
    if match[3]:
        return 0 if match[3] == "conv_in" else levels - 1
    return int(match[2]) if match[1] == "down_blocks" else levels - 1 - int(match[2])


def scorer(importance: str, seed: int = 0) -> Callable[[Any], Tensor]:
    """Return the function that gives each channel of one of Torch-Pruning's groups its worth.

    Args:
        importance: "magnitude": the mean square of all weights that go with a channel; "taylor": |w dL/dw| summed over
            them (Molchanov et al. 2019, Eq. 8 without the square), from the gradients that the parameters hold;
            "random": a control.
        seed: for "random".
    """
    if importance == "random":
        generator = torch.Generator().manual_seed(seed)
        return lambda group: torch.rand(len(group[0][1]), generator=generator)
    if importance == "taylor":
        return torch_pruning().importance.GroupTaylorImportance()
    return torch_pruning().importance.GroupMagnitudeImportance(p=2)


def choose(group: ChannelGroup, scores: Tensor, share: float, norm_groups: int) -> Tensor:
    """Return the channels to keep, int64, ascending.

    A GroupNorm keeps its groups: each loses equally many channels, its own worst; so do the heads of attention.
    The two halves of a gated layer lose the same channels.

    Args:
        group: the channels.
        scores: their worth, `[size]`.
        share: of the channels to keep; times the size it is a whole number.
        norm_groups: groups of every GroupNorm.
    """
    scores, norms = scores.detach().float().cpu(), norm_groups if group.normed else 1
    if group.gated:
        half = group.size // 2
        kept = _best(scores[:half] + scores[half:], share, norms)
        return torch.cat([kept, kept + half])
    if group.whole_heads:
        kept = _best(scores.view(group.heads, -1).sum(1), share, 1)
        return torch.arange(group.size).view(group.heads, -1)[kept].flatten()
    return _best(scores, share, group.heads or norms)


def _best(scores: Tensor, share: float, parts: int) -> Tensor:
    """Return the indices of the highest scores, equally many from each of `parts` equal parts."""
    rows = scores.view(parts, -1)
    count = round(rows.shape[1] * share)
    kept = rows.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
    return (kept + torch.arange(parts)[:, None] * rows.shape[1]).flatten()
