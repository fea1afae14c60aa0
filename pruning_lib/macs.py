"""Multiply-accumulates (MACs) and parameters of every module, counted without weights.

The structure runs once on the meta device, and PyTorch's own formulas count each matrix product and convolution; a MAC
is FLOPs / 2, and biases, norms and activations are not counted, as in published tables.  Two conventions, never mixed:
*with* attention products (QK^T and AV, of two activations; Vaswani et al. 2017, Eq. 1) and *without* them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from .capture import MacsCounter
from .checks import check_whole, path_levels, text_table
from .denoisers import example_inputs, meta_copy, on_meta

_COUNTS = ("params", "macs", "macs_without_attention")


@dataclass(frozen=True)
class ModuleCost:
    """Cost of one module in one call.

    Attributes:
        kind: class name.
        role: what its own weights do, such as "norms", "feed-forward" or "attention projections".
        params: parameters, its children's included, tied ones once.
        macs: multiply-accumulates with attention products, its children's included.
        macs_without_attention: the same without attention products.
        own: these three without its children's.
    """

    kind: str
    role: str
    params: int
    macs: int
    macs_without_attention: int
    own: tuple[int, int, int]


@dataclass(frozen=True)
class MacsReport:
    """Parameters and MACs of one forward call.

    Attributes:
        model: class name of the denoiser.
        inputs: shapes of the inputs it was counted with.
        modules: path -> `ModuleCost`, in the order in which the modules run; "" is the whole model.
        params: parameters of the whole model.
        macs: MACs of one call, with attention products.
        macs_without_attention: MACs of one call, without them.
    """

    model: str
    inputs: dict[str, object]
    modules: dict[str, ModuleCost]
    params: int
    macs: int
    macs_without_attention: int

    def by_block(self, depth: int = 1) -> dict[str, ModuleCost]:
        """Return the blocks in the order in which they run, `depth` levels of them; deeper ones follow their parent.

        Members of a list count as one level with it: `conv_in`, `down_blocks.0`, …, `mid_block`, `up_blocks.0`, …,
        `conv_out`, or `transformer_blocks.0`, ….  At depth 1 the costs add up to the whole model; parameters and MACs
        that belong to no block stand under "(model)".
        """
        check_whole("depth", depth, 1)
        turn, shown, whole = {path: i for i, path in enumerate(self.modules)}, {}, self.modules[""]
        for path, cost in self.modules.items():
            levels = path_levels(path)
            listed = path and len(levels) <= depth and cost.kind not in ("ModuleList", "ModuleDict")
            if listed and (cost.params or cost.macs):
                shown[path] = [turn[".".join(levels[:n])] for n in range(1, len(levels) + 1)]  # those above it first
        blocks = {path: self.modules[path] for path in sorted(shown, key=shown.get)}
        if any(whole.own):
            blocks["(model)"] = replace(whole, **dict(zip(_COUNTS, whole.own, strict=True)))
        return blocks

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return {"params", "macs", "macs_without_attention"} by what the work is for, largest first.

        Attention products have a row of their own, so the rows add up to the whole model (tied parameters count with
        every owner).
        """
        kinds: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_COUNTS, 0))
        for cost in self.modules.values():
            params, macs, without = cost.own
            if params or without:
                for name, value in zip(_COUNTS, (params, without, without), strict=True):
                    kinds[cost.role][name] += value
            if macs > without:
                kinds["attention products"]["macs"] += macs - without
        return dict(sorted(kinds.items(), key=lambda item: (-item[1]["macs"], -item[1]["params"])))

    def table(self, depth: int = 1) -> str:
        """Return the blocks, to a depth as in `by_block`, as text: parameters, MACs in both conventions, and shares."""
        rows = []
        for path, cost in self.by_block(depth).items():
            levels = path_levels(path)
            rows.append(("  " * (len(levels) - 1) + levels[-1], cost.kind, *self._cells(cost)))
        head = ("block", "kind", "params", "%", "MACs", "%", "MACs without att.", "%")
        return text_table(head, rows, ("total", self.model, *self._cells(self.modules[""])), left=2)

    def _cells(self, cost: ModuleCost) -> list[str]:
        cells = []
        for name in _COUNTS:
            value, whole = getattr(cost, name), getattr(self, name)
            cells += [_si(value), f"{100 * value / whole:.1f}" if whole else "-"]
        return cells

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain JSON types, its blocks and kinds included."""
        blocks = {path: {k: v for k, v in vars(cost).items() if k != "own"} for path, cost in self.by_block().items()}
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {"model": self.model, "inputs": self.inputs, **counts, "blocks": blocks, "kinds": self.by_kind()}


def _si(value: float) -> str:
    """Return a count with three or four digits and a unit: 859520964 -> "859.5 M"."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {unit}" if value < 100 * factor else f"{value / factor:.1f} {unit}"
    return f"{value:g}"


