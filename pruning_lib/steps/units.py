"""What can be reused from one step to the next: the units of a denoiser, at three grains.

A *unit* is a list of modules that run one after the other; the output of the last one can be kept and used again at a
later step (DiP-GO, arXiv 2410.16942, Section 3.2: a backup connection from each block to itself one step earlier).
In a UNet a unit's output replaces the stream.  In a transformer every block adds to the stream, and what is kept is
what it added: reusing the stream itself would throw away everything the earlier blocks did at this step.

grain     | a UNet                                         | a transformer
----------|------------------------------------------------|------------------------------------------------------
"blocks"  | down, middle and up blocks, whole              | what a whole block adds to the stream
"layers"  | a resnet with the transformer behind it; each  | a branch: an attention or a feed-forward
          | down- and upsampler; the middle block, whole   |
"modules" | every resnet, transformer and sampler alone    | as "layers"
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from torch import nn

GRAINS = ("blocks", "layers", "modules")


@dataclass(frozen=True)
class Unit:
    """A piece of a denoiser that is run or reused as a whole.

    Attributes:
        name: as the path of its module; layers of a UNet are called `<block>.layers.<number>`.
        modules: paths of its modules in the order of their calls; the last one's output is kept.
        kind: "output", what the last module returns is kept; or "contribution", what it adds to its input.
    """

    name: str
    modules: tuple[str, ...]
    kind: str = "output"


def units_of(denoiser: nn.Module, grain: str = "layers") -> tuple[Unit, ...]:
    """List the units of a denoiser by name; weights may be absent (meta).

    Args:
        denoiser: a UNet2DModel, UNet2DConditionModel, or a diffusers transformer with `transformer_blocks`.
        grain: one of `GRAINS`.

    Returns:
        The units, in the order of their calls.

    Raises:
        TypeError: not a denoiser, or one whose blocks are not known.
        ValueError: an unknown grain.

    Example:
        >>> len(units_of(pipe.unet)), units_of(pipe.unet)[0].modules
        (27, ('down_blocks.0.resnets.0', 'down_blocks.0.attentions.0'))
    """
    if grain not in GRAINS:
        raise ValueError(f"There is no grain {grain!r}. Allowed: {', '.join(map(repr, GRAINS))}.")
    if not isinstance(denoiser, nn.Module):
        hint = " Pass its denoiser: pipe.unet or pipe.transformer." if hasattr(denoiser, "components") else ""
        raise TypeError(f"Expected a diffusers denoiser (an nn.Module), got {type(denoiser).__name__}.{hint}")
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # what torch.compile wraps
    if hasattr(denoiser, "up_blocks"):
        units = _unet_units(denoiser, grain)
    else:
        units = _stack_units(denoiser, grain)
    if not units:
        raise TypeError(
            f"{type(denoiser).__name__} has neither up_blocks nor transformer_blocks, so its units are not known. "
            "Known: UNet2DModel, UNet2DConditionModel, and transformers with a list `transformer_blocks`."
        )
    return tuple(units)


def structure_of(denoiser: nn.Module) -> str:
    """Return a hash of a denoiser's class and configuration, which LoRA and other weights do not change."""
    config = {k: v for k, v in dict(denoiser.config).items() if not k.startswith("_") and k != "quantization_config"}
    text = json.dumps([type(denoiser).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unet_units(unet: nn.Module, grain: str) -> list[Unit]:
    blocks = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    units: list[Unit] = []
    for path, block in blocks:
        middle = path == "mid_block"
        if grain == "blocks" or (grain == "layers" and middle):
            units.append(Unit(path, (path,)))
            continue
        attentions = getattr(block, "attentions", None) or []
        for j in range(len(block.resnets)):
            modules = [f"{path}.resnets.{j}"]
            beside = j - 1 if middle else j  # the middle block begins with a resnet, and then attention comes first
            if 0 <= beside < len(attentions) and attentions[beside] is not None:
                modules.insert(0 if middle else 1, f"{path}.attentions.{beside}")
            if grain == "layers":
                units.append(Unit(f"{path}.layers.{j}", tuple(modules)))
            else:
                units += [Unit(module, (module,)) for module in modules]
        for kind in ("downsamplers", "upsamplers"):
            for j in range(len(getattr(block, kind, None) or [])):
                units.append(Unit(f"{path}.{kind}.{j}", (f"{path}.{kind}.{j}",)))
    return units


def _stack_units(model: nn.Module, grain: str) -> list[Unit]:
    units: list[Unit] = []
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        for i, block in enumerate(getattr(model, stack, None) or []):
            path, parts = f"{stack}.{i}", dict(block.named_children())
            if grain == "blocks" or "ff" not in parts:  # a block without branches of its own is one unit
                units.append(Unit(path, (path,), "contribution"))
                continue
            # What a branch returns is what is added to the stream, scaled by a gate of the current timestep.
            branches = [name for name in ("attn", "attn1", "attn2", "ff", "ff_context") if name in parts]
            units += [Unit(f"{path}.{name}", (f"{path}.{name}",)) for name in branches]
    return units
