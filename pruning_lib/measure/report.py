"""What `count_macs` returns, and its tables."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .._text import path_levels

__all__ = ["MacsReport", "ModuleCost", "role_of", "si"]

PRODUCTS = "attention products"


@dataclass(frozen=True)
class ModuleCost:
    """Cost of one module in one call.

    Attributes:
        kind: class name.
        role: what its own weights do, such as "feed-forward"; see `role_of`.
        params: parameters, its children's included, tied ones once.
        macs: multiply-accumulates with attention products, its children's included.
        macs_without_attention: the same without attention products.
        own_params, own_macs, own_macs_without_attention: without its children's.
    """

    kind: str
    role: str
    params: int
    macs: int
    macs_without_attention: int
    own_params: int
    own_macs: int
    own_macs_without_attention: int


@dataclass(frozen=True)
class MacsReport:
    """Parameters and MACs of one forward call.

    Attributes:
        model: class name of the denoiser.
        inputs: shapes of the inputs it was counted with.
        modules: path -> `ModuleCost`, in the order in which the modules run; "" is the whole model.
    """

    model: str
    inputs: dict[str, object]
    modules: dict[str, ModuleCost]

    @property
    def params(self) -> int:
        """Parameters of the whole model."""
        return self.modules[""].params

    @property
    def macs(self) -> int:
        """MACs of one call, with attention products."""
        return self.modules[""].macs

    @property
    def macs_without_attention(self) -> int:
        """MACs of one call, without attention products."""
        return self.modules[""].macs_without_attention

    def by_block(self, depth: int = 1) -> dict[str, ModuleCost]:
        """Return the top-level blocks in the order in which they run.

        Members of a list count as one level with it: `conv_in`, `down_blocks.0`, …, `mid_block`, `up_blocks.0`, …,
        `conv_out`, or `transformer_blocks.0`, ….  At depth 1 the costs add up to the whole model; parameters and MACs
        that belong to no block stand under "(model)".

        Args:
            depth: levels to show, >= 1; deeper levels follow their parent.

        Raises:
            ValueError: depth < 1.
        """
        if not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth={depth!r}; it must be a whole number >= 1.")
        rows: dict[str, list[str]] = defaultdict(list)
        for path, cost in self.modules.items():
            levels = path_levels(path)
            if path and len(levels) <= depth and cost.kind not in ("ModuleList", "ModuleDict") and (
                cost.params or cost.macs
            ):  # fmt: skip
                rows[".".join(levels[:-1])].append(path)
        blocks, own = {}, self.modules[""]
        pending = list(reversed(rows[""]))
        while pending:
            path = pending.pop()
            blocks[path] = self.modules[path]
            pending += reversed(rows.get(path, []))
        if own.own_params or own.own_macs:
            blocks["(model)"] = ModuleCost(
                own.kind, own.role, own.own_params, own.own_macs, own.own_macs_without_attention,
                own.own_params, own.own_macs, own.own_macs_without_attention,
            )  # fmt: skip
        return blocks

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return {"params", "macs", "macs_without_attention"} by what the work is for, largest first.

        Attention products have a row of their own, so the rows add up to the whole model (tied parameters count with
        every owner).
        """
        kinds: dict[str, dict[str, int]] = defaultdict(
            lambda: dict(params=0, macs=0, macs_without_attention=0)
        )
        for cost in self.modules.values():
            if cost.own_params or cost.own_macs_without_attention:
                kinds[cost.role]["params"] += cost.own_params
                kinds[cost.role]["macs"] += cost.own_macs_without_attention
                kinds[cost.role]["macs_without_attention"] += cost.own_macs_without_attention
            if cost.own_macs > cost.own_macs_without_attention:
                kinds[PRODUCTS]["macs"] += cost.own_macs - cost.own_macs_without_attention
        return dict(sorted(kinds.items(), key=lambda item: (-item[1]["macs"], -item[1]["params"])))

    def table(self, depth: int = 1) -> str:
        """Return the blocks as text: parameters, MACs in both conventions, and shares of the total.

        Args:
            depth: as in `by_block`.
        """
        head = ("block", "kind", "params", "%", "MACs", "%", "MACs without att.", "%")
        rows = []
        for path, cost in self.by_block(depth).items():
            levels = path_levels(path)
            rows.append(("  " * (len(levels) - 1) + levels[-1], cost.kind, *self._cells(cost)))
        rows.append(("total", self.model, *self._cells(self.modules[""])))
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(
                c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in [head, *rows]
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:-1], "-" * len(lines[0]), lines[-1]])

    def _cells(self, cost: ModuleCost) -> list[str]:
        cells = []
        for name in ("params", "macs", "macs_without_attention"):
            value, whole = getattr(cost, name), getattr(self, name)
            cells += [si(value), f"{100 * value / whole:.1f}" if whole else "-"]
        return cells

    def to_dict(self, *, modules: bool = False) -> dict[str, object]:
        """Return the report as plain JSON types.

        Args:
            modules: True to include every module, not only the top-level blocks.
        """
        result = {
            "model": self.model, "inputs": self.inputs, "params": self.params, "macs": self.macs,
            "macs_without_attention": self.macs_without_attention,
            "blocks": {path: _plain(cost) for path, cost in self.by_block().items()}, "kinds": self.by_kind(),
        }  # fmt: skip
        if modules:
            result["modules"] = {path: _plain(cost) for path, cost in self.modules.items()}
        return result


def _plain(cost: ModuleCost) -> dict[str, object]:
    return {key: value for key, value in asdict(cost).items() if not key.startswith("own_")}


def role_of(module: nn.Module, parents: list[str]) -> str:
    """Say what a module's own weights do.

    Args:
        module: the module.
        parents: class names of the module and of all above it, nearest first.

    Returns:
        "residual-block convolutions", "attention projections", "feed-forward", "other convolutions", "norms" or
        "other linear layers and embeddings".
    """
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


def si(value: float) -> str:
    """Return a count with three or four digits and a unit: 859520964 -> "859.5 M"."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {unit}" if value < 100 * factor else f"{value / factor:.1f} {unit}"
    return f"{value:g}"