def count_macs(
    denoiser: nn.Module,
    *,
    sample_size: int | tuple[int, int] | None = None,
    batch: int = 1,
    tokens: int | None = None,
    **inputs,
) -> MacsReport:
    """Count the MACs and parameters of one forward call, module by module.

    The model is only read: nothing is moved, cast, hooked or run on its device, and its weights may be absent (meta).
    Hooks and patched forward methods are ignored, so the structure is counted, not a cache that skips parts of it.

    Args:
        denoiser: a diffusers denoiser of a known family (see `example_inputs`); or any module, if its inputs are given.
        sample_size, batch, tokens: as in `example_inputs`, whose defaults are the configuration's size and one sample.
        **inputs: arguments of `forward` by name. They are added to the built ones or replace them; of tensors only
            shape and type are used. What forward does not accept is a ValueError.

    Example:
        >>> print(count_macs(pipe.unet).table())
    """
    try:
        built = example_inputs(denoiser, sample_size=sample_size, batch=batch, tokens=tokens)
    except (TypeError, ValueError):
        if not inputs or not isinstance(denoiser, nn.Module):
            raise
        built = {}
    model, inputs = meta_copy(denoiser), tree_map(on_meta, {**built, **inputs})
    shapes = tree_map(lambda value: list(value.shape) if isinstance(value, Tensor) else value, inputs)
    stack, order = [""], []

    def enter(path, *_):
        stack.append(path)
        order.append(path)

    def leave(*_):
        stack.pop()

    for path, module in model.named_modules():  # the copy is ours: its hooks need no removal
        module.register_forward_pre_hook(partial(enter, path))
        module.register_forward_hook(leave)
    counter = MacsCounter(model, stack)
    try:
        with torch.no_grad(), counter:
            model(**inputs)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{type(model).__name__} does not run on {shapes}: {error} "
            "Check sample_size, or pass the inputs of its forward by name."
        ) from error
    modules = _costs(model, counter.macs, order)
    return MacsReport(type(model).__name__, shapes, modules, *(getattr(modules[""], name) for name in _COUNTS))


def _costs(model: nn.Module, owned: dict[str, list[int]], order: list[str]) -> dict[str, ModuleCost]:
    """Sum children into parents; modules in the order in which they run, those that never run at the end."""
    found = dict(model.named_modules())
    total: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path, mine in owned.items():
        for up in _ancestors(path):
            total[up] = [a + b for a, b in zip(total[up], mine, strict=True)]
    costs = {}
    for path in dict.fromkeys([*order, *found]):
        module, (weight, products), (own_weight, own_products) = found[path], total[path], owned.get(path, (0, 0))
        costs[path] = ModuleCost(
            kind=type(module).__name__,
            role=_role_of(module, [type(found[up]).__name__ for up in _ancestors(path)]),
            params=sum(p.numel() for p in module.parameters()),  # not the children's sum: a tied one counts once
            macs=weight + products,
            macs_without_attention=weight,
            own=(sum(p.numel() for p in module.parameters(recurse=False)), own_weight + own_products, own_weight),
        )
    return costs


def _ancestors(path: str) -> list[str]:
    """Return the path itself and every path above it, nearest first, ending in the model ("")."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), -1, -1)]


def _role_of(module: nn.Module, parents: list[str]) -> str:
    """Say what a module's own weights do, from the class names of it and of all above it, nearest first."""
    if "Norm" in parents[0] and not list(module.children()):
        return "norms"
    convolution = isinstance(module, _ConvNd)
    for name in parents[1:]:
        if "ResnetBlock" in name:
            return "residual-block convolutions" if convolution else "other linear layers and embeddings"
        if "FeedForward" in name:
            return "feed-forward"
        if name.endswith("Attention") or name == "CLIPSdpaAttention":
            return "attention projections"
    return "other convolutions" if convolution else "other linear layers and embeddings"
