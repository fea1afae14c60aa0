"""The reversible handle of a pruned module: masks, the values they removed, and how to put them back."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..checks import check_whole, path_levels, text_table

# Parameter -> the handle that prunes it.  Weak on both sides: it keeps neither model nor handle alive, and a copy, a
# saved file or a state dict carries nothing of it.
_handles: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class LayerRow:
    """What was done to one tensor: `zeros` of its `n` weights are removed, the largest of size `threshold` or None."""

    name: str
    shape: tuple[int, ...]
    n: int
    zeros: int
    threshold: float | None


@dataclass(eq=False)
class PrunedWeights:
    """A module some of whose weights are held at zero; made by `prune_magnitude` and `prune_nm`.

    As a context manager it restores the module at the end.  When the last reference to the handle is gone, so are the
    removed values: the zeros stay, and the module counts as unpruned again.  A parameter that is pruned already, or a
    mask that does not fit, is a ValueError; nothing is changed then.

    Attributes:
        module: the module; its weights are set to zero here.
        masks: parameter name -> bool tensor of its shape, True = kept.
        scope, asked: how the masks were chosen, in a word; and the sparsity that was asked for.
        ignored: parameter name -> why it was not considered.
        layers: one `LayerRow` per mask.
        active: whether the module is pruned by this handle now.
    """

    module: nn.Module
    masks: dict[str, Tensor]
    scope: str
    asked: float
    ignored: Mapping[str, str] = field(default_factory=dict)
    layers: list[LayerRow] = field(init=False, default_factory=list)
    active: bool = field(init=False, default=False)

    @torch.no_grad()
    def __post_init__(self) -> None:
        parameters = dict(self.module.named_parameters())
        for name, mask in self.masks.items():
            if name not in parameters or mask.dtype != torch.bool or mask.shape != parameters[name].shape:
                raise ValueError(f"The mask of {name!r}, {mask.dtype} {tuple(mask.shape)}, fits no such parameter.")
        self._parameters = {name: parameters[name] for name in self.masks}
        for name, weight in self._parameters.items():
            if weight in _handles and (handle := _handles[weight]()) is not None:
                how = "Call restore() on that handle first, or finish() to keep its zeros and add to them."
                raise ValueError(f"{name} is pruned already: {handle!r}. {how}")
        self._removed: dict[str, Tensor] = {}
        for name, weight in self._parameters.items():
            removed = self._removed[name] = weight[~self.masks[name]]
            largest = removed.abs().max().item() if removed.numel() else None
            self.layers.append(LayerRow(name, tuple(weight.shape), weight.numel(), removed.numel(), largest))
            _handles[weight] = weakref.ref(self)
        self.active = True
        self.reapply()

    @property
    def n(self) -> int:
        """Number of weights that were considered."""
        return sum(row.n for row in self.layers)

    @property
    def zeros(self) -> int:
        """Number of weights that the masks remove."""
        return sum(row.zeros for row in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of the considered weights that the masks remove."""
        return self.zeros / self.n

    @torch.no_grad()
    def reapply(self) -> None:
        """Set the removed weights to zero again, as after a training step has moved them."""
        if not self.active:
            raise ValueError(f"{type(self.module).__name__} is no longer pruned by this handle. Prune it again first.")
        for name, weight in self._parameters.items():
            weight.masked_fill_(~self._mask(name), 0)

    @torch.no_grad()
    def restore(self) -> nn.Module:
        """Put the removed weights back, bit for bit, and return the module; nothing happens the second time.

        Weights that were kept stay as they are. If the module was cast meanwhile, so are the values.
        """
        for name, removed in self._removed.items():
            weight = self._parameters[name]
            weight[~self._mask(name)] = removed.to(weight.device, weight.dtype)
        self._removed.clear()
        for weight in self._parameters.values() if self.active else ():
            _handles.pop(weight, None)
        self.active = False
        return self.module

    def finish(self) -> nn.Module:
        """Make the zeros permanent and forget what they were; the module may then be pruned again, which adds zeros."""
        if self.active:
            self.reapply()
        self._removed.clear()
        return self.restore()

    def by_block(self, depth: int = 1) -> dict[str, tuple[int, int]]:
        """Return block -> (weights, zeros), in the order of the module, for blocks of `depth` levels."""
        check_whole("depth", depth, 1)
        blocks = {}
        for row in self.layers:
            block = ".".join(path_levels(row.name)[:-1][:depth]) or "(model)"
            n, zeros = blocks.get(block, (0, 0))
            blocks[block] = (n + row.n, zeros + row.zeros)
        return blocks

    def table(self, depth: int = 1) -> str:
        """Return weights, zeros and sparsity of every block as text; `depth` as in `by_block`."""
        rows = [*self.by_block(depth).items(), ("total", (self.n, self.zeros))]
        *cells, total = ((name, f"{n:,}", f"{zeros:,}", f"{zeros / n:.4f}") for name, (n, zeros) in rows)
        return text_table(("block", "weights", "zeros", "sparsity"), cells, total)

    def to_dict(self) -> dict[str, object]:
        """Return everything but the masks as plain JSON types."""
        told = {name: getattr(self, name) for name in ("scope", "asked", "sparsity", "n", "zeros")}
        layers = [{**asdict(row), "shape": list(row.shape)} for row in self.layers]
        return {"module": type(self.module).__name__, **told, "layers": layers, "ignored": dict(self.ignored)}

    def __enter__(self) -> PrunedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "" if self.active else ", no longer active"
        told = f"{self.zeros:,} of {self.n:,} weights at zero, sparsity {self.sparsity:.4f}"
        return f"Pruned({type(self.module).__name__}, {self.scope}: {told}{state})"

    def _mask(self, name: str) -> Tensor:
        """Return a mask where its weight lies; the module may have been moved."""
        self.masks[name] = self.masks[name].to(self._parameters[name].device)
        return self.masks[name]
