"""Every operator of a denoiser that can be changed alone, found in one call of it, without a table of models.

An operator is a module with one stream in and one out: a residual block, a transformer, an attention, a single layer.
Operators lie inside one another, so a plan never holds both a block and a layer of it.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from ..capture import Call, MacsCounter, captured, example_call, modules_as_they_were
from ..checks import nearest, place
from ..denoisers import Fingerprint, denoiser_of, is_known, on_meta
from .replace import WHOLE, Untold, allowed, trial

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

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
        norms: paths of the norms that only serve it, and go with it; None where nobody noted that.
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
    norms: tuple[str, ...] | None = None


class Operators(Sequence[Operator]):
    """Operators of one denoiser, `base`, in the order in which they run; `[i]` or `[path]` gives one.

    Attributes:
        base: the denoiser.
        refused: path -> why an operator that was found cannot be removed.
        call: what the denoiser was called with; None for operators from a file.
    """

    def __init__(
        self,
        items: Iterable[Operator],
        base: Fingerprint,
        refused: Mapping[str, str] | None = None,
        call: Call | None = None,
    ):
        self._items, self.base, self.refused, self.call = tuple(items), base, dict(refused or {}), call
        self._by_path = {op.path: op for op in self._items}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: object) -> bool:
        return item in self._by_path or item in self._items

    def __getitem__(self, key: int | str | slice) -> Operator | Operators:
        if isinstance(key, slice):
            return self.only(self._items[key])
        if not isinstance(key, str):
            return self._items[key]
        if key in self.refused:
            raise KeyError(f"{key} cannot be removed: {self.refused[key]}.")
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
        return self.only(op for op in self if op.kind in kinds)

    def only(self, items: Iterable[Operator]) -> Operators:
        """Return some of them."""
        return Operators(items, self.base, self.refused, self.call)


def find_operators(
    model: nn.Module | DiffusionPipeline,
    kinds: Sequence[str] | None = None,
    *,
    sample_size: int | tuple[int, int] | None = None,
    steps: int = 10,
    options: Mapping[str, object] | None = None,
) -> Operators:
    """List the operators of a denoiser that can be changed alone while all shapes stay valid, in the order they run.

    What a module is follows from what it holds and from one call of the denoiser; what can be done to it, from a trial
    (`trial`). What is an operator and cannot be changed is in `Operators.refused`.

    Args:
        model: a pipeline, which is run once to see what it calls its denoiser with, the first if there are several; or
            a denoiser of a known family (see `example_inputs`), whose weights may be absent. Only read.
        kinds: which ones, of `KINDS`. Default: `DEFAULT_KINDS`, all but single linear layers and norms.
        sample_size: of a denoiser: side of the latent or (height, width); by default the configuration's.
        steps, options: of a pipeline: number of steps and other arguments of its call, as it needs them to be run.

    Raises TypeError for a denoiser of no known family, ValueError for a pipeline that cannot be called so.

    Example:
        >>> find_operators(pipe.unet, ["resnet"]).paths
    """
    kinds = DEFAULT_KINDS if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        place(kind, list(KINDS), "kind of operator")
    denoiser, call = model, None
    if not isinstance(model, nn.Module):
        _, denoiser = denoiser_of(model)
        try:
            call = captured(model, steps, options, first=True)
        except ValueError:
            if options or not is_known(denoiser):
                raise
    call = call or example_call(denoiser, sample_size=sample_size)
    run = _Run(denoiser, call)
    found, order, refused, names = [], 0, {}, _kinds(run)
    for path, seen in run.calls.items():
        if path not in names:
            continue
        try:
            needed = run.loose.get(path)
            if needed:
                raise Untold(f"{needed} inside it is also called from outside")
            removed = run.removed(path, names[path] in _ALONE) if names[path] in WHOLE else None
            how = allowed(seen.module, names[path], seen.shape(seen.args, seen.kwargs), seen.shape(seen.out), removed)
        except Untold as error:
            refused[path] = str(error)
            continue
        if how and names[path] in kinds:
            shapes = (run.one(shape) for shape in (seen.shape(seen.args, seen.kwargs), seen.shape(seen.out)))
            params = sum(p.numel() for p in seen.module.parameters())
            norms = run.norms(path) if how[0].startswith("zero") else ()
            kind, macs = type(seen.module).__name__, run.costs[path] // call.batch
            found.append(Operator(path, names[path], kind, *shapes, params, macs, order, how, norms))
        order += bool(how)
    return Operators(found, Fingerprint.of(denoiser), refused, call)


@dataclass
class _Seen:
    """The first call of a module: tensors of floats without values; and how many there were."""

    module: nn.Module
    args: tuple
    kwargs: dict
    joint: bool  # whether another stream comes in
    out: object = None
    count: int = 1

    @staticmethod
    def shape(*trees: object) -> tuple[int, ...]:
        """Return the shape of the stream: the first tensor."""
        return next((tuple(leaf.shape) for leaf in pytree.tree_leaves(trees) if isinstance(leaf, Tensor)), ())


class _Run(MacsCounter):
    """One call of a denoiser: what each module was called with, what it cost, and who read what norms gave.

    Attributes:
        calls: path -> first call, in order.
        costs: path -> MACs, with attention products, of the whole call.
        loose: path -> a module inside it that was called while it was not running.
    """

    def __init__(self, denoiser: nn.Module, call: Call):
        denoiser = getattr(denoiser, "_orig_mod", denoiser)
        model, args, kwargs = call.on(denoiser)
        if model is not denoiser and call.twin is not None:
            model = call.twin  # the run may have switched something on
        super().__init__(model, [""])
        self.batch = call.batch
        self.calls: dict[str, _Seen] = {}
        self.loose: dict[str, str] = {}
        self.costs: dict[str, int] = defaultdict(int)
        self._norms: dict[int, tuple[str, Tensor]] = {}  # by the tensor that it gave, which lives as long
        self._readers: dict[str, set[str]] = {}  # norm -> what was running whenever its output was read
        self._trials: dict[object, str | Untold] = {}
        handles = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(self._leave, path)))
        try:
            with modules_as_they_were(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), self:
                out = model.eval()(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        for leaf in pytree.tree_leaves(out):
            if id(leaf) in self._norms:
                self._readers[self._norms[id(leaf)][0]] = set()
        for path, products in self.macs.items():
            for up in {path, *_above(path)}:
                self.costs[up] += sum(products)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) in self._norms:
                path, running = self._norms[id(leaf)][0], set(self.stack)
                self._readers[path] = self._readers.get(path, running) & running
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _enter(self, path: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        for up in set(_above(path)) - set(self.stack):
            self.loose.setdefault(up, path)
        self.stack.append(path)
        if path in self.calls:
            self.calls[path].count += 1
            return
        stream = (*args, *kwargs.values())[:1]
        others = [kwargs.get(name) for name in _OTHERS]
        if len(args) > 1 and [*inspect.signature(module.forward).parameters][1:2] == ["encoder_hidden_states"]:
            others.append(args[1])
        joint = any(isinstance(x, Tensor) and x is not stream[0] for x in others)
        self.calls[path] = _Seen(module, *pytree.tree_map(_bare, (args, kwargs)), joint)

    def _leave(self, path: str, module: nn.Module, args: tuple, out: object) -> None:
        self.stack.pop()
        if self.calls[path].count == 1:
            self.calls[path].out = pytree.tree_map(_bare, out)
            if _is_norm(module) and isinstance(out, Tensor) and not any(out is x for x in args):
                self._norms[id(out)] = path, out

    def above(self, path: str) -> str:
        """Return the innermost module around one that was called; "" is the denoiser."""
        return next(up for up in _above(path) if up in self.calls)

    def one(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return a shape at batch 1."""
        return (shape[0] // self.batch, *shape[1:]) if shape and shape[0] % self.batch == 0 else shape

    def norms(self, path: str) -> tuple[str, ...]:
        """Return the norms that serve one module alone: it reads what they give, and nobody else does."""
        alone = (norm for norm, readers in self._readers.items() if path in readers and path not in _above(norm))
        return tuple(norm for norm in alone if self.calls[norm].count == self.calls[path].count == 1)

    def removed(self, path: str, alone: bool = False) -> str:
        """Return what a `trial` says of a module, or raise `Untold`. Equal ones are tried once."""
        seen = self.calls[path]
        facts = [
            (type(part).__name__, sorted((k, v) for k, v in vars(part).items() if isinstance(v, (bool, int, float))))
            for part in seen.module.modules()
        ]
        like = str((alone, seen.module, facts, pytree.tree_map(_shape, (seen.args, seen.kwargs))))
        if like not in self._trials:
            try:
                self._trials[like] = trial(seen.module, seen.args, seen.kwargs, alone)
            except Untold as error:
                self._trials[like] = error
        if isinstance(self._trials[like], Untold):
            raise self._trials[like]
        return self._trials[like]

    def gives(self, path: str, word: str, alone: bool = False) -> bool:
        """Whether a trial says that word of a module."""
        try:
            return self.removed(path, alone).startswith(word)
        except Untold:
            return False


_ALONE = ("resnet", "feed-forward")  # kinds of one branch
_OTHERS = ("encoder_hidden_states", "context")  # what a second stream is called


def _kinds(run: _Run) -> dict[str, str]:
    """Return path -> kind: of layers by class, of the rest by what they hold and by what a trial leaves of them."""
    kinds, inside = {}, ()  # inside samplers, whose layers are no operators of their own
    for path, seen in run.calls.items():
        module = seen.module
        if path.startswith(inside):
            continue
        if type(module).__name__ in _SAMPLERS:
            kinds[path] = _SAMPLERS[type(module).__name__]
            inside += (f"{path}.",)
        elif isinstance(module, _ConvNd):
            kinds[path] = "linear" if set(module.kernel_size) == {1} else "convolution"
        elif isinstance(module, nn.Linear):
            kinds[path] = "linear"
        elif _is_norm(module):
            kinds[path] = "norm"

    def holds(path: str, *wanted: str) -> list[str]:
        return [other for other in kinds if other.startswith(f"{path}.") and kinds[other] in wanted]

    # Attention is where activations are multiplied with each other; what does so for it is none of its own.
    attentions = set()
    for path, (_, products) in run.macs.items():
        while path and (
            not holds(path, "linear", "convolution") or "Processor" in type(run.calls[path].module).__name__
        ):
            path = run.above(path)
        attentions |= {path} if path and products else set()
    for path in attentions:
        alone = run.calls[path].joint and isinstance(run.calls[path].out, Tensor)
        kinds[path] = "cross-attention" if alone else "self-attention"
    for path in sorted(run.calls, key=lambda path: -path.count(".")):
        seen = run.calls[path]
        module, same = seen.module, _Seen.shape(seen.args, seen.kwargs) == _Seen.shape(seen.out)
        if not path or path in kinds or path.startswith(inside) or not any(True for _ in module.children()):
            continue
        held, up = holds(path, *WHOLE), run.above(path)
        named = "Res" in type(module).__name__
        if not held and holds(path, "convolution") and (named or (same and run.gives(path, "identity", True))):
            kinds[path] = "resnet"
        elif not held and same and len(_Seen.shape(seen.out)) > 2 and len(holds(path, "linear", "convolution")) > 1:
            if up and any(run.above(a) == up for a in attentions) and run.gives(path, "zero", True):
                kinds[path] = "feed-forward"
    for kind, parts in (("transformer block", attentions), ("transformer", "transformer block")):
        for path in parts if isinstance(parts, set) else [p for p, k in kinds.items() if k == parts]:
            while path := run.above(path):
                if path in kinds or holds(path, "resnet"):
                    break
                if run.gives(path, "identity") or type(run.calls[path].module).__name__.endswith("Block"):
                    kinds[path] = kind
                    break
    return kinds


_SAMPLERS = {"Downsample2D": "downsampler", "Upsample2D": "upsampler"}


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and not any(True for _ in module.children())


def _above(path: str) -> list[str]:
    """Return every path above one, nearest first; the last is "", the model."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts) - 1, -1, -1)]


def _bare(value: object) -> object:
    return on_meta(value) if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()) else value


def _shape(value: object) -> object:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
