"""Structured pruning of a UNet: whole channels go, and what is left is a smaller ordinary UNet.

Every level is narrowed to one width, so that the result has a configuration: `save_pretrained` writes it, and plain
diffusers reads it back.  Untouched are the latents at both ends, the text states, and the width of the time embedding.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..capture import Call
from ..checks import check_number, nearest
from ..denoisers import example_inputs
from ..finetuning.denoising import DenoisingTask
from ..macs import MacsReport, count_macs
from .channels import channel_groups, choose, level_of, scorer, torch_pruning, trace

IMPORTANCES = ("magnitude", "taylor", "random")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEFAULT_SIZE = 64  # latent pixels of a call, where the configuration names none
_BY_SCALE = {AttnProcessor2_0: AttnProcessor, AttnAddedKVProcessor2_0: AttnAddedKVProcessor}
_FUSED = re.compile(r"\.to_(qkv|kv)\.")


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
    call: Call | None = None,
) -> ChannelPruned:
    """Return a narrower copy of a UNet, with every attention head narrower; the given one stays as it is.

    The copy is what the configuration and the weights say.  What is switched on for a run is not in them, and has to be
    switched on again: attention processors, slicing, FreeU, checkpointing, hooks, compilation.  Heads whose width is
    fixed (`SimpleCrossAttn` and `Attn` blocks) are kept or removed whole.

    Args:
        unet: a `UNet2DConditionModel`, on any device.
        ratio: share of the channels to remove from every level, in [0, 1); rounded, see `narrow_widths`. Parameters
            and MACs fall about with the square of what is left.
        widths: instead of `ratio`: the channels each level keeps.
        importance: "magnitude", "taylor" or "random", see `channels.scorer`.
        task: images and captions for "taylor", as `DenoisingTask.of(pipe, images, captions)` makes it.
        threshold, timesteps: for "taylor", see `accumulate_gradients`.
        seed: for "random" and for the noise of "taylor".
        call: what the UNet is called with, where that does not follow from its configuration, as in
            `call=pruning_lib.capture.captured(pipe, 1)`.

    Returns:
        The smaller UNet with a report. Its output was checked against the pruned layers themselves.

    Raises:
        TypeError, ValueError: another kind of denoiser, weights that the configuration does not know (adapters) or that
            are quantised, arguments out of range, widths that do not fit, or a model that Torch-Pruning cannot trace.
            Where it is not installed, a ModuleNotFoundError.

    Example:
        >>> small = pl.prune_structured(pipe.unet, 0.5)
        >>> pipe.unet = small.unet
        >>> pipe.save_pretrained("smaller")
    """
    unet = check_unet(unet, "prune_structured narrows", ONE_WIDTH + INSTEAD)
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
    weights = own_weights(unet)
    _check_widths(unet, after)
    torch_pruning()  # before any work, should it be missing

    work = build(plain_config(unet), unet.device)
    work.load_state_dict(weights)
    config = plain_config(unet) | {"block_out_channels": after}
    config["time_embedding_dim"] = work.time_embedding.linear_2.out_features
    small = build(config, unet.device)
    whole = count(work, call)
    _check_layers(work, small, whole)
    less, inputs = count(small, call), arguments(work, call, work.device)
    graph, score = trace(work, inputs), scorer(importance, seed)
    if importance == "taylor":
        accumulate_gradients(work, task, threshold=threshold, count=timesteps, seed=seed)
    norm_groups, kept = work.config.norm_num_groups or 1, {}
    for group in channel_groups(work, graph, small):  # all are chosen before any is cut
        share = after[group.level] / before[group.level]
        if share < 1:
            kept[group.root] = choose(group, score(group.group), share, norm_groups)
    _cut(work, graph, kept)
    _hand_over(work, small, inputs)
    small = cast(small, unet.dtype)
    report = sizes(whole, less) | {"widths_before": before, "widths_after": after}
    return ChannelPruned(unet=small, importance=importance, kept=kept, **report)


def narrow_widths(unet: UNet2DConditionModel, ratio: float) -> tuple[int, ...]:
    """Return the width of each level after about `ratio` of its channels, in [0, 1), were removed.

    Rounded to the nearest width that norm groups and heads divide, at least one unit; a half is rounded up.  Levels of
    different width stay different, because a UNet has extra layers between them.
    """
    check_number("ratio", ratio, "[0, 1)")
    after, units = [], _width_units(unet)
    last = 0
    for level, width in enumerate(unet.config.block_out_channels):
        unit = units[level]
        wanted = min(width, max(unit, unit * math.floor((1 - ratio) * width / unit + 0.5)))
        if width == last:
            wanted = after[-1]
        elif after and wanted == after[-1]:
            wanted += unit if width > last or wanted == unit else -unit
        after.append(wanted)
        last = width
    return tuple(after)


def _width_units(unet: UNet2DConditionModel) -> list[int]:
    """Return what each level's width must be a multiple of: norm groups and attention heads divide it.

    Heads that become more in a wider model are of one width, and are kept or removed whole.
    """
    config, last = plain_config(unet), len(unet.config.block_out_channels) - 1
    doubled = config | {"block_out_channels": tuple(2 * width for width in config["block_out_channels"])}
    plain, wider = (
        {path: part for path, part in build(made, torch.device("meta")).named_modules() if isinstance(part, Attention)}
        for made in (config, doubled)
    )
    units = [unet.config.norm_num_groups or 1] * (last + 1)
    for path, part in plain.items():
        fixed = path in wider and wider[path].heads != part.heads
        level = level_of(path, last + 1)
        units[level] = math.lcm(units[level], part.inner_dim // part.heads if fixed else part.heads)
    return units


def _check_widths(unet: UNet2DConditionModel, widths: tuple[int, ...]) -> None:
    before = tuple(unet.config.block_out_channels)
    if len(widths) != len(before):
        raise ValueError(f"widths={widths} has {len(widths)} entries; this UNet has {len(before)} levels: {before}.")
    units = _width_units(unet)
    for level, (width, old) in enumerate(zip(widths, before, strict=True)):
        unit = units[level]
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


def _check_layers(work: UNet2DConditionModel, small: UNet2DConditionModel, whole: MacsReport) -> None:
    """Refuse widths that give other layers, and layers that would change but that nothing tells how to."""
    old, new = work.state_dict(), small.state_dict()
    if odd := sorted(old.keys() ^ new.keys()):
        raise ValueError(f"A UNet of these widths has other layers: {odd[0]} is only in one of both. {INSTEAD}")
    for path, module in work.named_modules():
        name = f"{path}.weight"
        if name not in old or old[name].shape == new[name].shape:
            continue
        if isinstance(module, nn.GroupNorm) and module.num_groups != work.config.norm_num_groups:
            raise ValueError(f"{path} has {module.num_groups} groups and not norm_num_groups. {INSTEAD}")
        idle = isinstance(module, (nn.Linear, nn.Conv2d)) and not whole.modules[path].macs
        if idle and path != "time_embedding.cond_proj":
            raise ValueError(
                f"{path} takes no part in a call of this UNet, so nothing tells which of its channels belong together. "
                f"Where its pipeline uses it, pass {CALL}."
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


@torch.no_grad()
def _hand_over(work: UNet2DConditionModel, small: UNet2DConditionModel, inputs: dict[str, object]) -> None:
    """Give the smaller UNet the weights that are left, and compare the outputs.

    Two things do not follow from cutting alone.  The scores of attention are divided by the root of a head's width, so
    a narrower head would give larger ones.  And the number of waves that tell the UNet the time is the width of its
    first level, so the linear layers that read them have to be fitted to fewer.
    """
    _fit_time(work, small)
    weights = work.state_dict()
    for path, new in small.named_modules():
        old = work.get_submodule(path)
        if isinstance(new, Attention):
            ratio = (new.inner_dim // new.heads) / (old.inner_dim // old.heads)
            for name, _ in new.to_q.named_parameters():
                weights[f"{path}.to_q.{name}"] = weights[f"{path}.to_q.{name}"] * ratio**0.5
        # what a module remembers beside its weights, such as how many channels a sampler expects
        vars(old).update((key, value) for key, value in vars(new).items() if type(value) is int)
    small.load_state_dict(weights)
    processors, outputs = small.attn_processors, []
    for model in (work, small):  # these processors read the scale of the old width, which is put to the test here
        model.set_attn_processor({path: _BY_SCALE.get(type(p), type(p))() for path, p in processors.items()})
        outputs.append(model(**inputs).sample)
    small.set_attn_processor(processors)
    off, size = ((outputs[1] - outputs[0]).norm().item(), outputs[0].norm().item())
    if not off <= 1e-4 * size:
        raise ValueError(
            f"The narrower UNet is off by {off:.2g} of {size:.2g} from what the channels it keeps computed, and is not "
            f"handed out. {INSTEAD}"
        )


TIMES = 1000  # timesteps at which the time embedding is fitted


def _fit_time(work: nn.Module, small: nn.Module) -> None:
    """Refit the layers that read the waves of the time, by least squares: a narrower first level gives fewer of them.

    So is the map of a latent consistency model, which adds the strength of guidance to the waves.
    """
    both = [(getattr(work, name), getattr(small, name)) for name in ("time_embedding", "class_embedding")]
    both = [(old, new) for old, new in both if hasattr(new, "linear_1")]
    readers = [old for old, new in both if old.linear_1.weight.shape != new.linear_1.weight.shape]
    if not readers:
        return
    t = torch.arange(TIMES)  # on the CPU: not every device has float64
    old, new = (torch.nn.functional.pad(model.time_proj(t).double(), (0, 1), value=1.0) for model in (work, small))
    # the slowest waves are nearly constant over all timesteps: small singular values are left out
    fewer = torch.linalg.pinv(new, rtol=1e-6)
    for part in readers:
        layer = part.linear_1
        weight, bias = (p.detach().cpu().double() for p in (layer.weight, layer.bias))
        solution = fewer @ (old[:, :-1] @ weight.T + bias)
        if part.cond_proj is not None:
            cond = part.cond_proj.weight
            cond.data = (torch.linalg.pinv(solution[:-1].T, rtol=1e-6) @ weight @ cond.cpu().double()).to(cond)
        layer.weight = nn.Parameter(solution[:-1].T.to(layer.weight).contiguous())
        layer.bias = nn.Parameter(solution[-1].to(layer.bias).contiguous())
    work.time_proj = copy.deepcopy(small.time_proj)


UNDO = "Undo what changed it, as by pipe.unload_lora_weights() or pipe.unload_ip_adapter(), or load it anew."
CALL = "call=captured(pipe, 1), of pruning_lib.capture"
ONE_WIDTH = "In a transformer all layers are as wide as all heads together: a head cannot go alone. "
INSTEAD = "pl.prune_magnitude, pl.remove_operators and pl.Schedule take any denoiser."


def check_unet(unet: object, what: str, more: str = "") -> UNet2DConditionModel:
    """Return a `UNet2DConditionModel` from under what `torch.compile` wraps around it, or raise TypeError.

    `what` says what wanted one, `more` what to do with another model.
    """
    unet = getattr(unet, "_orig_mod", unet)
    if not isinstance(unet, UNet2DConditionModel):
        hint = " Pass its unet: pipe.unet." if hasattr(unet, "components") else ""
        raise TypeError(f"{what} a UNet2DConditionModel; got {type(unet).__name__}.{hint} {more}")
    return unet


def own_weights(unet: UNet2DConditionModel, *, values: bool = True) -> dict[str, Tensor]:
    """Return the state dict of a UNet that is what its configuration says; anything else is a ValueError.

    Copies that fused projections keep are left out. Without `values`, weights may be on the meta device.
    """
    found = {name.replace("_orig_mod.", ""): value for name, value in unet.state_dict().items()}
    for name, value in found.items():
        if type(value) is not Tensor or value.dtype not in FLOATS:
            kind = f"{type(value).__name__} of {value.dtype}"
            raise ValueError(f"{name} is a {kind}. Prune the model first, and quantise what is left.")
        if value.is_meta and (values or any(hasattr(module, "_hf_hook") for module in unet.modules())):
            raise ValueError(f"{name} has no values here (meta, or offloaded). Load the UNet without offloading first.")
        if values and not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity. Load an undamaged checkpoint.")
    for name in [name for name in found if _FUSED.search(name)]:
        path, letters, kind = _FUSED.split(name)
        parts = [found.get(f"{path}.to_{letter}.{kind}") for letter in letters]
        if all(part is not None for part in parts) and torch.equal(torch.cat(parts), found[name]):
            del found[name]
    plain = build(plain_config(unet), torch.device("meta")).state_dict()
    shapes = [{name: value.shape for name, value in weights.items()} for weights in (found, plain)]
    odd = [name for name in found | plain if len({weights.get(name) for weights in shapes}) > 1]
    if odd:
        raise ValueError(
            f"This UNet is not what its configuration says: {len(odd)} weights are added, missing or of another shape, "
            f"such as {odd[0]}. {UNDO}"
        )
    return found


def arguments(unet: UNet2DConditionModel, call: Call | None, device: str | torch.device) -> dict[str, object]:
    """Return what a UNet is called with, by name: made from its configuration, one sample, unless there is a call."""
    if call is None:
        return example_inputs(unet, sample_size=unet.config.sample_size or DEFAULT_SIZE, device=device)

    def here(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, torch.float32 if value.is_floating_point() else None)

    found = inspect.signature(unet.forward).bind(*call.args, **call.kwargs).arguments
    return tree_map(here, {name: value for name, value in found.items() if name != "return_dict"})


def count(unet: UNet2DConditionModel, call: Call | None = None) -> MacsReport:
    """Count a call of a UNet; one that cannot be made is a ValueError."""
    try:
        return count_macs(unet, **arguments(unet, call, "meta"))
    except (TypeError, ValueError) as error:
        told = f"No call of a UNet of widths {tuple(unet.config.block_out_channels)} can be made here: {error}"
        raise ValueError(f"{told} To prune_structured pass {CALL}." if call is None else told) from error


def sizes(whole: MacsReport, less: MacsReport) -> dict[str, int]:
    """Return the four counts of `PrunedUNet`."""
    params = {"params_before": whole.params, "params_after": less.params}
    return {**params, "macs_before": whole.macs, "macs_after": less.macs}


def plain_config(unet: UNet2DConditionModel) -> dict[str, object]:
    """Return a copy of the configuration in which every entry counts, for `from_config` of a changed one."""
    config = dict(unet.config)
    config.pop("_use_default_values", None)  # diffusers would put the defaults back, whatever stands there now
    return config


def build(config: dict[str, object], device: torch.device) -> UNet2DConditionModel:
    """Return an untrained UNet in evaluation mode, made where it belongs: on the meta device that costs nothing."""
    try:
        with torch.device(device), torch.random.fork_rng():
            return UNet2DConditionModel.from_config(config).eval()
    except (TypeError, ValueError) as error:
        widths = config["block_out_channels"]
        told = f"diffusers builds no UNet of this configuration and widths {widths}: {error}"
        raise ValueError(f"{told} {UNDO}") from error


def cast(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return the module itself with weights of another type, without the warning that diffusers gives for it."""
    return nn.Module.to(unet, dtype)
