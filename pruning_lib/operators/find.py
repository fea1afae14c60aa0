"""Every operator of a denoiser that can be changed alone, found in one forward call on the meta device.

An operator is a module with one stream in and one out: a residual block, a transformer, an attention, a single layer.
Operators lie inside one another, so a plan never holds both a block and a layer of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..checks import nearest, place
from ..denoisers import Fingerprint, example_inputs, meta_copy
from ..macs import count_macs
from .replace import allowed

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
_BLOCK = {"BasicTransformerBlock": "transformer block", "Attention": "self-attention", "FeedForward": "feed-forward"}

# Class of a denoiser -> class of a module in it -> kind; attention over text is told apart by itself.
FAMILIES: dict[str, dict[str, str]] = {
    "UNet2DModel": {**_LAYERS, **_UNET, "Attention": "self-attention"},
    "UNet2DConditionModel": {**_LAYERS, **_UNET, **_BLOCK, "Transformer2DModel": "transformer"},
    "DiTTransformer2DModel": {**_LAYERS, **_BLOCK},
    "PixArtTransformer2DModel": {**_LAYERS, **_BLOCK},
}
# Its first norm holds the embedding that the output layer uses too, so it stays.
_NEEDED = {("DiTTransformer2DModel", "transformer_blocks.0")}


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        path: of its module, such as "down_blocks.0.resnets.1".
        kind: one of `KINDS`.
        module: class name.
        in_shape, out_shape: of the stream at batch 1.
        params: parameters, those inside included.
        macs: of one call of the denoiser, batch 1, with attention products.
        order: position of its first call among all operators of the denoiser, from 0.
        modifications: what can be done to it, the default first.
    """

    path: str
    kind: str
    module: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    params: int
    macs: int
    order: int
    modifications: tuple[str, ...]


class Operators(Sequence[Operator]):
    """Operators of one denoiser, `base`, in the order in which they run; `[i]` or `[path]` gives one."""

    def __init__(self, items: Iterable[Operator], base: Fingerprint):
        self._items, self.base = tuple(items), base
        self._by_path = {op.path: op for op in self._items}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: object) -> bool:
        return item in self._by_path or item in self._items

    def __getitem__(self, key: int | str | slice) -> Operator | Operators:
        if isinstance(key, slice):
            return Operators(self._items[key], self.base)
        if not isinstance(key, str):
            return self._items[key]
        if key not in self._by_path:
            raise KeyError(f"No operator {key!r} among these {len(self)}. {nearest(key, self._by_path)}")
        return self._by_path[key]

    def __repr__(self) -> str:
        return f"<{len(self)} operators of a {self.base}>"

    @property
    def paths(self) -> list[str]:
        """Their paths, in order."""
        return list(self._by_path)

    def of(self, *kinds: str) -> Operators:
        """Return those of these kinds; ValueError for an unknown one."""
        for kind in kinds:
            place(kind, list(KINDS), "kind of operator")
        return Operators([op for op in self if op.kind in kinds], self.base)


def find_operators(
    denoiser: nn.Module, kinds: Sequence[str] | None = None, *, sample_size: int | tuple[int, int] | None = None
) -> Operators:
    """List the operators of a denoiser that can be changed alone while all shapes stay valid, in the order they run.

    Args:
        denoiser: of one of `FAMILIES`, else a TypeError; only read, and its weights may be absent (meta).
        kinds: which ones, of `KINDS`. Default: `DEFAULT_KINDS`, all but single linear layers and norms.
        sample_size: side of the latent or (height, width), for shapes and MACs; by default the configuration's.

    Example:
        >>> find_operators(pipe.unet, ["resnet"]).paths
    """
    kinds = DEFAULT_KINDS if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        place(kind, list(KINDS), "kind of operator")
    family = next((cls.__name__ for cls in type(denoiser).__mro__ if cls.__name__ in FAMILIES), None)
    if family is None:
        name = type(denoiser).__name__
        raise TypeError(
            f"{name} is not of a known family. {nearest(name, FAMILIES)} Of a pipeline pass the denoiser, pipe.unet or "
            "pipe.transformer. A family needs two things: a table from the class names of its modules to kinds of "
            "operators (FAMILIES in pruning_lib/operators/find.py), and a function that builds the inputs of its "
            "forward from its configuration (_FAMILIES in pruning_lib/denoisers.py)."
        )
    names, costs = FAMILIES[family], count_macs(denoiser, sample_size=sample_size).modules
    found, order = [], 0
    for path, (module, *shapes) in _streams(denoiser, sample_size, names).items():
        kind = names[type(module).__name__]
        if kind == "self-attention" and getattr(module, "is_cross_attention", False):
            kind = "cross-attention"
        elif kind == "convolution" and set(module.kernel_size) == {1}:
            kind = "linear"
        how = allowed(module, kind, *shapes) if (family, path) not in _NEEDED else ()
        if how and kind in kinds:
            sizes = costs[path].params, costs[path].macs
            found.append(Operator(path, kind, type(module).__name__, *shapes, *sizes, order, how))
        order += bool(how)
    return Operators(found, Fingerprint.of(denoiser))


def _streams(denoiser: nn.Module, sample_size, names: dict[str, str]) -> dict[str, list]:
    """Return path -> [module, in shape, out shape] of all candidates, in the order of their first calls."""
    copy, seen = meta_copy(denoiser), {}

    def enter(path, module, args, kwargs):
        stream = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_tensor"))
        if isinstance(stream, Tensor):
            seen.setdefault(path, [module, tuple(stream.shape)])

    def leave(path, module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        if len(seen.get(path, ())) == 2 and isinstance(output, Tensor):
            seen[path].append(tuple(output.shape))

    whole = ()  # samplers, whose inner layers are no operators of their own
    for path, module in copy.named_modules():
        kind = names.get(type(module).__name__)
        if kind and not path.startswith(whole):
            module.register_forward_pre_hook(partial(enter, path), with_kwargs=True)
            module.register_forward_hook(partial(leave, path))
            whole += (f"{path}.",) * (kind in ("downsampler", "upsampler"))
    with torch.no_grad():
        copy(**example_inputs(copy, sample_size=sample_size))
    return {path: entry for path, entry in seen.items() if len(entry) == 3}
