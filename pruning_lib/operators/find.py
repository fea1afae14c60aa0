"""Every operator of a denoiser that can be changed alone.

An operator is a module with one stream in and one out: a residual block, a transformer, an attention, a single layer.
Operators lie inside one another, so a plan never holds both a block and a layer of it.  The list is made from one
forward call on the meta device, without weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from .._text import nearest
from ..measure.inputs import example_inputs
from ..measure.macs import count_macs
from ..measure.skeleton import skeleton
from .denoiser import Base
from .families import DEFAULT_KINDS, KINDS, Family, family_of
from .modify import allowed

__all__ = ["Operator", "Operators", "find_operators"]


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

    def __init__(self, items: Iterable[Operator], base: Base):
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
        head = (
            f"{'operator':<52} {'kind':<17} {'in':>15} {'out':>15} {'params':>12} {'MMACs':>9}  modification"
        )
        lines = [
            f"{op.path:<52} {op.kind:<17} {_times(op.in_shape):>15} {_times(op.out_shape):>15} {op.params:>12,} "
            f"{op.macs / 1e6:>9,.2f}  {op.modifications[0]}"
            for op in self
        ]
        return "\n".join([head, *lines])


def find_operators(
    denoiser: nn.Module,
    kinds: Sequence[str] | None = None,
    *,
    sample_size: int | tuple[int, int] | None = None,
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
    family, base = family_of(denoiser), Base.of(denoiser)
    costs = count_macs(denoiser, sample_size=sample_size).modules
    found, order = [], 0
    for path, (module, shapes) in _streams(denoiser, sample_size, family).items():
        kind = _kind(module, family)
        how = allowed(module, kind, *shapes) if path not in family.needed else ()
        if not how:
            continue
        if kind in kinds:
            cost = costs[path]
            found.append(
                Operator(path, kind, type(module).__name__, *shapes, cost.params, cost.macs, order, how)
            )
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
