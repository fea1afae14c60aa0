"""A budget of MACs: how many it allows, and whole calls that keep within it.

What open gates cost: the sparsity loss of DiP-GO, and a threshold that meets a budget (Section 3.3 and 3.4).

A unit costs its own multiply-accumulates and those of the units that only work for it.  Shutting one at the output end
therefore saves a whole cascade; the published code counts that inside one call, and so does `cell_shares`.

From scores to a schedule: the cells with the best scores, as many as a budget of MACs allows.

DiP-GO's post-processing (arXiv 2410.16942) lowers a threshold until the asked share of MACs is gone.  Here
the threshold is searched, dead work is never counted, and the budget is never exceeded.

Rivals without training: whole calls at equal distances, and DeepCache's pattern.

Both are schedules like any other, so they are counted, applied, saved and drawn in the same way.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .schedule import Grid, Schedule, paper_cascade

__all__ = [
    "cell_shares",
    "check_budget",
    "deepcache",
    "evenly",
    "every",
    "threshold_scores",
    "own_shares",
    "sparsity_loss",
    "uniform",
    "within_budget",
]


def check_budget(grid: Grid, keep_macs: float) -> int:
    """Return the MACs that a share allows, of one sample over all calls.

    Raises:
        ValueError: not a number in (0, 1], or less than the first call needs, which is always computed whole.
    """
    if isinstance(keep_macs, bool) or not isinstance(keep_macs, (int, float)) or not 0 < keep_macs <= 1:
        raise ValueError(
            f"keep_macs={keep_macs!r}; it is the share of MACs to keep, above 0 and up to 1. To remove a share r, "
            "keep 1 - r."
        )
    allowed = int(keep_macs * grid.total_macs)
    if (allowed + 1) / grid.total_macs <= keep_macs:  # 0.15 of 20 calls are three, not 2.9999999996
        allowed += 1
    first = torch.zeros(grid.shape, dtype=torch.bool)
    first[0] = True
    least = grid.macs_of(first)
    if allowed < least:
        raise ValueError(
            f"keep_macs={keep_macs:g} is less than the first of {grid.shape[0]} calls, which is always computed "
            f"whole and takes {least / grid.total_macs:.3g} of the MACs. Keep more, or sample with more steps."
        )
    return allowed


def evenly(grid: Grid, keep_macs: float) -> Tensor:
    """Open whole calls at equal distances, as many as a budget allows.

    With k calls of T, those are floor(i T / k) for i = 0 ... k - 1.

    Args:
        grid: of the calls and units.
        keep_macs: largest share of the MACs to keep.

    Returns:
        bool `[T, N]`; the first row is open.

    Raises:
        ValueError: a budget below one call, or not a share.
    """
    calls, allowed = grid.shape[0], check_budget(grid, keep_macs)
    for count in range(calls, 0, -1):
        on = torch.zeros(grid.shape, dtype=torch.bool)
        on[[i * calls // count for i in range(count)]] = True
        if grid.macs_of(on) <= allowed:
            return on
    raise AssertionError("the budget was checked")


def own_shares(grid: Grid) -> Tensor:
    """Return each unit's share of the MACs of all units in one call, float32 `[N]`; they add up to 1."""
    macs = torch.tensor(grid.macs, dtype=torch.float64)
    return (macs / macs.sum()).float()


def cell_shares(on: Tensor, grid: Grid) -> Tensor:
    """Return what each cell costs together with its cascade, as shares of one call's units.

    For an open cell: what would fall with it if it were shut. For a shut one: what would run if it were opened. All
    other cells stay as they are.

    Args:
        on: bool `[T, N]`.
        grid: of the calls and units.

    Returns:
        float32 `[T, N]`, in [0, 1]; 0 where opening or shutting changes nothing, as behind a shut gate.
    """
    own, count = own_shares(grid), len(grid.names)
    known: dict[tuple, Tensor] = {}

    def row_shares(row: Tensor) -> Tensor:
        key = tuple(row.tolist())
        if key not in known:
            eye = torch.eye(count, dtype=torch.bool)
            open_, shut = paper_cascade(row | eye, grid.wiring), paper_cascade(row & ~eye, grid.wiring)
            known[key] = (open_.float() - shut.float()) @ own
        return known[key]

    return torch.stack([row_shares(row) for row in on])


