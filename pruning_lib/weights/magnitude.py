"""Unstructured magnitude pruning: the smallest weights become zero (Han et al. 2015, section 3).

k = round(sparsity * n) weights go, a half rounded to the even number, as in `torch.nn.utils.prune`; of equal magnitudes
the first, parameters in the order of the module, entries row by row.  So masks are the same on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_number, nearest
from .masks import PrunedWeights
from .select import IGNORE, prunable_weights

SCOPES = ("global", "layer", "sensitivity", "random")


def prune_magnitude(
    module: nn.Module,
    sparsity: float,
    *,
    scope: str = "global",
    ignore: Iterable[str] = IGNORE,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
) -> PrunedWeights:
    """Set the smallest weights of a module to zero, in place, and return a handle that can put them back.

    Args:
        module: a denoiser, VAE, text encoder or any part of one, in 16, 32 or 64 bit floats, on any device.
        sparsity: share of the weights to remove, in [0, 1).
        scope: what counts as smallest. "global": one threshold for the whole module. "layer": one for every tensor, so
            that each loses the same share. "sensitivity": one for every tensor, with shares that follow from how much
            each tensor is missed, see `allocate`. "random": no threshold at all; a control, which any rule must beat.
        ignore: groups and patterns that are spared and not counted, see `prunable_weights`.
        sensitivity: for the scope "sensitivity", taken of these weights; by default estimated from themselves.
        seed: for the scope "random".

    Arguments out of range, or weights that are pruned already, are a TypeError or ValueError; nothing is changed then.
    Memory beside the module: one byte per weight for the masks, the removed values, and a few copies of the largest
    tensor while choosing.

    Example:
        >>> with pl.prune_magnitude(pipe.unet, 0.5) as pruned:
        ...     image = pipe("lion").images[0]
    """
    chosen = prunable_weights(module, ignore)
    masks = magnitude_masks(chosen.weights, sparsity, scope=scope, sensitivity=sensitivity, seed=seed)
    return PrunedWeights(module, masks, scope, float(sparsity), chosen.ignored)


@torch.no_grad()
def magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the masks of `prune_magnitude` for named finite tensors, which stay as they are.

    Other arguments are as there; a mask is a bool tensor of the weight's shape and device, True = kept.
    """
    if isinstance(sparsity, (int, float)) and 1 < sparsity < 100:
        raise ValueError(f"sparsity={sparsity}; it is a share in [0, 1): {sparsity:g} per cent is {sparsity / 100:g}.")
    check_number("sparsity", sparsity, "[0, 1)")
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is unknown. {nearest(str(scope), SCOPES)}")
    if sensitivity is not None and scope != "sensitivity":
        raise ValueError(f"A sensitivity was given, but scope={scope!r} does not use it. Use scope='sensitivity'.")
    double = any(weight.dtype == torch.float64 for weight in weights.values())
    keys = {name: partial(_size_key, weight, double) for name, weight in weights.items()}
    if scope == "random":
        keys = {name: partial(_random_key, w, seed * 1_000_003 + i) for i, (name, w) in enumerate(weights.items())}
    if scope in ("global", "random"):
        return smallest_removed(keys, round(sparsity * sum(weight.numel() for weight in weights.values())))
    if scope == "layer":
        counts = {name: round(sparsity * weight.numel()) for name, weight in weights.items()}
    else:
        counts = allocate(sensitivity or estimate_sensitivity(weights), sparsity, weights)
    return {name: smallest_removed({name: keys[name]}, counts[name])[name] for name in weights}


def _size_key(weight: Tensor, double: bool) -> Tensor:
    """Return magnitudes as integers: the bits of floats that are not negative are in the order of their values."""
    wide, whole = (torch.float64, torch.int64) if double else (torch.float32, torch.int32)
    return weight.detach().to(wide).abs().contiguous().view(whole)


