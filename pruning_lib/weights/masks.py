"""The reversible handle of a pruned module: masks, the values they removed, and how to put them back."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..checks import path_levels

__all__ = ["LayerRow", "PrunedWeights", "check_unpruned"]

# Parameter -> the handle that prunes it.  Weak on both sides: it keeps neither model nor handle alive, and a copy, a
# saved file or a state dict carries nothing of it.
_handles: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class LayerRow:
    """What was done to one weight tensor.

    Attributes:
        name: of the parameter.
        shape: of the tensor.
        n: weights in it.
        zeros: weights that the mask removes.
        threshold: magnitude of the largest removed weight, None where none was removed; by magnitude pruning, all that
            is smaller was removed as well.
    """

    name: str
    shape: tuple[int, ...]
    n: int
    zeros: int
    threshold: float | None

    @property
    def sparsity(self) -> float:
        """Share of zeros in this tensor."""
        return self.zeros / self.n


@dataclass(eq=False)
class PrunedWeights:
    """A module some of whose weights are held at zero; made by `prune_magnitude` and `prune_nm`.

    As a context manager it restores the module at the end.  When the last reference to the handle is gone, so are the
    removed values: the zeros stay, and the module counts as unpruned again.

    Args:
        module: the module; its weights are set to zero here.
        masks: parameter name -> bool tensor of its shape, True = kept.
        scope: how the masks were chosen, in a word.
        asked: the sparsity that was asked for.
        ignored: parameter name -> why it was not considered.

    Raises:
        ValueError: a parameter is pruned already, or a mask does not fit.
    """

    module: nn.Module
    masks: dict[str, Tensor]
    scope: str
    asked: float
    ignored: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def __post_init__(self) -> None:
        parameters = dict(self.module.named_parameters())
        for name, mask in self.masks.items():
            if name not in parameters or mask.dtype != torch.bool or mask.shape != parameters[name].shape:
                raise ValueError(
                    f"The mask of {name!r} is {mask.dtype} {tuple(mask.shape)}, which fits no such parameter."
                )
        self._parameters = {name: parameters[name] for name in self.masks}
        check_unpruned(self._parameters)
        self._removed: dict[str, Tensor] = {}
        self._hooks: list = []
        self.layers: list[LayerRow] = []
        for name, weight in self._parameters.items():
            removed = weight[~self.masks[name]]
            largest = removed.abs().max().item() if removed.numel() else None
            row = LayerRow(name, tuple(weight.shape), weight.numel(), removed.numel(), largest)
            self.layers.append(row)
            self._removed[name] = removed
        self._active = True
        self.reapply()
        for weight in self._parameters.values():
            _handles[weight] = weakref.ref(self)

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

    @property
    def active(self) -> bool:
        """Whether the module is pruned by this handle now."""
        return self._active

    @torch.no_grad()
    def reapply(self) -> None:
        """Set the removed weights to zero again, as after a training step has moved them.

        Raises:
            ValueError: the module was restored, or the masks were made permanent.
        """
        self._check_active("reapply")
        for name, weight in self._parameters.items():
            weight.masked_fill_(~self._mask(name, weight), 0)

    def hold(self, optimizer: torch.optim.Optimizer) -> PrunedWeights:
        """Keep the masks through training: every `optimizer.step()` ends with `reapply()`.

        Ends with `restore`, `finish` or `release`.

        Raises:
            ValueError: the module is not pruned now, or the optimiser trains none of its pruned weights.
        """
        self._check_active("hold")
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(weight) in trained for weight in self._parameters.values()):
            raise ValueError(
                f"The {type(optimizer).__name__} trains none of the {len(self.masks)} pruned weights of "
                f"{type(self.module).__name__}. Make it from this module's parameters."
            )
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self.reapply()))
        return self

    def release(self) -> None:
        """End every `hold`; the module stays pruned."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @torch.no_grad()
    def restore(self) -> nn.Module:
        """Put the removed weights back, bit for bit, and return the module; nothing happens the second time.

        Weights that were kept stay as they are: where nothing trained them, the module equals the one before. If the
        module was cast meanwhile, so are the values.
        """
        if self._active:
            self._leave()
            for name, weight in self._parameters.items():
                removed = self._removed[name].to(weight.device, weight.dtype)
                weight[~self._mask(name, weight)] = removed
            self._removed.clear()
        return self.module

    def finish(self) -> nn.Module:
        """Make the zeros permanent and forget what they were; the module may then be pruned again, which adds zeros."""
        if self._active:
            self.reapply()
            self._leave()
            self._removed.clear()
        return self.module

    def by_block(self, depth: int = 1) -> dict[str, tuple[int, int]]:
        """Return block -> (weights, zeros), in the order of the module.

        Args:
            depth: levels of names, >= 1; an index stays with its list, as in "down_blocks.0".
        """
        if depth < 1:
            raise ValueError(f"depth={depth}; it must be at least 1.")
        blocks: dict[str, tuple[int, int]] = {}
        for row in self.layers:
            levels = path_levels(row.name)[:-1]
            block = ".".join(levels[:depth]) or "(model)"
            n, zeros = blocks.get(block, (0, 0))
            blocks[block] = (n + row.n, zeros + row.zeros)
        return blocks

    def table(self, depth: int | None = 1) -> str:
        """Return weights, zeros and sparsity as text.

        Args:
            depth: one row per block, as in `by_block`; None for one row per parameter, with its threshold.
        """
        if depth is None:
            head = ("parameter", "weights", "zeros", "sparsity", "threshold")
            cells = [
                (
                    r.name,
                    f"{r.n:,}",
                    f"{r.zeros:,}",
                    f"{r.sparsity:.4f}",
                    "-" if r.threshold is None else f"{r.threshold:.3g}",
                )
                for r in self.layers
            ]
        else:
            head = ("block", "weights", "zeros", "sparsity")
            cells = [(b, f"{n:,}", f"{z:,}", f"{z / n:.4f}") for b, (n, z) in self.by_block(depth).items()]
        total = ("total", f"{self.n:,}", f"{self.zeros:,}", f"{self.sparsity:.4f}", "")[: len(head)]
        widths = [max(len(row[i]) for row in (head, *cells, total)) for i in range(len(head))]
        lines = [_line(row, widths) for row in (head, *cells, total)]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def to_dict(self) -> dict[str, object]:
        """Return everything but the masks as plain JSON types."""
        return {
            "module": type(self.module).__name__,
            "scope": self.scope,
            "asked": self.asked,
            "sparsity": self.sparsity,
            "n": self.n,
            "zeros": self.zeros,
            "layers": [{**asdict(row), "shape": list(row.shape)} for row in self.layers],
            "ignored": dict(self.ignored),
        }

    def __enter__(self) -> PrunedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "" if self._active else ", no longer active"
        return (
            f"Pruned({type(self.module).__name__}, {self.scope}: {self.zeros:,} of {self.n:,} weights at zero, "
            f"sparsity {self.sparsity:.4f}{state})"
        )

    def _mask(self, name: str, weight: Tensor) -> Tensor:
        if self.masks[name].device != weight.device:  # the module was moved
            self.masks[name] = self.masks[name].to(weight.device)
        return self.masks[name]

    def _check_active(self, what: str) -> None:
        if not self._active:
            raise ValueError(
                f"{what}: {type(self.module).__name__} is no longer pruned by this handle. Prune it again first."
            )

    def _leave(self) -> None:
        self.release()
        self._active = False
        for weight in self._parameters.values():
            _handles.pop(weight, None)


def check_unpruned(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise ValueError if a living handle prunes one of these parameters."""
    held = []
    for name, weight in parameters.items():
        handle = _handles[weight]() if weight in _handles else None
        if handle is not None and handle.active:
            held.append((name, handle))
    if held:
        name, handle = held[0]
        raise ValueError(
            f"{len(held)} of these weights are pruned already, such as {name}: {handle!r}. "
            "Call restore() on that handle first, or finish() to keep its zeros and add to them."
        )


def _line(row: Iterable[str], widths: list[int]) -> str:
    cells = zip(row, widths, strict=True)
    return "  ".join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(cells))
