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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from ..checks import nearest
from ..macs import count_macs
from .wiring import Wiring, trace_wiring

__all__ = ["GRAINS", "Unit", "Units", "units_of"]

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


class Units(Sequence[Unit]):
    """The units of a denoiser, in the order in which they run.

    Attributes:
        grain: one of `GRAINS`.
        macs, macs_without_attention: per unit, of one sample and one call.
        base_macs, base_macs_without_attention: of everything that belongs to no unit and runs in every call.
        wiring: which unit reads which.
        class_name: of the denoiser.
        structure: hash of its configuration. Weights do not count: a fine-tuned model, or one with LoRA, is the same.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        grain: str,
        macs: Sequence[int],
        macs_without_attention: Sequence[int],
        base_macs: int,
        base_macs_without_attention: int,
        wiring: Wiring,
        class_name: str,
        structure: str,
    ):
        self._units = tuple(units)
        self.grain, self.wiring = grain, wiring
        self.macs, self.macs_without_attention = tuple(macs), tuple(macs_without_attention)
        self.base_macs, self.base_macs_without_attention = base_macs, base_macs_without_attention
        self.class_name, self.structure = class_name, structure

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(unit.name for unit in self._units)

    def __len__(self) -> int:
        return len(self._units)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units)

    def __getitem__(self, which: int | str) -> Unit:
        if isinstance(which, str):
            return self._units[self.index_of(which)]
        return self._units[which]

    def index_of(self, name: str) -> int:
        """Return the number of the unit called `name`.

        Raises:
            KeyError: no such unit, with the nearest names.
        """
        if name not in self.names:
            raise KeyError(f"There is no unit {name!r} at grain {self.grain!r}. {nearest(name, self.names)}")
        return self.names.index(name)

    def __repr__(self) -> str:
        return f"<{len(self)} units of {self.class_name} at grain {self.grain!r}>"


def units_of(denoiser: nn.Module, grain: str = "layers", *, sample_size: int | tuple[int, int] | None = None) -> Units:
    """List the units of a denoiser, count their MACs and trace their wiring.

    The model is only read; its weights may be absent (meta).

    Args:
        denoiser: a UNet2DModel, UNet2DConditionModel, or a diffusers transformer with `transformer_blocks`.
        grain: one of `GRAINS`.
        sample_size: side of the latent, or (height, width), that MACs are counted at. Default: the configuration's.

    Returns:
        The `Units`, in the order of their calls.

    Raises:
        TypeError: not a denoiser, or one whose blocks are not known.
        ValueError: an unknown grain, or a sample size that the denoiser does not take.

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
    found = list_units(denoiser, grain)
    report = count_macs(denoiser, sample_size=sample_size).modules
    with_products = [sum(report[path].macs for path in unit.modules) for unit in found]
    without = [sum(report[path].macs_without_attention for path in unit.modules) for unit in found]
    return Units(
        found,
        grain=grain,
        macs=with_products,
        macs_without_attention=without,
        base_macs=report[""].macs - sum(with_products),
        base_macs_without_attention=report[""].macs_without_attention - sum(without),
        wiring=trace_wiring(denoiser, found, sample_size=sample_size),
        class_name=type(denoiser).__name__,
        structure=structure_of(denoiser),
    )


def list_units(denoiser: nn.Module, grain: str) -> list[Unit]:
    """List the units by name alone, without counting or tracing; arguments and errors as `units_of`."""
    return _unet_units(denoiser, grain) if hasattr(denoiser, "up_blocks") else _stack_units(denoiser, grain)


def structure_of(denoiser: nn.Module) -> str:
    """Return a hash of a denoiser's class and configuration, which LoRA and other weights do not change."""
    config = {k: v for k, v in dict(denoiser.config).items() if not k.startswith("_") and k != "quantization_config"}
    text = json.dumps([type(denoiser).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unet_units(unet: nn.Module, grain: str) -> list[Unit]:
    units: list[Unit] = []
    blocks = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    for path, block in blocks:
        if grain == "blocks" or (grain == "layers" and path == "mid_block"):
            units.append(Unit(path, (path,)))
        elif path == "mid_block":
            units += [Unit(name, (name,)) for name in _middle(path, block)]
        else:
            units += _layers(path, block, grain)
    return units


def _layers(path: str, block: nn.Module, grain: str) -> list[Unit]:
    units = []
    attentions = getattr(block, "attentions", None) or []
    for j, _ in enumerate(block.resnets):
        modules = (f"{path}.resnets.{j}",)
        if j < len(attentions) and attentions[j] is not None:
            modules += (f"{path}.attentions.{j}",)
        if grain == "layers":
            units.append(Unit(f"{path}.layers.{j}", modules))
        else:
            units += [Unit(module, (module,)) for module in modules]
    for kind in ("downsamplers", "upsamplers"):
        count = len(getattr(block, kind, None) or [])
        units += [Unit(f"{path}.{kind}.{k}", (f"{path}.{kind}.{k}",)) for k in range(count)]
    return units


def _middle(path: str, block: nn.Module) -> list[str]:
    # The middle block runs its first resnet alone, then pairs of attention and resnet.
    names = [f"{path}.resnets.0"]
    attentions = getattr(block, "attentions", None) or []
    for j in range(1, len(block.resnets)):
        if j - 1 < len(attentions) and attentions[j - 1] is not None:
            names.append(f"{path}.attentions.{j - 1}")
        names.append(f"{path}.resnets.{j}")
    return names


def _stack_units(model: nn.Module, grain: str) -> list[Unit]:
    units: list[Unit] = []
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        for i, block in enumerate(getattr(model, stack, None) or []):
            path = f"{stack}.{i}"
            branches = [name for name in ("attn", "attn1", "attn2", "ff", "ff_context") if _has(block, name)]
            if grain == "blocks" or not _has(block, "ff"):  # a block without branches of its own is one unit
                units.append(Unit(path, (path,), "contribution"))
                continue
            # What a branch returns is what is added to the stream, scaled by a gate of the current timestep.
            units += [Unit(f"{path}.{name}", (f"{path}.{name}",)) for name in branches]
    if not units:
        raise TypeError(
            f"{type(model).__name__} has neither up_blocks nor transformer_blocks, so its units are not known. "
            "Known: UNet2DModel, UNet2DConditionModel, and transformers with a list `transformer_blocks`."
        )
    return units


def _has(block: nn.Module, name: str) -> bool:
    return isinstance(getattr(block, name, None), nn.Module)
