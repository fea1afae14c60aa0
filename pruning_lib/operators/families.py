"""What the operators of each architecture are called: one small table per architecture.

A *family* maps the class of a module to the kind of operator it is.  For another architecture write such a table and
add it to `FAMILIES` under the class name of the denoiser; `measure/inputs.py` must know how to call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from .._text import nearest

__all__ = ["DEFAULT_KINDS", "FAMILIES", "KINDS", "Family", "family_of"]

# What each kind is; the order is that of tables and legends.
KINDS: dict[str, str] = {
    "resnet": "two convolutions with norms, around which the stream passes unchanged or through a 1x1 projection",
    "transformer": "the transformer of one place in a UNet, with the projections in and out",
    "transformer block": "self-attention, cross-attention and feed-forward, each added to the stream",
    "self-attention": "attention among the positions of the picture",
    "cross-attention": "attention from the picture to the text",
    "feed-forward": "two linear layers at every position",
    "downsampler": "halves height and width",
    "upsampler": "doubles height and width",
    "convolution": "a single convolution with a window larger than one position",
    "linear": "a single linear layer, or a 1x1 convolution, which is one at every position",
    "norm": "a single group norm or layer norm with learned scale",
}
# Single linear layers and norms are many, and each saves little: they are scored when asked for.
DEFAULT_KINDS = tuple(kind for kind in KINDS if kind not in ("linear", "norm"))

_LAYERS = {"Conv2d": "convolution", "Linear": "linear", "GroupNorm": "norm", "LayerNorm": "norm"}
_UNET = {"ResnetBlock2D": "resnet", "Downsample2D": "downsampler", "Upsample2D": "upsampler"}
_BLOCK = {
    "BasicTransformerBlock": "transformer block",
    "Attention": "self-attention",
    "FeedForward": "feed-forward",
}


@dataclass(frozen=True)
class Family:
    """What is known about an architecture.

    Attributes:
        kinds: class name of a module -> kind. An `Attention` over text counts as cross-attention by itself.
        indivisible: kinds whose inner layers are not operators of their own.
        needed: path -> why it must stay, although its shapes would allow to remove it.
    """

    kinds: Mapping[str, str]
    indivisible: tuple[str, ...] = ("downsampler", "upsampler")
    needed: Mapping[str, str] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "UNet2DModel": Family({**_LAYERS, **_UNET, "Attention": "self-attention"}),
    "UNet2DConditionModel": Family({**_LAYERS, **_UNET, **_BLOCK, "Transformer2DModel": "transformer"}),
    "DiTTransformer2DModel": Family(
        {**_LAYERS, **_BLOCK},
        needed={"transformer_blocks.0": "its first norm holds the embedding that the output layer uses too"},
    ),
    "PixArtTransformer2DModel": Family({**_LAYERS, **_BLOCK}),
}  # fmt: skip


def family_of(denoiser: nn.Module) -> Family:
    """Return the table of a denoiser's architecture; subclasses count as their parent.

    Raises:
        TypeError: not a module, or an unknown architecture.
    """
    if not isinstance(denoiser, nn.Module):
        hint = " Pass its denoiser: pipe.unet or pipe.transformer." if hasattr(denoiser, "components") else ""
        raise TypeError(f"Expected a diffusers denoiser (an nn.Module), got {type(denoiser).__name__}.{hint}")
    for cls in type(denoiser).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    name = type(denoiser).__name__
    raise TypeError(
        f"{name} is not of a known family. {nearest(name, FAMILIES)} A family needs two things: a table from the class "
        "names of its modules to kinds of operators (FAMILIES in pruning_lib/operators/families.py), and a function "
        "that builds the inputs of its forward from its configuration (_FAMILIES in pruning_lib/measure/inputs.py)."
    )
