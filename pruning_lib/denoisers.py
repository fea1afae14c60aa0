"""Denoisers: where a pipeline keeps one, the inputs it accepts, its structure without weights, its fingerprint.

A *family* is one function that turns a configuration into the arguments of `forward`; `_FAMILIES` lists them.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .checks import check_whole, nearest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


_NAMES = ("unet", "transformer", "prior", "decoder")
_TIMES = {"timestep", "timesteps", "t", "timestep_ratio"}


def denoisers_of(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return what removes noise in a pipeline, by component, the first one first: what a noise level is given to."""
    components = getattr(pipe, "components", None)
    if isinstance(pipe, nn.Module) or not isinstance(components, dict):
        hint = " It looks like a denoiser: pass the pipeline that holds it." if isinstance(pipe, nn.Module) else ""
        raise TypeError(f"Expected a diffusers pipeline, got {type(pipe).__name__}.{hint}")
    found = {name: module for name, module in components.items() if isinstance(module, nn.Module)}
    whole = {name: getattr(module, "_orig_mod", module) for name, module in found.items()}  # torch.compile wraps it
    denoisers = {
        name: module
        for name, module in whole.items()
        if name in _NAMES
        or ("Control" not in type(module).__name__ and _TIMES & {*inspect.signature(type(module).forward).parameters})
    }
    if not denoisers:
        raise TypeError(
            f"{type(pipe).__name__} holds no denoiser: none of its components {', '.join(whole)} is called with a "
            "timestep."
        )
    order = sorted(denoisers, key=lambda name: (_NAMES.index(name) if name in _NAMES else len(_NAMES), name))
    return {name: denoisers[name] for name in order}


def denoiser_of(pipe: DiffusionPipeline) -> tuple[str, nn.Module]:
    """Return the name of the component that removes noise, such as "unet" or "transformer", and the module itself."""
    return next(iter(denoisers_of(pipe).items()))


@dataclass
class _Maker:
    """Makes the tensors of one call; the values are drawn on the CPU, so that they are the same on every device."""

    batch: int
    size: tuple[int, int]
    tokens: int | None
    device: str | torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        if torch.device(self.device).type == "meta":  # shapes alone: nothing need be drawn
            return torch.empty(self.batch, *shape, device="meta", dtype=self.dtype)
        drawn = torch.randn(self.batch, *shape, generator=self.generator, device="cpu")
        return drawn.to(self.device, self.dtype)

    def whole(self, value: int) -> Tensor:
        return torch.full((self.batch,), value, device=self.device)


def _unet_2d(c: SimpleNamespace, make: _Maker) -> dict[str, Tensor]:
    inputs = {"sample": make.normal(c.in_channels, *make.size), "timestep": make.whole(500)}
    kind = getattr(c, "class_embed_type", None)
    if kind in ("projection", "simple_projection"):  # a vector, not the number of a class
        inputs["class_labels"] = make.normal(c.projection_class_embeddings_input_dim)
    elif kind == "identity":  # added to the embedding of the time as it is
        inputs["class_labels"] = make.normal(getattr(c, "time_embedding_dim", None) or 4 * c.block_out_channels[0])
    elif kind or getattr(c, "num_class_embeds", None):
        inputs["class_labels"] = make.whole(0)
    return inputs


def _unet_2d_condition(c: SimpleNamespace, make: _Maker) -> dict[str, Tensor]:
    width = c.cross_attention_dim if isinstance(c.cross_attention_dim, int) else c.cross_attention_dim[0]
    tokens = make.tokens or _tokens_beside(getattr(c, "_name_or_path", None)) or 77
    inputs = {**_unet_2d(c, make), "encoder_hidden_states": make.normal(tokens, c.encoder_hid_dim or width)}
    if c.addition_embed_type == "text_time":  # SDXL: a pooled text vector and six numbers for size and crop
        pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": make.normal(pooled), "time_ids": make.normal(6)}
    elif c.addition_embed_type not in (None, "text"):
        raise ValueError(
            f"This UNet2DConditionModel wants addition_embed_type={c.addition_embed_type!r}, which no rule here "
            f"covers. {OTHERWISE}"
        )
    return inputs


def _tokens_beside(where: str | None) -> int | None:
    """Read the text length from the text encoder's configuration in the same pipeline folder, if there is one."""
    with suppress(OSError, ValueError):
        config = json.loads((Path(where).parent / "text_encoder/config.json").read_text("utf-8")) if where else {}
        length = config.get("max_position_embeddings")
        return length if isinstance(length, int) and length >= 1 else None