def sparsity_loss(gates: Tensor, shares: Tensor) -> Tensor:
    """Return the sparsity loss: the mean over calls of the sum of gate times share.

    Args:
        gates: `[T, N]`, differentiable.
        shares: `[T, N]` or `[N]`, as `cell_shares` or `own_shares` gives them.

    Returns:
        A number >= 0: with `own_shares` and all gates open, 1; with cascades counted, more, because a unit's MACs count
        for every unit they fall with.
    """
    return (gates * shares.to(gates.device)).sum(dim=1).mean()


def within_budget(scores: Tensor, grid: Grid, keep_macs: float) -> Tensor:
    """Open the cells of the highest scores, as many as a budget allows; dead work is not counted.

    Args:
        scores: `[T, N]`; ties go to the earlier call and unit.
        grid: of the calls and units.
        keep_macs: largest share of the MACs to keep, in (0, 1].

    Returns:
        bool `[T, N]`; the first row is open.

    Raises:
        ValueError: scores of another shape, not finite, or a budget below the first row, which always runs.
    """
    calls, units = grid.shape
    allowed = check_budget(grid, keep_macs)
    if tuple(scores.shape) != grid.shape:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; this grid needs {calls} x {units} numbers.")
    if not torch.isfinite(scores).all():
        raise ValueError(f"scores holds {int((~torch.isfinite(scores)).sum())} values that are not finite numbers.")
    order = scores[1:].flatten().argsort(descending=True, stable=True)

    def highest(count: int) -> Tensor:
        on = torch.ones(calls * units, dtype=torch.bool)
        on[units:] = False
        on[units + order[:count]] = True
        return on.view(calls, units)

    # MACs grow with the count, but for the rare cell that makes an earlier one dead; what is returned is checked.
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if grid.macs_of(highest(middle)) <= allowed:
            low = middle
        else:
            high = middle - 1
    return highest(low)


def threshold_scores(scores: object, grid: Grid, keep_macs: float, **provenance: object) -> Schedule:
    """Keep the cells with the highest scores.

    A threshold is found by bisection; what it leaves of the budget goes to the next cells in order that still fit.
    Cells whose work would reach no picture are left off.

    Args:
        scores: `[T, N]`, higher is more important; row 0 is not looked at, because it is always computed. Equal scores
            are taken in order of rows, then units.
        grid: the calls and units that the scores are of.
        keep_macs: share of MACs to keep at most, up to 1, attention products included.
        provenance: noted in the schedule.

    Returns:
        A `Schedule` with `macs_ratio() <= keep_macs`.

    Raises:
        ValueError: scores of another shape or not finite, or a budget below the first call alone.

    Example:
        >>> threshold_scores(torch.rand(grid.shape), grid, 0.5).macs_ratio() <= 0.5
        True
    """
    scores = torch.as_tensor(scores).detach().double().cpu()
    allowed = check_budget(grid, keep_macs)
    on = within_budget(scores, grid, keep_macs)
    units = grid.shape[1]
    order = [units + int(i) for i in scores[1:].flatten().argsort(descending=True, stable=True)]
    on = _fill(on, [place for place in order if not on.view(-1)[place]], grid, allowed)
    provenance = {"method": "scores", "keep_macs": keep_macs, **provenance}
    return grid.schedule(grid.live(on), **provenance)


def _fill(on: Tensor, order: list[int], grid: Grid, allowed: int) -> Tensor:
    """Switch on, in order, the cells that still fit; `order` is of positions in the flattened table."""
    left = allowed - grid.macs_of(on)
    units = grid.shape[1]
    for position in order:
        if left < min(grid.macs):
            break
        if grid.macs[position % units] > left:
            continue
        on.view(-1)[position] = True
        left_then = allowed - grid.macs_of(on)
        if left_then < 0:
            on.view(-1)[position] = False
        else:
            left = left_then
    return on


def uniform(grid: Grid, keep_macs: float) -> Schedule:
    """Compute the whole denoiser at equal distances, and reuse its output in between.

    With k the calls that the budget pays for, call floor(i T / k) is computed for i = 0 ... k - 1.

    Args:
        grid: of any denoiser.
        keep_macs: share of MACs to keep at most.

    Raises:
        ValueError: a budget below one call, or not a share.
    """
    return grid.schedule(evenly(grid, keep_macs), method="uniform", keep_macs=keep_macs)


