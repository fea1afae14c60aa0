"""Structured pruning of a UNet: whole channels go, and what is left is a smaller ordinary UNet.

Every level is narrowed to one width, so that the result has a configuration: `save_pretrained` writes it, and plain
diffusers reads it back.  Untouched are the latents at both ends, the text states, and the width of the time embedding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..checks import check_number, nearest
from ..denoisers import example_inputs
from ..finetuning.denoising import DenoisingTask
from ..macs import count_macs
from .channels import channel_groups, choose, scorer, torch_pruning, trace

IMPORTANCES = ("magnitude", "taylor", "random")


@dataclass(frozen=True, kw_only=True)
class PrunedUNet:
    """A smaller UNet and its size beside that of the one it was cut from.

    Attributes:
        unet: the smaller model, dense, in evaluation mode. `unet.save_pretrained(folder)` writes it, and
            `UNet2DConditionModel.from_pretrained(folder)` reads it back; `pipe.unet = unet` puts it into a pipeline.
        params_before, params_after: parameters.
        macs_before, macs_after: of one call, batch 1, with attention products.
    """

    unet: UNet2DConditionModel = field(repr=False)
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int

    @property
    def params_ratio(self) -> float:
        """Share of the parameters that was removed."""
        return 1 - self.params_after / self.params_before

    @property
    def macs_ratio(self) -> float:
        """Share of the MACs that was removed."""
        return 1 - self.macs_after / self.macs_before


@dataclass(frozen=True, kw_only=True)
class ChannelPruned(PrunedUNet):
    """A narrower UNet and what was removed to get it.

    Attributes:
        importance: how channels were scored.
        widths_before, widths_after: channels of each level.
        kept: path of a layer -> its kept output channels, int64; one layer stands for each group of coupled ones.
    """

    importance: str
    widths_before: tuple[int, ...]
    widths_after: tuple[int, ...]
    kept: dict[str, Tensor] = field(repr=False)


def prune_structured(
    unet: UNet2DConditionModel,
    ratio: float | None = None,
    *,
    widths: Sequence[int] | None = None,
    importance: str = "magnitude",
    task: DenoisingTask | None = None,
    threshold: float = 0.05,
    timesteps: int = 50,
    seed: int = 0,
) -> ChannelPruned:
    """Return a narrower copy of a UNet, with every attention head narrower; the given one stays as it is.

    Args:
        unet: a `UNet2DConditionModel`, on any device.
        ratio: share of the channels to remove from every level, in [0, 1); rounded, see `narrow_widths`. Parameters
            and MACs fall about with the square of what is left.
        widths: instead of `ratio`: the channels each level keeps.
        importance: "magnitude", "taylor" or "random", see `channels.scorer`.
        task: images and captions for "taylor", as `DenoisingTask.of(pipe, images, captions)` makes it.
        threshold, timesteps: for "taylor", see `accumulate_gradients`.
        seed: for "random" and for the noise of "taylor".

    Returns:
        The smaller UNet with a report. Its output was checked against the pruned layers themselves.

    Raises:
        TypeError, ValueError: another kind of denoiser, arguments out of range, widths that do not fit, or a model that
            Torch-Pruning cannot trace. Where it is not installed, a ModuleNotFoundError.

    Example:
        >>> small = pl.prune_structured(pipe.unet, 0.5)
        >>> pipe.unet = small.unet
        >>> pipe.save_pretrained("smaller")
    """
    reason = " Transformers such as DiT and PixArt have one width throughout, and Torch-Pruning cannot follow them."
    check_unet(unet, "prune_structured narrows", reason)
    if importance not in IMPORTANCES:
        raise ValueError(f"importance={importance!r} is unknown. {nearest(str(importance), IMPORTANCES)}")
    if importance == "taylor" and not isinstance(task, DenoisingTask):
        raise ValueError(
            "importance='taylor' needs gradients, and so images: pass task=DenoisingTask.of(pipe, images, captions)."
        )
    if widths is None:
        if ratio is None:
            raise ValueError("Give ratio=, the share of channels to remove, or widths=, the channels each level keeps.")
        widths = narrow_widths(unet, ratio)
    before, after = tuple(unet.config.block_out_channels), tuple(widths)
    _check_widths(unet, after)
    torch_pruning()  # before any work, should it be missing

    work = cast(copy.deepcopy(unet).eval(), torch.float32)
    if importance == "taylor":
        accumulate_gradients(work, task, threshold=threshold, count=timesteps, seed=seed)
    graph, score = trace(work), scorer(importance, seed)
    norm_groups, kept = work.config.norm_num_groups or 1, {}
    for group in channel_groups(work, graph):  # all are chosen before any is cut
        share = after[group.level] / before[group.level]
        if share < 1:
            kept[group.root] = choose(group, score(group.group), share, norm_groups)
    _cut(work, graph, kept)
    small = cast(_rebuild(work, after), unet.dtype)
    report = sizes(unet, small) | {"widths_before": before, "widths_after": after}
    return ChannelPruned(unet=small, importance=importance, kept=kept, **report)


def narrow_widths(unet: UNet2DConditionModel, ratio: float) -> tuple[int, ...]:
    """Return the width of each level after about `ratio` of its channels, in [0, 1), were removed.

    Rounded to the nearest width that norm groups and heads divide, at least one unit; a half is rounded up.  Levels of
    different width stay different, because a UNet has extra layers between them.
    """
    check_number("ratio", ratio, "[0, 1)")
    after: list[int] = []
    last = 0
    for level, width in enumerate(unet.config.block_out_channels):
        unit = _width_unit(unet, level)
        wanted = min(width, max(unit, unit * math.floor((1 - ratio) * width / unit + 0.5)))
        if width == last:
            wanted = after[-1]
        elif after and wanted == after[-1]:
            wanted += unit if width > last or wanted == unit else -unit
        after.append(wanted)
        last = width
    return tuple(after)


def _width_unit(unet: UNet2DConditionModel, level: int) -> int:
    """Return what a level's width must be a multiple of: norm groups and attention heads divide it."""
    places = [unet.down_blocks[level], unet.up_blocks[-1 - level]]
    if level == len(unet.down_blocks) - 1 and unet.mid_block is not None:
        places.append(unet.mid_block)
    heads = [m.heads for place in places for m in place.modules() if isinstance(m, Attention)]
    return math.lcm(unet.config.norm_num_groups or 1, *heads)


