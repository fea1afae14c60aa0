"""What can be done to an operator while all shapes stay valid (LD-Pruner, arXiv 2404.11936: remove, or make cheaper).

Whole blocks and branches are removed, as a trial says it: run with its layers at zero, a branch that is added by its
caller gives zeros, and one that adds itself gives what came in, or a fraction of it.  Bare layers, which nothing leads
around, are made cheaper.  The modules here stand where an operator stood: they take its arguments, and give its shapes.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..checks import nearest
from ..denoisers import meta_copy, on_meta

MODIFICATIONS: dict[str, str] = {
    "identity": "what comes in goes out",
    "zero": "the branch adds nothing to the stream",
    "shortcut": "the residual branch is gone; the block's own 1x1 projection and resampling stay",
    "resample": "pooling down, or repeating up, without the convolution",
    "pointwise": "a 1x1 convolution whose weights are the sums over the window",
    "low rank": "two thin layers with half the weights, from the singular value decomposition",
}
WHOLE = ("resnet", "transformer", "transformer block", "self-attention", "cross-attention", "feed-forward")


class Untold(ValueError):
    """A module cannot be removed: what is left of it without its layers is nothing that could stand in its place."""


def allowed(
    module: nn.Module, kind: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...], removed: str | None = None
) -> tuple[str, ...]:
    """Return the modifications that keep the shapes of a module of a kind, the default first; empty: none does.

    `removed` is what `trial` found for a whole block or branch.
    """
    same = in_shape == out_shape
    if kind in WHOLE:
        return (removed,) if removed else ()
    if kind == "norm":
        return ("identity",) * (same and any(True for _ in module.parameters()))
    if kind in ("downsampler", "upsampler"):
        if getattr(module, "use_conv_transpose", False) or getattr(module, "norm", None) is not None:
            return ()
        if not isinstance(getattr(module, "conv", None), nn.Conv2d) or not getattr(module, "interpolate", True):
            return ()  # nothing is cheaper than resampling alone
        return ("resample",) * (module.channels == module.out_channels) + ("pointwise",)
    if kind == "convolution":
        sides = zip(in_shape[2:], module.stride, out_shape[2:], strict=False)
        return ("pointwise",) * all((n - 1) // stride + 1 == out for n, stride, out in sides) + ("identity",) * same
    fits = _half_rank(module.weight) > 0 and getattr(module, "groups", 1) == 1  # a linear layer
    return ("low rank",) * fits + ("identity",) * same


def trial(module: nn.Module, args: tuple, kwargs: Mapping[str, object], alone: bool = False) -> str:
    """Return the modification that is a module with its layers at zero, found by running it so; else raise `Untold`.

    What it gives is compared with what comes in, so no attribute is believed: zeros are "zero", an input is "identity",
    a fraction of it "identity / 1.4142135623730951". Several streams are named: "zero (hidden_states, context)".

    Args:
        module: only read; where its weights are absent, those that still count (of norms, gates) are drawn.
        args, kwargs: of one of its calls; tensors without values are drawn.
        alone: whether one layer at zero must do, whatever the others give: what scales the stream, too, has to stay.
    """
    failures = []
    for dtype in (torch.float32, torch.float64):  # a number is told from others in double precision only
        try:
            return _tried(partial(_without_layers, module, args, kwargs, dtype), module, kwargs, alone)
        except Untold as error:
            failures.append(error)
    raise failures[0]


def _tried(run: Callable, module: nn.Module, kwargs: Mapping[str, object], alone: bool) -> str:
    if hasattr(module, "conv_shortcut") and hasattr(module, "output_scale_factor"):  # of `ResnetBlock2D`
        around = (module.conv_shortcut, module.upsample, module.downsample)
        left, given, out = run([part for part in around if isinstance(part, nn.Module)])
        stream = next(iter(given.values()))
        with torch.no_grad():
            if torch.equal(out, stream) or torch.allclose(out, Shortcut(left)(stream)):
                return "identity" if torch.equal(out, stream) else "shortcut"
        raise Untold("with its last layer at zero it gives something else than its projection of what comes in")
    told = _compared(*run()[1:], kwargs)
    layers = [part for part in module.modules() if isinstance(part, nn.Linear | _ConvNd)]
    for layer in reversed(layers) if alone else ():
        with suppress(Untold):
            if _compared(*run(zero=layer)[1:], kwargs) == told:
                return told
    if alone:
        raise Untold("its layers do more than add to what comes in")
    return told


def _compared(given: Mapping[str, object], out: object, kwargs: Mapping[str, object]) -> str:
    """Say what a module's output is of what it was given, as `trial` does."""
    given = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    if not isinstance(out, (Tensor, tuple, list)):
        raise Untold(f"it returns a {type(out).__name__}")
    found, free = [], dict(given)
    for leaf in [out] if isinstance(out, Tensor) else out:
        if leaf is not None and not isinstance(leaf, Tensor):
            raise Untold(f"it returns a {type(leaf).__name__} among others")
        found.append(("", "-") if leaf is None else _told(leaf, given, free))
    words = {word for word, _ in found} - {""}
    if len(words) != 1:
        raise Untold("some of what it returns is zero and some is what came in")
    word, leaves, first = *words, [leaf for _, leaf in found], next(iter(given))
    told = isinstance(out, Tensor) or (len(leaves) == 1 and "return_dict" in kwargs)
    if len(leaves) == 1 and told and leaves[0].split(" / ")[0] == first and first in _STREAM:
        return word + leaves[0].removeprefix(first)
    return f"{word} ({', '.join(leaves)}{',' * (len(leaves) == 1 and not told)})"