def _dit(c: SimpleNamespace, make: _Maker) -> dict[str, Tensor]:
    sample = make.normal(c.in_channels, *make.size)
    return {"hidden_states": sample, "timestep": make.whole(500), "class_labels": make.whole(0)}


def _pixart(c: SimpleNamespace, make: _Maker) -> dict[str, Tensor]:
    wants = c.sample_size == 128 if c.use_additional_conditions is None else c.use_additional_conditions  # its own rule
    told = (("resolution", 2), ("aspect_ratio", 1))
    return {
        "hidden_states": make.normal(c.in_channels, *make.size),
        # PixArt-alpha: 120 T5 tokens
        "encoder_hidden_states": make.normal(make.tokens or 120, c.caption_channels or c.cross_attention_dim),
        "timestep": make.whole(500),
        "added_cond_kwargs": {name: make.normal(width) if wants else None for name, width in told},
    }


def _sd3(c: SimpleNamespace, make: _Maker) -> dict[str, Tensor]:
    return {
        "hidden_states": make.normal(c.in_channels, *make.size),
        "encoder_hidden_states": make.normal(make.tokens or 333, c.joint_attention_dim),  # 77 CLIP and 256 T5 tokens
        "pooled_projections": make.normal(c.pooled_projection_dim),
        "timestep": make.whole(500),
    }