def _check_widths(unet: UNet2DConditionModel, widths: tuple[int, ...]) -> None:
    before = tuple(unet.config.block_out_channels)
    if len(widths) != len(before):
        raise ValueError(f"widths={widths} has {len(widths)} entries; this UNet has {len(before)} levels: {before}.")
    for level, (width, old) in enumerate(zip(widths, before, strict=True)):
        unit = _width_unit(unet, level)
        if not 0 < width <= old or width % unit:
            raise ValueError(
                f"widths[{level}]={width}; allowed: {', '.join(str(w) for w in range(unit, old + 1, unit))} "
                f"(norm groups and heads must divide it)."
            )
    for level in range(1, len(before)):
        if (before[level] == before[level - 1]) != (widths[level] == widths[level - 1]):
            same = "equal" if before[level] == before[level - 1] else "different"
            raise ValueError(
                f"widths={widths}: levels {level - 1} and {level} have {same} widths in this UNet, {before}, and must "
                f"stay {same}: a UNet has an extra layer between levels exactly where their widths differ."
            )


def accumulate_gradients(
    unet: nn.Module, task: DenoisingTask, *, threshold: float = 0.05, count: int = 50, batch: int = 16, seed: int = 0
) -> list[int]:
    """Fill the gradients of `unet` with the sum of those of the timesteps that matter, which are returned.

    Diff-Pruning (Fang, Ma and Wang 2023, section 4): removing a weight w changes the loss of timestep t by about
    w dL_t/dw.  The gradients are added up before the product is taken.  Timesteps at which the model has nearly nothing
    left to learn, L_t / L_max below a threshold, only add noise and are left out.

    Args:
        unet: the denoiser; its gradients are replaced, its weights stay.
        task: images and captions to compute the loss on.
        threshold: of the loss, as a share of the largest, in [0, 1); 0 keeps all timesteps.
        count: timesteps to look at, spread evenly over the schedule, >= 1.
        batch: latents per timestep, >= 1.
        seed: of latents and noise; the same timestep sees the same ones in both passes.
    """
    check_number("threshold", threshold, "[0, 1)")
    if not 1 <= count <= task.levels:
        raise ValueError(f"count={count}; allowed: 1 to {task.levels}, the timesteps of the schedule.")
    timesteps = ((torch.arange(count) + 0.5) * task.levels / count).long().tolist()

    def loss(t: int) -> Tensor:
        return task.loss_at(unet, t, torch.Generator().manual_seed(seed * 1_000_003 + t), batch)

    with torch.no_grad():
        losses = [loss(t).item() for t in timesteps]
    if not all(0 <= value < float("inf") for value in losses):
        raise ValueError("A loss is not finite: the weights are damaged, or too large for their type.")
    used = [t for t, value in zip(timesteps, losses, strict=True) if value >= threshold * max(losses)]
    unet.zero_grad(set_to_none=True)
    with torch.enable_grad():
        for t in used:
            loss(t).backward()
    return used


