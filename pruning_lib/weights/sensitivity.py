"""How much each layer is missed when its smallest weights go, and how to share out zeros accordingly.

A layer's sensitivity is a curve: error against sparsity, with only this layer pruned.  It can be measured on inputs
(`measure_sensitivity`) or estimated from the weights alone (`estimate_sensitivity`).  `allocate` then chooses how many
zeros each layer gets so that the errors, added up, are smallest for the wanted total.

The rule: each curve is made non-decreasing (running maximum) and replaced by its lower convex hull, so that every
further zero in a layer costs at least as much as the one before.  Zeros are then given out segment by segment, cheapest
error per zero first.  For convex curves that add up, this greedy order is optimal; that the errors of layers add up is
an assumption.  The last segment is filled only as far as needed, so the total is met exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .masks import PrunedWeights, check_unpruned
from .select import IGNORE, prunable_weights

__all__ = ["STOPS", "Sensitivity", "allocate", "estimate_sensitivity", "measure_sensitivity"]

STOPS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
ESTIMATE_STOPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Sensitivity:
    """Error of a module with one layer pruned, for every layer and stop.

    Attributes:
        layers: parameter names.
        sparsities: the stops, increasing, in (0, 1).
        errors: one row per layer, one column per stop; 0 means unharmed.
        unit: what the errors are.
    """

    layers: tuple[str, ...]
    sparsities: tuple[float, ...]
    errors: tuple[tuple[float, ...], ...]
    unit: str

    def __post_init__(self) -> None:
        stops = tuple(self.sparsities)
        if not stops or list(stops) != sorted(set(stops)) or not 0 < stops[0] <= stops[-1] < 1:
            raise ValueError(f"sparsities are {stops}; give increasing numbers between 0 and 1, both left out.")
        if len(self.errors) != len(self.layers) or any(len(row) != len(stops) for row in self.errors):
            raise ValueError(f"errors must have a row for each of {len(self.layers)} layers and {len(stops)} columns.")
        if not all(math.isfinite(error) for row in self.errors for error in row):
            raise ValueError("A sensitivity holds an error that is not finite.")

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types; `Sensitivity.from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Sensitivity:
        """Return what `to_dict` wrote."""
        return cls(
            tuple(found["layers"]), tuple(found["sparsities"]), tuple(map(tuple, found["errors"])), found["unit"]
        )


@torch.no_grad()
def estimate_sensitivity(weights: Mapping[str, Tensor], sparsities: Sequence[float] = ESTIMATE_STOPS) -> Sensitivity:
    """Estimate from the weights alone: the share of a layer's energy, the sum of its squares, that pruning removes.

    Args:
        weights: name -> tensor.
        sparsities: increasing stops in (0, 1).
    """
    rows = []
    for weight in weights.values():
        energy = weight.detach().flatten().double().square().sort().values.cumsum(0)
        counts = [round(s * len(energy)) for s in sparsities]
        whole = energy[-1].item() or 1.0
        rows.append(tuple(energy[k - 1].item() / whole if k else 0.0 for k in counts))
    return Sensitivity(tuple(weights), tuple(sparsities), tuple(rows), "share of the layer's energy removed")


@torch.no_grad()
def measure_sensitivity(
    module: nn.Module,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    loss: Callable[[], float | Tensor] | None = None,
    sparsities: Sequence[float] = STOPS,
    ignore: Iterable[str] = IGNORE,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Sensitivity:
    """Prune one layer at a time and measure what it does.

    Args:
        module: as for `prune_magnitude`; it is left as it was.
        inputs: keyword arguments of one call, or a list of them. The error is then the squared change of the first
            output, relative to its square sum, over all calls.
        loss: in place of inputs, a function that uses the module and returns a number, smaller being better. The error
            is then how much it grows; it must give the same number for the same weights.
        sparsities: increasing stops in (0, 1).
        ignore: as for `prune_magnitude`, which must be given the same.
        progress: wraps the list of layers, as in `tqdm`.

    Raises:
        ValueError: neither or both of inputs and loss, stops out of range, or an error that is not finite.
    """
    from .magnitude import magnitude_masks  # which itself allocates by a sensitivity

    if (inputs is None) == (loss is None):
        raise ValueError("Give either inputs, the keyword arguments of calls, or loss, a function; not both.")
    _check_stops(sparsities)
    chosen = prunable_weights(module, ignore)
    check_unpruned(chosen.weights)
    error, unit = _output_error(module, inputs) if loss is None else _loss_growth(loss)
    training = module.training
    module.eval()
    rows = []
    try:
        for name in progress(list(chosen.weights)):
            weight, row = {name: chosen.weights[name]}, []
            for sparsity in sparsities:
                with PrunedWeights(module, magnitude_masks(weight, sparsity, scope="layer"), "layer", sparsity):
                    row.append(float(error()))
            rows.append(tuple(row))
    finally:
        module.train(training)
    return Sensitivity(tuple(chosen.weights), tuple(sparsities), tuple(rows), unit)


def allocate(sensitivity: Sensitivity, sparsity: float, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Share out round(sparsity * n) zeros over the layers by the rule in this module's docstring.

    Args:
        sensitivity: of exactly these layers.
        sparsity: of all together, in [0, 1).
        weights: name -> tensor; only their sizes count.

    Returns:
        name -> number of zeros; they add up to round(sparsity * n).

    Raises:
        ValueError: other layers than those measured, or more zeros than the last stop allows.
    """
    if set(sensitivity.layers) != set(weights):
        missing = sorted(set(weights) - set(sensitivity.layers)) or sorted(set(sensitivity.layers) - set(weights))
        raise ValueError(
            f"The sensitivity was taken for other layers; for example, {missing[0]} is only in one of both. "
            "Measure it on this module, with the same ignore."
        )
    sizes = {name: weight.numel() for name, weight in weights.items()}
    wanted = round(sparsity * sum(sizes.values()))
    segments = []  # (error per zero, place of the layer, zeros)
    for place, name in enumerate(weights):
        row = sensitivity.errors[sensitivity.layers.index(name)]
        counts = [round(s * sizes[name]) for s in sensitivity.sparsities]
        for slope, zeros in _hull_segments(counts, row):
            segments.append((slope, place, zeros))
    allowed = sum(zeros for _, _, zeros in segments)
    if wanted > allowed:
        raise ValueError(
            f"sparsity={sparsity} needs {wanted:,} zeros, but the sensitivity was taken up to "
            f"{sensitivity.sparsities[-1]} only, which allows {allowed:,}. Take it at a higher stop."
        )
    given = [0] * len(sizes)
    for _, place, zeros in sorted(segments, key=lambda s: s[:2]):  # stable: a layer's segments keep their order
        taken = min(zeros, wanted)
        given[place] += taken
        wanted -= taken
    return dict(zip(sizes, given, strict=True))