def _random_key(weight: Tensor, seed: int) -> Tensor:
    """Return random integers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**31 - 1, weight.shape, generator=generator, dtype=torch.int32).to(weight.device)


# Makes the integer keys of one tensor anew at every call, so that only one such tensor need exist at a time.
Key = Callable[[], Tensor]


def smallest_removed(keys: Mapping[str, Key], count: int) -> dict[str, Tensor]:
    """Return masks that remove exactly the `count` smallest keys (>= 0, of one type); of equal ones, the first."""
    threshold, ties = _select(list(keys.values()), count)
    masks = {}
    for name, key in keys.items():
        found = key()
        masks[name] = found > threshold
        equal = (found == threshold).flatten().nonzero()[:, 0]
        masks[name].view(-1)[equal[ties:]] = True
        ties -= min(ties, len(equal))
    return masks


def _select(keys: Sequence[Key], count: int) -> tuple[int, int]:
    """Return the `count`-th smallest key, and how many keys equal to it are among the `count` smallest.

    Radix selection: count the highest 16 bits, find the bin of the wanted key, go on within that bin.  No tensors are
    joined: sorting 860 million magnitudes needs many times their memory, and `torch.quantile` takes 16 million at most.
    """
    prefix, bits = 0, torch.iinfo(keys[0]().dtype).bits
    for shift in range(bits - 16, -1, -16):
        bins = torch.zeros(2**16, dtype=torch.int64)
        for key in keys:
            digits = key().flatten() >> shift
            inside = digits[(digits >> 16) == prefix] & (2**16 - 1)
            bins += torch.bincount(inside, minlength=2**16).cpu()
        reached = bins.cumsum(0)
        digit = int(torch.searchsorted(reached, count))
        count -= int(reached[digit - 1]) if digit else 0
        prefix = (prefix << 16) | digit
    return prefix, count


@dataclass(frozen=True)
class Sensitivity:
    """How much each layer is missed: error of a module with one layer pruned, for every layer and stop.

    `layers` are parameter names, `sparsities` the stops, increasing, in (0, 1); `errors` has a row per layer and a
    column per stop, 0 means unharmed; `unit` says what they are.
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

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Sensitivity:
        """Return the sensitivity of which `dataclasses.asdict` made plain JSON types."""
        errors = tuple(tuple(row) for row in found["errors"])
        return cls(tuple(found["layers"]), tuple(found["sparsities"]), errors, found["unit"])


@torch.no_grad()
def estimate_sensitivity(
    weights: Mapping[str, Tensor],
    sparsities: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
) -> Sensitivity:
    """Estimate from the weights alone: the share of a layer's energy, the sum of its squares, that pruning removes."""
    rows = []
    for weight in weights.values():
        energy = weight.detach().flatten().double().square().sort().values.cumsum(0)
        counts = [round(s * len(energy)) for s in sparsities]
        whole = energy[-1].item() or 1.0
        rows.append(tuple(energy[k - 1].item() / whole if k else 0.0 for k in counts))
    return Sensitivity(tuple(weights), tuple(sparsities), tuple(rows), "share of the layer's energy removed")


def allocate(sensitivity: Sensitivity, sparsity: float, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return name -> number of zeros, round(sparsity * n) in all, so that the errors, added up, are smallest.

    The lower convex hull of each layer's curve, error against zeros, is given out by segments, cheapest error per zero
    first, the last only as far as needed: optimal where curves are convex and the errors of layers add up.
    `sensitivity` is of exactly these layers, up to a stop that allows as many zeros, else a ValueError; of `weights`
    only the sizes count.
    """
    if strange := sorted(set(sensitivity.layers) ^ set(weights)):
        raise ValueError(f"The sensitivity is of other layers: {strange[0]} is only in one of both. Measure it anew.")
    errors = dict(zip(sensitivity.layers, sensitivity.errors, strict=True))
    segments = []  # (error per zero, zeros, layer)
    for name, weight in weights.items():
        counts = [round(s * weight.numel()) for s in sensitivity.sparsities]
        segments += [(_slope(a, b), b[0] - a[0], name) for a, b in pairwise(_hull(counts, errors[name]))]
    wanted = round(sparsity * sum(weight.numel() for weight in weights.values()))
    allowed = sum(zeros for _, zeros, _ in segments)
    if wanted > allowed:
        last = sensitivity.sparsities[-1]
        raise ValueError(f"sparsity={sparsity} needs {wanted:,} zeros; a sensitivity up to {last} allows {allowed:,}.")
    given = dict.fromkeys(weights, 0)
    for _, zeros, name in sorted(segments, key=lambda segment: segment[0]):  # stable: layers keep their order
        taken = min(zeros, wanted)
        given[name] += taken
        wanted -= taken
    return given


def _hull(counts: Sequence[int], errors: Sequence[float]) -> list[tuple[int, float]]:
    """Return the corners (zeros, error) of the lower convex hull of a curve's running maximum, from (0, 0) on."""
    hull = [(0, 0.0)]
    for count, highest in zip([0, *counts], accumulate(errors, max, initial=0.0), strict=True):
        if count == hull[-1][0]:  # a tiny layer: two stops are the same number of zeros
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], (count, highest)):
            hull.pop()
        hull.append((count, highest))
    return hull


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