def _told(out: Tensor, given: Mapping[str, Tensor], free: dict[str, Tensor]) -> tuple[str, str]:
    """Say what one output is: zeros, in the shape of an input that no other has, or an input over a number."""
    if not out.any():
        name = next((name for name, value in free.items() if value.shape == out.shape), None)
        if name is None:
            raise Untold("with its last layer at zero it gives zeros of a shape that nothing has that comes in")
        del free[name]
        return "zero", name
    for name, value in given.items():
        if value.shape == out.shape and value.is_floating_point():
            if torch.equal(value, out):
                return "identity", name
            ratio = (value / out).flatten()
            scale = ratio.median().item()
            if out.dtype == torch.float64 and scale and torch.allclose(out * scale, value, rtol=1e-12, atol=1e-12):
                return "identity", name if abs(scale - 1) < 1e-14 else f"{name} / {scale!r}"
    raise Untold("with its layers at zero it gives neither zeros nor what came in")


def _without_layers(
    module: nn.Module, args: tuple, kwargs: Mapping, dtype: torch.dtype, kept: Iterable = (), zero: object = None
) -> tuple[nn.Module, dict[str, object], object]:
    """Run a module without its linear layers and convolutions; return it, its named arguments, and its output.

    They give zeros; or noise, all but `zero`, if that is given. Those inside `kept` compute.
    """
    whole, noise = {id(part) for outer in kept for part in outer.modules()}, set()
    draw, left = torch.Generator().manual_seed(0), meta_copy(module)
    for mine, theirs in zip(left.modules(), module.modules(), strict=True):
        if isinstance(theirs, nn.Linear | _ConvNd) and id(theirs) not in whole:
            noise |= {id(mine.weight)} if zero not in (None, theirs) else set()
            continue  # never read
        for table in ("_parameters", "_buffers"):
            values = {key: _value(value, dtype, draw) for key, value in getattr(theirs, table).items()}
            getattr(mine, table).update(values)
    args, kwargs = pytree.tree_map(lambda value: _value(value, dtype, draw), (args, dict(kwargs)))
    try:
        with torch.no_grad(), _LayersAtZero(noise):
            out = left(*args, **kwargs)
    except Exception as error:
        raise Untold(f"it cannot be tried: {str(error).partition(chr(10))[0]}") from error
    bound, given = inspect.signature(left.forward).bind_partial(*args, **kwargs), {}
    for name, value in bound.arguments.items():
        more = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        given.update(value if more else {name: value})
    return left, given, out