@torch.no_grad()
def _cut(work: nn.Module, graph: Any, kept: dict[str, Tensor]) -> None:
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
def _rebuild(work: UNet2DConditionModel, widths: tuple[int, ...]) -> UNet2DConditionModel:
    """Build the smaller UNet from a configuration, give it the weights that are left, and compare the outputs.

    Two things do not follow from cutting alone.  The scores of attention are divided by the root of a head's width, so
    a narrower head would give larger ones.  And the number of waves that tell the UNet the time is the width of its
    first level, so its first linear layer has to be fitted to fewer waves.
    """
    config = plain_config(work) | {"block_out_channels": widths}
    config["time_embedding_dim"] = work.time_embedding.linear_2.out_features
    small = build(config, work.device)
    for module in work.modules():
        if isinstance(module, Attention):
            width, inner = module.to_q.out_features, module.inner_dim
            for part in module.to_q.parameters():
                part.mul_((width / inner) ** 0.5)
            module.inner_dim = width
    if widths[0] != work.config.block_out_channels[0]:
        _fit_time(work, small)
    small.load_state_dict(work.state_dict(), strict=True)
    inputs = example_inputs(small, device=work.device)
    if not torch.allclose(work(**inputs).sample, small(**inputs).sample, rtol=1e-4, atol=1e-5):
        raise ValueError("The smaller model does not compute what the pruned layers compute; please report this model.")
    return small


TIMES = 1000  # timesteps at which the time embedding is fitted


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


def check_unet(unet: object, what: str, more: str = "") -> None:
    """Raise TypeError unless `unet` is a `UNet2DConditionModel`; `what` says what wanted one, `more` why."""
    if not isinstance(unet, UNet2DConditionModel):
        hint = " Pass its unet: pipe.unet." if hasattr(unet, "components") else ""
        raise TypeError(f"{what} a UNet2DConditionModel; got {type(unet).__name__}.{hint}{more}")


def sizes(before: nn.Module, after: nn.Module) -> dict[str, int]:
    """Return the four counts of `PrunedUNet`."""
    whole, less = count_macs(before), count_macs(after)
    params = {"params_before": whole.params, "params_after": less.params}
    return {**params, "macs_before": whole.macs, "macs_after": less.macs}


def plain_config(unet: UNet2DConditionModel) -> dict[str, object]:
    """Return a copy of the configuration in which every entry counts, for `from_config` of a changed one."""
    config = dict(unet.config)
    config.pop("_use_default_values", None)  # diffusers would put the defaults back, whatever stands there now
    return config


def build(config: dict[str, object], device: torch.device) -> UNet2DConditionModel:
    """Return an untrained UNet in evaluation mode, made where it belongs: on the meta device that costs nothing."""
    with torch.device(device):
        return UNet2DConditionModel.from_config(config).eval()


def cast(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return the module itself with weights of another type, without the warning that diffusers gives for it."""
    return nn.Module.to(unet, dtype)
