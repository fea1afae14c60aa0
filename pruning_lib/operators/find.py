"""What the operators of each architecture are called: one small table per architecture.

A *family* maps the class of a module to the kind of operator it is.  For another architecture write such a table and
add it to `FAMILIES` under the class name of the denoiser; `measure/inputs.py` must know how to call it.

Every operator of a denoiser that can be changed alone.

An operator is a module with one stream in and one out: a residual block, a transformer, an attention, a single layer.
Operators lie inside one another, so a plan never holds both a block and a layer of it.  The list is made from one
forward call on the meta device, without weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor, nn

from ..checks import nearest
from ..denoisers import Fingerprint, example_inputs, skeleton
from ..macs import count_macs
from .replace import allowed

__all__ = ["DEFAULT_KINDS", "FAMILIES", "Family", "KINDS", "Operator", "Operators", "family_of", "find_operators"]

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
}


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
        "names of its modules to kinds of operators (FAMILIES in pruning_lib/operators/find.py), and a function "
        "that builds the inputs of its forward from its configuration (_FAMILIES in pruning_lib/denoisers.py)."
    )


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
    """Operators of one denoiser, in the order in which they run; `[i]` or `[path]` gives one.

    Args:
        items: the operators.
        base: the denoiser they belong to.
    """

    def __init__(self, items: Iterable[Operator], base: Fingerprint):
        self._items, self.base = tuple(items), base
        self._by_path = {op.path: op for op in self._items}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Operator]:
        return iter(self._items)

    def __contains__(self, item: object) -> bool:
        return item in self._by_path or item in self._items

    @overload
    def __getitem__(self, key: int | str) -> Operator: ...
    @overload
    def __getitem__(self, key: slice) -> Operators: ...
    def __getitem__(self, key):
        if isinstance(key, slice):
            return Operators(self._items[key], self.base)
        if isinstance(key, str):
            if key not in self._by_path:
                raise KeyError(f"No operator {key!r} among these {len(self)}. {nearest(key, self._by_path)}")
            return self._by_path[key]
        return self._items[key]

    def __repr__(self) -> str:
        return f"<{len(self)} operators of a {self.base}>"

    @property
    def paths(self) -> list[str]:
        """Their paths, in order."""
        return list(self._by_path)

    def of(self, *kinds: str) -> Operators:
        """Return those of these kinds.

        Raises:
            ValueError: an unknown kind.
        """
        _check_kinds(kinds)
        return Operators([op for op in self if op.kind in kinds], self.base)

    def table(self) -> str:
        """Return one line per operator: path, kind, shapes, parameters, MACs, default modification."""
        head = f"{'operator':<52} {'kind':<17} {'in':>15} {'out':>15} {'params':>12} {'MMACs':>9}  modification"
        lines = [
            f"{op.path:<52} {op.kind:<17} {_times(op.in_shape):>15} {_times(op.out_shape):>15} {op.params:>12,} "
            f"{op.macs / 1e6:>9,.2f}  {op.modifications[0]}"
            for op in self
        ]
        return "\n".join([head, *lines])


def find_operators(
    denoiser: nn.Module, kinds: Sequence[str] | None = None, *, sample_size: int | tuple[int, int] | None = None
) -> Operators:
    """List the operators of a denoiser that can be changed alone while all shapes stay valid.

    Args:
        denoiser: a `UNet2DModel`, `UNet2DConditionModel`, `DiTTransformer2DModel` or `PixArtTransformer2DModel`; only
            read, and its weights may be absent (meta).
        kinds: which ones, of `KINDS`. Default: `DEFAULT_KINDS`, all but single linear layers and norms.
        sample_size: side of the latent or (height, width). Default: the configuration's. Shapes and MACs depend on it.

    Returns:
        `Operators`, in the order in which they run.

    Raises:
        TypeError: not a denoiser, or one of an unknown family.
        ValueError: an unknown kind, or a size that does not run.

    Example:
        >>> print(find_operators(pipe.unet, ["resnet"]).table())
    """
    kinds = DEFAULT_KINDS if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    _check_kinds(kinds)
    family, base = family_of(denoiser), Fingerprint.of(denoiser)
    costs = count_macs(denoiser, sample_size=sample_size).modules
    found, order = [], 0
    for path, (module, shapes) in _streams(denoiser, sample_size, family).items():
        kind = _kind(module, family)
        how = allowed(module, kind, *shapes) if path not in family.needed else ()
        if not how:
            continue
        if kind in kinds:
            cost = costs[path]
            found.append(Operator(path, kind, type(module).__name__, *shapes, cost.params, cost.macs, order, how))
        order += 1
    return Operators(found, base)


def _streams(denoiser: nn.Module, sample_size, family: Family) -> dict[str, tuple[nn.Module, tuple]]:
    """Return path -> module, (in shape, out shape) of all candidates, in the order of their first calls."""
    copy, seen = skeleton(denoiser), {}
    closed = [p for p, m in copy.named_modules() if family.kinds.get(type(m).__name__) in family.indivisible]

    def watch(path: str):
        def enter(module, args, kwargs):
            stream = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_tensor"))
            if isinstance(stream, Tensor):
                seen.setdefault(path, [module, tuple(stream.shape)])

        def leave(module, args, output):
            output = output[0] if isinstance(output, tuple) else output
            if path in seen and isinstance(output, Tensor):
                seen[path].append(tuple(output.shape))

        return enter, leave

    for path, module in copy.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in closed)
        if type(module).__name__ in family.kinds and not inside:
            enter, leave = watch(path)
            module.register_forward_pre_hook(enter, with_kwargs=True)
            module.register_forward_hook(leave)
    with torch.no_grad():
        copy(**example_inputs(copy, sample_size=sample_size))
    return {path: (entry[0], (entry[1], entry[2])) for path, entry in seen.items() if len(entry) > 2}


def _kind(module: nn.Module, family: Family) -> str:
    kind = family.kinds[type(module).__name__]
    if kind == "self-attention" and getattr(module, "is_cross_attention", False):
        return "cross-attention"
    if kind == "convolution" and set(module.kernel_size) == {1}:
        return "linear"
    return kind


def _check_kinds(kinds: Iterable[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is unknown. {nearest(str(kind), KINDS)}")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