def _value(value: object, dtype: torch.dtype, draw: torch.Generator) -> object:
    """Return a tensor with values, on the CPU: its own, or drawn; of whole numbers 0, and True."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if not value.is_meta:
        return value.cpu().to(dtype) if value.is_floating_point() else value.cpu()
    if value.is_floating_point():
        return torch.randn(value.shape, generator=draw).to(dtype)  # as some modules reckon in single precision
    return torch.full(value.shape, value.dtype == torch.bool, dtype=value.dtype, device="cpu")


class _LayersAtZero(TorchFunctionMode):
    """Linear layers and convolutions without values give zeros, or noise, and attention over zeros is zero."""

    _LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

    def __init__(self, noise: Collection[int] = ()):
        super().__init__()
        self.noise, self.draw = noise, torch.Generator().manual_seed(0)  # ids of weights; nobody else's numbers

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, _, value = [*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :])][:3]
            if not value.any():
                return value.new_zeros(*query.shape[:-1], value.shape[-1])
        elif func in self._LAYERS and any(x.is_meta for x in (*args, *kwargs.values()) if isinstance(x, Tensor)):
            x = args[0] if args else kwargs["input"]
            bare = pytree.tree_map(on_meta, (args, kwargs))
            zeros = x.new_zeros(func(*bare[0], **bare[1]).shape)
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            return zeros.normal_(generator=self.draw) if id(weight) in self.noise else zeros
        return func(*args, **kwargs)


def replacement(module: nn.Module, how: str) -> nn.Module:
    """Return the module that stands in for `module`, which is of a kind that allows it and is only read.

    On the meta device the result has shapes without values. `how` is one of `MODIFICATIONS`, for "identity" and "zero"
    with what `trial` says of scales and streams; anything else is a ValueError.
    """
    word, scale, streams = _HOW.fullmatch(how).groups() if _HOW.fullmatch(str(how)) else (how, None, None)
    if word not in MODIFICATIONS or ((scale or streams) and word not in ("identity", "zero")):
        raise ValueError(f"Modification {how!r} is unknown. {nearest(str(how), MODIFICATIONS)}")
    if scale or streams:
        names = [*inspect.signature(module.forward).parameters]
        made = Streams(word, streams or f"{names[0]} / {scale}", names)
    else:
        made = _MAKE[word](module)
    if word in ("identity", "zero"):
        for name, value in vars(module).items():  # models read some, to see how to call a block
            if value is None or isinstance(value, bool | int | float | str):
                vars(made).setdefault(name, value)
    return made.train(module.training)


_HOW = re.compile(r"(.+?)(?: / (\S+)| \((.*)\))?")


class Streams(nn.Module):
    """Pass on some of what came in, each over a number; or zeros in their shapes.

    `told` names them as `trial` does; `names` are those of the arguments, in order.
    """

    def __init__(self, word: str, told: str, names: list[str]):
        super().__init__()
        self.word, self.told, self.names = word, told, names
        self.alone = "," not in told
        parts = [part.strip().partition(" / ") for part in told.removesuffix(",").split(",")]
        self.leaves = [(name, float(scale or 1)) for name, _, scale in parts]

    def extra_repr(self) -> str:
        return f"{self.word} ({self.told})"

    def forward(self, *args, **kwargs) -> Tensor | tuple[Tensor | None, ...]:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        out = tuple(None if name == "-" else self._of(given[name], scale) for name, scale in self.leaves)
        return out[0] if self.alone else out

    def _of(self, stream: Tensor, scale: float) -> Tensor:
        if self.word == "zero":
            return stream.new_zeros(()).expand(stream.shape)
        return stream if scale == 1 else stream / scale


_STREAM = ("hidden_states", "input_tensor", "input", "x")


def _stream(args: tuple, kwargs: Mapping[str, Tensor]) -> Tensor:
    return args[0] if args else next(kwargs[name] for name in _STREAM if name in kwargs)


class Identity(nn.Module):
    """Pass on what came in; as a tuple where the caller says `return_dict=False`, as diffusers' modules do."""

    def forward(self, *args, return_dict: bool | None = None, **kwargs) -> Tensor | tuple[Tensor]:
        stream = _stream(args, kwargs)
        return stream if return_dict is None else (stream,)