def _hull_segments(counts: Sequence[int], errors: Sequence[float]) -> list[tuple[float, int]]:
    """Return (error per zero, zeros) of the lower convex hull of a curve through (0, 0), slopes increasing."""
    hull: list[tuple[int, float]] = [(0, 0.0)]
    highest = 0.0
    for count, error in zip(counts, errors, strict=True):
        highest = max(highest, error)
        if count == hull[-1][0]:  # a tiny layer: two stops are the same number of zeros
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], (count, highest)):
            hull.pop()
        hull.append((count, highest))
    return [(_slope(a, b), b[0] - a[0]) for a, b in zip(hull, hull[1:], strict=False)]


def _check_stops(stops: Sequence[float]) -> None:
    if not stops or list(stops) != sorted(set(stops)) or not 0 < stops[0] <= stops[-1] < 1:
        raise ValueError(f"sparsities are {tuple(stops)}; give increasing numbers between 0 and 1, both left out.")


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _output_error(module: nn.Module, inputs: Any) -> tuple[Callable[[], float], str]:
    calls = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    if not calls:
        raise ValueError("inputs is empty; give the keyword arguments of at least one call.")
    training = module.training
    module.eval()
    wanted = [_first_tensor(module(**call)).double() for call in calls]
    module.train(training)
    whole = sum(out.square().sum().item() for out in wanted)
    if not (math.isfinite(whole) and whole):
        raise ValueError(f"The module's outputs have a square sum of {whole}; errors relative to it mean nothing.")

    def error() -> float:
        found = (_first_tensor(module(**call)).double() for call in calls)
        return sum((a - b).square().sum().item() for a, b in zip(found, wanted, strict=True)) / whole

    return error, "squared change of the output, relative"


def _loss_growth(loss: Callable[[], float | Tensor]) -> tuple[Callable[[], float], str]:
    unpruned = float(loss())
    return (lambda: float(loss()) - unpruned), "growth of the loss"


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0] if not hasattr(output, "latent_dist") else output.latent_dist.mean
    return output