def _flux(c: SimpleNamespace, make: _Maker) -> dict[str, Tensor]:
    # The pipeline packs 2x2 latent pixels into one token of in_channels values before it calls the transformer.
    positions, tokens = (make.size[0] // 2) * (make.size[1] // 2), make.tokens or 512
    inputs = {
        "hidden_states": make.normal(positions, c.in_channels),
        "encoder_hidden_states": make.normal(tokens, c.joint_attention_dim),
        "pooled_projections": make.normal(c.pooled_projection_dim),
        "timestep": make.normal().abs(),
        "img_ids": torch.zeros(positions, 3).to(make.device, make.dtype),
        "txt_ids": torch.zeros(tokens, 3).to(make.device, make.dtype),
    }
    return {**inputs, "guidance": make.normal().abs()} if c.guidance_embeds else inputs


_FAMILIES: dict[str, Callable[[SimpleNamespace, _Maker], dict]] = {
    "UNet2DModel": _unet_2d,
    "UNet2DConditionModel": _unet_2d_condition,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
OTHERWISE = (
    "A pipeline tells by itself what it calls its denoiser with: pass the pipeline to grid_of or find_operators, and "
    "call=captured(pipe, steps), of pruning_lib.capture, to units_of. For count_macs give every input of its forward "
    "by name, as in count_macs(model, hidden_states=torch.empty(1, 4, 32, 32), timestep=torch.ones(1))."
)
_DEFAULT_SIZE = {"FluxTransformer2DModel": 128}  # its configuration holds no size; 128 is 1024 pixels


def example_inputs(
    denoiser: nn.Module,
    *,
    sample_size: int | tuple[int, int] | None = None,
    batch: int = 1,
    tokens: int | None = None,
    device: str | torch.device = "meta",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor | dict[str, Tensor]]:
    """Build the keyword arguments of one forward call of `denoiser`, batch first.

    Args:
        denoiser: a diffusers model of a known family: UNet2DModel, UNet2DConditionModel, or the transformer of DiT,
            PixArt, SD3 or Flux; only its class and `config` are read.
        sample_size: side of the latent, or (height, width), in latent pixels. Default: the configuration's.
        batch: number of samples, >= 1.
        tokens: length of the text, >= 1. Default: for a UNet that of the text encoder in the same pipeline folder,
            else 77; otherwise what the family's pipeline uses (120 for PixArt, 333 for SD3, 512 for Flux).
        device: "meta" gives shapes without values; elsewhere the values are drawn from a unit normal distribution.
        dtype: of the floating-point inputs.
        seed: of the values.

    An unknown family is a TypeError; sizes that make no sense, or none known, are a ValueError.
    """
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # what torch.compile wraps
    kind = _family(denoiser)
    config = SimpleNamespace(**denoiser.config)
    check_whole("batch", batch, 1)
    if tokens is not None:
        check_whole("tokens", tokens, 1)
    size = sample_size if sample_size is not None else getattr(config, "sample_size", None) or _DEFAULT_SIZE.get(kind)
    if size is None:
        raise ValueError(f"The configuration of this {kind} has no sample_size. Pass sample_size=64, say.")
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and side >= 1 for side in pair):
        raise ValueError(f"sample_size={sample_size!r}; it must be a side or (height, width) in latent pixels >= 1.")
    make = _Maker(batch, pair, tokens, device, dtype, torch.Generator().manual_seed(seed))
    return _FAMILIES[kind](config, make)


def is_known(denoiser: nn.Module) -> bool:
    """Whether `example_inputs` knows a denoiser's family."""
    return any(cls.__name__ in _FAMILIES for cls in type(denoiser).__mro__)


def _family(denoiser: nn.Module) -> str:
    if not isinstance(denoiser, nn.Module):
        hint = " Pass its denoiser: pipe.unet or pipe.transformer." if hasattr(denoiser, "components") else ""
        raise TypeError(f"Expected a diffusers denoiser (an nn.Module), got {type(denoiser).__name__}.{hint}")
    # Subclasses count as their parent: forks of a family add options, not inputs.
    for cls in type(denoiser).__mro__:
        if cls.__name__ in _FAMILIES and hasattr(denoiser, "config"):
            return cls.__name__
    name = type(denoiser).__name__
    raise TypeError(f"{name} is not of a known family. {nearest(name, _FAMILIES)} {OTHERWISE}")


# What other libraries hang on an instance to move weights or skip work; the structure underneath is what we want.
_PATCHES = {"forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl"}


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy of any module with every tensor on the meta device and without hooks, in evaluation mode.

    It has the live structure, not that of the configuration, so layers that were removed or narrowed count as they
    stand. Floating-point tensors become float32, so that models with mixed types run; tied parameters stay tied.
    """
    return _copy(getattr(module, "_orig_mod", module), {}).eval()


def _copy(value: object, seen: dict[int, object]) -> object:
    """Copy a module, or a tensor, each but once."""
    if id(value) in seen:
        return seen[id(value)]
    if not isinstance(value, nn.Module):
        seen[id(value)] = on_meta(value)
        return seen[id(value)]
    own = seen[id(value)] = value.__new__(type(value))
    for name, part in vars(value).items():
        if name in ("_modules", "_parameters", "_buffers"):
            part = type(part)((key, _copy(child, seen)) for key, child in part.items())
        elif "_hooks" in name and isinstance(part, dict):
            part = OrderedDict()
        else:
            part = _copy_plain(part, seen)
        if name not in _PATCHES:
            own.__dict__[name] = part
    return own


def _copy_plain(value: object, seen: dict[int, object]) -> object:
    """Copy what a module keeps beside its parts; some compute tables into lists or objects when they first run."""
    if isinstance(value, (Tensor, nn.Module)):
        return _copy(value, seen)
    if id(value) in seen:
        return seen[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_copy_plain(part, seen) for part in value)
    if type(value) is dict:
        return {key: _copy_plain(part, seen) for key, part in value.items()}
    ours = type(value).__module__.split(".")[0] not in ("builtins", "torch", "types", "enum", "functools")
    if ours and not isinstance(value, (type, Mapping, Enum)) and getattr(value, "__dict__", None):
        own = seen[id(value)] = copy.copy(value)
        for key, part in vars(value).items():
            vars(own)[key] = _copy_plain(part, seen)
        return own
    return value


def on_meta(value: object) -> object:
    """Return a tensor without its values, as float32 if it held floats; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    empty = torch.empty(value.shape, dtype=dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty


@dataclass(frozen=True)
class Fingerprint:
    """What tells one denoiser from another; weights do not count, so a fine-tuned model fits as well.

    `structure` is a hash of the names and shapes of all weights, `params` the number of parameters.
    """

    class_name: str
    params: int
    structure: str

    @classmethod
    def of(cls, denoiser: nn.Module) -> Fingerprint:
        """Describe a denoiser, as it stands."""
        weights = denoiser.state_dict(keep_vars=True)
        text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(weights.items()))
        params = sum(p.numel() for p in denoiser.parameters())
        return cls(type(denoiser).__name__, params, hashlib.sha256(text.encode()).hexdigest()[:16])

    def __str__(self) -> str:
        return f"{self.class_name} of {self.params:,} parameters (structure {self.structure})"

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict of plain values."""
        return asdict(self)