def every(grid: Grid, interval: int) -> Schedule:
    """Compute the whole denoiser at every `interval`-th call.

    Raises:
        ValueError: interval < 1.
    """
    _check_interval(interval)
    on = torch.zeros(grid.shape, dtype=torch.bool)
    on[::interval] = True
    return grid.schedule(on, method="uniform", interval=interval)


def deepcache(grid: Grid, interval: int | None = None, branch: int = 0, *, keep_macs: float | None = None) -> Schedule:
    """Follow DeepCache (arXiv 2312.00858): every `interval`-th call whole, and its shallowest layers at all others.

    The branches are numbered as in the authors' package `deepcache`, where branch b = 3 B + L lets the calls in between
    compute B whole levels of the UNet from the outside, and of the next level the first L layers on the way down and
    the last L + 1 on the way up.

    Args:
        grid: of a UNet, at grain "layers" or "modules".
        interval: calls from one whole one to the next, >= 1.
        branch: as above, >= 0; 0 is the cheapest and the package's default.
        keep_macs: instead of an interval: the shortest one within this share of MACs.

    Raises:
        ValueError: both or neither of interval and keep_macs, numbers out of range, a share that no interval meets, or
            a denoiser without the levels of a UNet.

    Example:
        >>> deepcache(grid, 3).label
        'DeepCache'
    """
    if (interval is None) == (keep_macs is None):
        raise ValueError(f"interval={interval!r}, keep_macs={keep_macs!r}; give one of them.")
    shallow = _shallow(grid, branch)
    if interval is not None:
        return _pattern(grid, interval, branch, shallow)
    allowed = check_budget(grid, keep_macs)
    for distance in range(1, grid.shape[0] + 1):
        found = _pattern(grid, distance, branch, shallow, keep_macs=keep_macs)
        if found.macs() <= allowed:
            return found
    raise ValueError(
        f"keep_macs={keep_macs:g} is less than branch {branch} of DeepCache takes with a single whole call "
        f"({found.macs_ratio():.3g} of the MACs). Keep more, or use a lower branch."
    )


def _pattern(grid: Grid, interval: int, branch: int, shallow: list[int], **more: object) -> Schedule:
    _check_interval(interval)
    on = torch.zeros(grid.shape, dtype=torch.bool)
    on[:, shallow] = True
    on[::interval] = True
    return grid.schedule(on, method="DeepCache", interval=interval, branch=branch, **more)


def _shallow(grid: Grid, branch: int) -> list[int]:
    """Return the units that a call in between computes."""
    if not isinstance(branch, int) or isinstance(branch, bool) or branch < 0:
        raise ValueError(f"branch={branch!r}; it must be a whole number >= 0.")
    parsed = [re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)$", name) for name in grid.names]
    levels = [int(m[2]) for m in parsed if m and m[1] == "up"]
    if not levels:
        raise ValueError(
            f"DeepCache needs the layers of a UNet, but the units are such as {grid.names[0]!r} (grain "
            f"{grid.grain!r}). Use a UNet, and grain 'layers' or 'modules'."
        )
    level, layer = divmod(branch, 3)
    if level > max(levels):
        raise ValueError(f"branch={branch} lies {level} levels deep, but this UNet has {max(levels) + 1}.")
    numbers: dict[int, int] = {}  # layers of each up block
    for match in parsed:
        if match and match[1] == "up" and match[3] in ("layers", "resnets"):
            numbers[int(match[2])] = max(numbers.get(int(match[2]), 0), int(match[4]) + 1)
    found = []
    for unit, match in enumerate(parsed):
        if not match:
            continue
        way, block, kind, number = match[1], int(match[2]), match[3], int(match[4])
        depth = block if way == "down" else max(levels) - block
        if kind in ("downsamplers", "upsamplers"):
            inside = depth < level or (way == "up" and depth == level)
        elif way == "down":
            inside = depth < level or (depth == level and number < layer)
        else:
            inside = depth < level or (depth == level and numbers[block] - 1 - number <= layer)
        if inside:
            found.append(unit)
    return found


def _check_interval(interval: object) -> None:
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise ValueError(f"interval={interval!r}; it must be a whole number >= 1.")