class Zero(nn.Module):
    """A residual branch that adds nothing: zeros that take no memory."""

    def forward(self, *args, **kwargs) -> Tensor:
        stream = _stream(args, kwargs)
        return stream.new_zeros(()).expand(stream.shape)


class Shortcut(nn.Module):
    """A `ResnetBlock2D` without its branch; its 1x1 projection and its resampling are kept, with their weights."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.upsample, self.downsample = block.upsample, block.downsample
        self.conv_shortcut, self.scale = block.conv_shortcut, block.output_scale_factor

    def forward(self, *args, **kwargs) -> Tensor:
        stream = args[0] if args else kwargs["input_tensor"]
        for part in (self.upsample, self.downsample, self.conv_shortcut):
            stream = stream if part is None else part(stream)
        return stream / self.scale if self.scale != 1 else stream


class Pool(nn.AvgPool2d):
    """Halve height and width, by averages."""

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return super().forward(hidden_states)


class Stretch(nn.Module):
    """Double height and width, or go to `output_size`, by repeating each position."""

    def forward(self, hidden_states: Tensor, output_size=None, *args, **kwargs) -> Tensor:
        size = tuple(output_size) if output_size is not None else [2 * n for n in hidden_states.shape[-2:]]
        return F.interpolate(hidden_states, size=size, mode="nearest")


def _resample(module: nn.Module) -> nn.Module:
    # A convolution that pads on all sides rounds odd sizes up.
    return Pool(2, ceil_mode=module.padding != 0) if "Down" in type(module).__name__ else Stretch()


def _pointwise(module: nn.Module) -> nn.Module:
    """Return the 1x1 convolution whose weights are the sums over the window: the same where the input is flat."""
    if isinstance(module, _ConvNd):
        return _layer(module, module.weight.sum(tuple(range(2, module.weight.ndim))))
    small, conv = copy.copy(module), _pointwise(module.conv)  # a sampler: the same around a smaller convolution
    # Some hold the same convolution under two names.
    small._modules = {name: conv if child is module.conv else child for name, child in module._modules.items()}
    if "Down" in type(module).__name__ and module.padding == 0:
        small.padding = 1  # the convolution no longer looks past the edge
    return small


@torch.no_grad()
def _low_rank(layer: nn.Linear | _ConvNd) -> nn.Sequential:
    """Return two layers, together the best approximation of `layer` with half its weights (Eckart and Young 1936)."""
    rank = _half_rank(layer.weight)
    u, s, v = torch.linalg.svd(layer.weight.flatten(1).float(), full_matrices=False)
    root = s[:rank].sqrt()
    return nn.Sequential(_layer(layer, root[:, None] * v[:rank], first=True), _layer(layer, u[:, :rank] * root))


@torch.no_grad()
def _layer(like: nn.Linear | _ConvNd, weight: Tensor, *, first: bool = False) -> nn.Linear | _ConvNd:
    """Return a layer of the kind of another, of this matrix; the first of two has neither bias nor stride."""
    bias, (out, inner) = like.bias is not None and not first, weight.shape
    kind = {"bias": bias, "device": weight.device, "dtype": like.weight.dtype}
    if isinstance(like, nn.Linear):
        small = nn.utils.skip_init(nn.Linear, inner, out, **kind)  # draws no numbers
    else:
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[like.weight.ndim - 3]
        kind |= {"stride": 1 if first else like.stride, "groups": like.groups}
        small = nn.utils.skip_init(conv, inner * like.groups, out, 1, **kind)
    small.weight.copy_(weight.reshape(small.weight.shape))
    if bias:
        small.bias.copy_(like.bias)
    return small.requires_grad_(like.weight.requires_grad)


def _half_rank(weight: Tensor) -> int:
    """Return the largest rank at which two factors hold at most half the weights of a matrix, or 0."""
    out, inner = weight.shape[:2]
    return out * inner // 2 // (out + inner)


_MAKE = {
    "identity": lambda module: Identity(),
    "zero": lambda module: Zero(),
    "shortcut": Shortcut,
    "resample": _resample,
    "pointwise": _pointwise,
    "low rank": _low_rank,
}
