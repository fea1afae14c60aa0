"""Unstructured magnitude pruning: the smallest weights become zero (Han et al. 2015, section 3).

One number decides, the threshold t: a weight stays if |w| > t.  What counts as "smallest" is the scope:

- `global`: one threshold for the whole module;
- `layer`: one for every tensor, so that each loses the same share;
- `sensitivity`: one for every tensor, with shares that follow from how much each tensor is missed (`sensitivity.py`);
- `random`: no threshold at all; a control, which any rule must beat.

The count of zeros is exact.  k = round(sparsity * n) weights are removed, with Python's `round` (a half goes to the
even number, as in `torch.nn.utils.prune`); n counts the tensor in the scope "layer" and the module in the others.
Among weights of equal magnitude those that come first are removed first: parameters in the order of the module, entries
row by row.  So the same module gives the same masks on any device, and in any run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..checks import nearest
from .masks import PrunedWeights, check_unpruned
from .select import IGNORE, prunable_weights
from .sensitivity import Sensitivity, allocate, estimate_sensitivity

__all__ = ["SCOPES", "check_sparsity", "magnitude_masks", "prune_magnitude"]

SCOPES = ("global", "layer", "sensitivity", "random")
DIGIT = 16  # bits that one pass of the selection looks at


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
        scope: "global", "layer", "sensitivity" or "random"; see the module's docstring.
        ignore: groups and patterns that are spared and not counted, see `select.prunable_weights`.
        sensitivity: for the scope "sensitivity", as `measure_sensitivity` returns it for this module and these weights;
            by default it is estimated from the weights themselves.
        seed: for the scope "random".

    Returns:
        The handle: masks, rows per layer, `restore()`, `reapply()`, `hold(optimizer)`; also a context manager.

    Raises:
        TypeError: not a module.
        ValueError: a sparsity outside [0, 1), an unknown scope, weights that are pruned already, or what
            `prunable_weights` refuses. Nothing is changed then.

    Memory beside the module: one byte per weight for the masks, the removed values, and a few copies of the largest
    tensor while choosing; magnitudes are never gathered in one place.

    Example:
        >>> with pl.prune_magnitude(pipe.unet, 0.5) as pruned:
        ...     image = pipe("lion").images[0]
    """
    sparsity = check_sparsity(sparsity)
    _check_scope(scope, sensitivity)
    chosen = prunable_weights(module, ignore)
    check_unpruned(chosen.weights)
    masks = magnitude_masks(chosen.weights, sparsity, scope=scope, sensitivity=sensitivity, seed=seed)
    return PrunedWeights(module, masks, scope, sparsity, chosen.ignored)


@torch.no_grad()
def magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the masks of `prune_magnitude` for named tensors, which stay as they are.

    Args:
        weights: name -> finite floating-point tensor.
        sparsity, scope, sensitivity, seed: as in `prune_magnitude`.

    Returns:
        name -> bool tensor of the same shape and device, True = kept.
    """
    sparsity = check_sparsity(sparsity)
    _check_scope(scope, sensitivity)
    wide = torch.float64 if any(w.dtype == torch.float64 for w in weights.values()) else torch.float32
    if scope == "random":
        keys = {name: _random_key(w, seed, i) for i, (name, w) in enumerate(weights.items())}
        bits = 32
    else:
        keys = {name: _size_key(w, wide) for name, w in weights.items()}
        bits = torch.finfo(wide).bits
    if scope in ("global", "random"):
        n = sum(w.numel() for w in weights.values())
        return smallest_removed(keys, round(sparsity * n), bits)
    if scope == "layer":
        counts = {name: round(sparsity * w.numel()) for name, w in weights.items()}
    else:
        counts = allocate(sensitivity or estimate_sensitivity(weights), sparsity, weights)
    masks = {}
    for name in weights:
        masks.update(smallest_removed({name: keys[name]}, counts[name], bits))
    return masks


def check_sparsity(sparsity: float) -> float:
    """Return `sparsity` as a float in [0, 1).

    Raises:
        TypeError, ValueError: it is no number, or outside.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"sparsity is {sparsity!r}; give a number from 0 to below 1, as in 0.5.")
    if not 0 <= sparsity < 1:
        hint = f" {sparsity:g} per cent is {sparsity / 100:g}." if 1 < sparsity < 100 else ""
        raise ValueError(f"sparsity={sparsity}; it is the share of weights set to zero and must lie in [0, 1).{hint}")
    return float(sparsity)


def _check_scope(scope: str, sensitivity: Sensitivity | None) -> None:
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is unknown. {nearest(str(scope), SCOPES)}")
    if sensitivity is not None and scope != "sensitivity":
        raise ValueError(f"A sensitivity was given, but scope={scope!r} does not use it. Use scope='sensitivity'.")


def smallest_removed(keys: Mapping[str, Callable[[], Tensor]], count: int, bits: int) -> dict[str, Tensor]:
    """Return masks that remove exactly the `count` smallest keys; of equal ones, the first.

    Args:
        keys: name -> function that returns an integer tensor of keys >= 0; it is called a few times, so that only one
            tensor of keys need exist at a time.
        count: how many to remove, 0 to all.
        bits: width of the keys, a multiple of 16.
    """
    if count == 0:
        return {name: torch.ones_like(key(), dtype=torch.bool) for name, key in keys.items()}
    threshold, ties = _select(list(keys.values()), count, bits)
    masks = {}
    for name, key in keys.items():
        found = key()
        mask = found > threshold
        equal = (found == threshold).flatten().nonzero()[:, 0]
        mask.view(-1)[equal[ties:]] = True
        ties -= min(ties, len(equal))
        masks[name] = mask
    return masks


def _select(keys: Sequence[Callable[[], Tensor]], count: int, bits: int) -> tuple[int, int]:
    """Return the `count`-th smallest key, and how many keys equal to it are among the `count` smallest.

    Radix selection: count the highest 16 bits, find the bin in which the wanted key lies, go on within that bin.  Exact
    for any number of keys, and no two tensors have to be joined; sorting 860 million magnitudes, or `kthvalue` over all
    of them, would need many times their memory, and `torch.quantile` refuses more than 16 million.
    """
    if len(keys) == 1:  # one tensor needs no trick
        key = keys[0]().flatten()
        found = torch.kthvalue(key, count).values
        return found.item(), count - int((key < found).sum())
    prefix = 0
    for shift in range(bits - DIGIT, -1, -DIGIT):
        bins = torch.zeros(2**DIGIT, dtype=torch.int64)
        for key in keys:
            digits = key().flatten() >> shift
            inside = digits[(digits >> DIGIT) == prefix] & (2**DIGIT - 1)
            bins += torch.bincount(inside, minlength=2**DIGIT).cpu()
        reached = bins.cumsum(0)
        digit = int(torch.searchsorted(reached, count))
        count -= int(reached[digit - 1]) if digit else 0
        prefix = (prefix << DIGIT) | digit
    return prefix, count


def _size_key(weight: Tensor, wide: torch.dtype) -> Callable[[], Tensor]:
    """Return the magnitudes as integers: the bits of floats that are not negative are in the order of their values."""
    integer = torch.int64 if wide == torch.float64 else torch.int32
    return lambda: weight.detach().to(wide).abs().contiguous().view(integer)


def _random_key(weight: Tensor, seed: int, place: int) -> Callable[[], Tensor]:
    """Return random integers that are the same at every call, and on every device."""

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
        drawn = torch.randint(2**31 - 1, weight.shape, generator=generator, dtype=torch.int32)
        return drawn.to(weight.device)

    return draw
