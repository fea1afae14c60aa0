"""Denoisers: where a pipeline keeps one, the inputs it accepts, its structure without weights, its fingerprint.

This is the file that knows diffusers classes.  A *family* is one function that turns a configuration into the
arguments of `forward`; adding a family means adding one function to `_FAMILIES`.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .checks import check_whole, nearest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def denoiser_of(pipe: DiffusionPipeline) -> tuple[str, nn.Module]:
    """Return the name of the component that removes noise, "unet" or "transformer", and the module itself."""
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module) and hasattr(pipe, "components"):
            return name, getattr(module, "_orig_mod", module)  # what torch.compile wraps
    hint = " It looks like a denoiser: pass the pipeline that holds it." if isinstance(pipe, nn.Module) else ""
    raise TypeError(f"Expected a diffusers pipeline with a unet or a transformer, got {type(pipe).__name__}.{hint}")


class _Maker:
    """Makes the tensors of one call: empty ones on the meta device, random ones elsewhere."""

    def __init__(self, batch: int, size: tuple[int, int], tokens: int | None, device, dtype, seed: int):
        self.batch, self.size, self.tokens = batch, size, tokens
        self.device, self.dtype = torch.device(device), dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(self.batch, *shape, device="meta", dtype=self.dtype)
        # Drawn on the CPU, so that the numbers are the same on every device.
        return torch.randn(self.batch, *shape, generator=self._generator).to(self.device, self.dtype)

    def whole(self, value: int, *shape: int) -> Tensor:
        return torch.full((self.batch, *shape), value, device=self.device, dtype=torch.long)

    def unbatched(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.device, dtype=self.dtype)


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
    inputs = _unet_2d(c, make)
    width = c.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    inputs["encoder_hidden_states"] = make.normal(make.tokens or 77, c.encoder_hid_dim or width)
    if c.addition_embed_type == "text_time":  # SDXL: a pooled text vector and six numbers for size and crop
        pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": make.normal(pooled), "time_ids": make.normal(6)}
    elif c.addition_embed_type not in (None, "text"):
        raise ValueError(
            f"This UNet2DConditionModel wants addition_embed_type={c.addition_embed_type!r}, which no rule here "
            "covers. Pass what its forward needs: count_macs(unet, added_cond_kwargs={...})."
        )
    return inputs


def _dit(c: SimpleNamespace, make: _Maker) -> dict[str, Tensor]:
    sample = make.normal(c.in_channels, *make.size)
    return {"hidden_states": sample, "timestep": make.whole(500), "class_labels": make.whole(0)}


def _pixart(c: SimpleNamespace, make: _Maker) -> dict[str, Tensor]:
    wants = c.use_additional_conditions
    wants = c.sample_size == 128 if wants is None else wants  # diffusers' own rule for the 1024 pixel models
    return {
        "hidden_states": make.normal(c.in_channels, *make.size),
        # PixArt-alpha: 120 T5 tokens
        "encoder_hidden_states": make.normal(make.tokens or 120, c.caption_channels or c.cross_attention_dim),
        "timestep": make.whole(500),
        "added_cond_kwargs": {
            "resolution": make.normal(2) if wants else None,
            "aspect_ratio": make.normal(1) if wants else None,
        },
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
        "img_ids": make.unbatched(positions, 3),
        "txt_ids": make.unbatched(tokens, 3),
    }
    if c.guidance_embeds:
        inputs["guidance"] = make.normal().abs()
    return inputs


_FAMILIES: dict[str, Callable[[SimpleNamespace, _Maker], dict]] = {
    "UNet2DModel": _unet_2d,
    "UNet2DConditionModel": _unet_2d_condition,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
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
        tokens: length of the text, in tokens, >= 1. Default: for a UNet that of the text encoder in the same pipeline
            folder, else 77; otherwise what the family's pipeline uses (120 for PixArt, 333 for SD3, 512 for Flux).
        device: "meta" gives shapes without values; elsewhere the values are drawn from a unit normal distribution.
        dtype: of the floating-point inputs.
        seed: of the random values.

    Raises:
        TypeError: `denoiser` is not a module, or its family is unknown.
        ValueError: sizes that make no sense, or none known.
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
    if kind == "UNet2DConditionModel":  # one text encoder, or two of the same length
        tokens = tokens or _tokens_beside(getattr(config, "_name_or_path", None))
    return _FAMILIES[kind](config, _Maker(batch, pair, tokens, device, dtype, seed))


def _family(denoiser: nn.Module) -> str:
    if not isinstance(denoiser, nn.Module):
        hint = " Pass its denoiser: pipe.unet or pipe.transformer." if hasattr(denoiser, "components") else ""
        raise TypeError(f"Expected a diffusers denoiser (an nn.Module), got {type(denoiser).__name__}.{hint}")
    # Subclasses count as their parent: forks of a family add options, not inputs.
    for cls in type(denoiser).__mro__:
        if cls.__name__ in _FAMILIES and hasattr(denoiser, "config"):
            return cls.__name__
    name = type(denoiser).__name__
    raise TypeError(
        f"{name} is not of a known family. {nearest(name, _FAMILIES)} For another family give every input of its "
        "forward by name, as in count_macs(model, hidden_states=torch.empty(1, 4, 32, 32), timestep=torch.ones(1)); "
        "or add a function to _FAMILIES in pruning_lib/denoisers.py that builds these inputs from model.config."
    )


def _tokens_beside(where: str | None) -> int | None:
    """Read the text length from the text encoder's configuration in the same pipeline folder, if there is one."""
    try:
        config = json.loads((Path(where).parent / "text_encoder/config.json").read_text("utf-8")) if where else {}
    except (OSError, ValueError):
        return None
    length = config.get("max_position_embeddings")
    return length if isinstance(length, int) and length >= 1 else None


# What other libraries hang on an instance to change how it is called: accelerate's offloading, diffusers' hooks,
# patched forward methods.  They move weights or skip work; the structure underneath is what we want.
_PATCHES = {"forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl"}


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy of any module with every tensor on the meta device and without hooks, in evaluation mode.

    It is made from the live structure, not from the configuration, so a denoiser whose layers were removed or narrowed
    is counted as it stands; the given one is only read. Floating-point tensors become float32, so that models with
    mixed types run; tied parameters stay tied.
    """
    return _copy(getattr(module, "_orig_mod", module), {}).eval()


def _copy(module: nn.Module, seen: dict[int, object]) -> nn.Module:
    if id(module) in seen:
        return seen[id(module)]
    copy = seen[id(module)] = module.__new__(type(module))
    for name, value in vars(module).items():
        if name in _PATCHES:
            continue
        if name == "_modules":
            value = type(value)((key, child and _copy(child, seen)) for key, child in value.items())
        elif name in ("_parameters", "_buffers"):
            value = type(value)((key, _empty(tensor, seen)) for key, tensor in value.items())
        elif "_hooks" in name and isinstance(value, dict):
            value = OrderedDict()
        else:
            value = _empty(value, seen)
        copy.__dict__[name] = value
    return copy


def _empty(value: object, seen: dict[int, object]) -> object:
    if not isinstance(value, Tensor):
        return value
    if id(value) not in seen:
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        empty = torch.empty(value.shape, dtype=dtype, device="meta")
        seen[id(value)] = nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty
    return seen[id(value)]


@dataclass(frozen=True)
class Fingerprint:
    """What tells one denoiser from another: its structure. Weights do not count, so a fine-tuned model fits as well.

    Attributes:
        class_name: of the denoiser.
        params: number of parameters.
        structure: hash of the names and shapes of all its weights.
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
