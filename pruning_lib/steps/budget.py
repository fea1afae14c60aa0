"""Schedules within a budget of MACs: of scores, of whole calls at equal distances, and DeepCache's pattern.

DiP-GO's post-processing (arXiv 2410.16942, Section 3.4) lowers a threshold until the asked share of MACs is gone.  Here
the threshold is searched, dead work is never counted, and the budget is never exceeded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_number, check_whole
from .schedule import Grid, Schedule


def check_budget(grid: Grid, keep_macs: float) -> int:
    """Return the MACs that a share in (0, 1] allows, of one sample over all calls; ValueError below the first call."""
    check_number("keep_macs", keep_macs, "(0, 1]")
    allowed = int(keep_macs * grid.total_macs)
    if (allowed + 1) / grid.total_macs <= keep_macs:  # 0.15 of 20 calls are three, not 2.9999999996
        allowed += 1
    least = grid.macs_of(whole_calls(grid, [0]))
    if allowed < least:
        raise ValueError(
            f"keep_macs={keep_macs:g} is less than the first of {grid.shape[0]} calls, which is always computed "
            f"whole and takes {least / grid.total_macs:.3g} of the MACs. Keep more, or sample with more steps."
        )
    return allowed


def whole_calls(grid: Grid, rows: list[int] | slice) -> Tensor:
    """Return the table, bool `[T, N]`, with these rows open."""
    on = torch.zeros(grid.shape, dtype=torch.bool)
    on[rows] = True
    return on


def evenly(grid: Grid, keep_macs: float) -> Tensor:
    """Open whole calls at equal distances, as many as a budget allows: with k of T, floor(i T / k) for i < k.

    The budget is the largest share of the MACs to keep, in (0, 1], and not below one call. Returns bool `[T, N]`.
    """
    calls, allowed = grid.shape[0], check_budget(grid, keep_macs)
    tables = (whole_calls(grid, [i * calls // k for i in range(k)]) for k in range(calls, 0, -1))
    return next(on for on in tables if grid.macs_of(on) <= allowed)


def within_budget(scores: Tensor, grid: Grid, keep_macs: float) -> Tensor:
    """Open the cells of the highest scores `[T, N]`, as many as a budget allows, as for `evenly`: bool `[T, N]`.

    Dead work is not counted. Ties go to the earlier call and unit. Row 0 is not looked at: it is always open.
    """
    allowed, order = check_budget(grid, keep_macs), _order(scores, grid)

    def highest(count: int) -> Tensor:
        on = whole_calls(grid, [0])
        on.view(-1)[order[:count]] = True
        return on

    # MACs grow with the count, but for the rare cell that makes an earlier one dead; what is returned is checked.
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if grid.macs_of(highest(middle)) <= allowed:
            low = middle
        else:
            high = middle - 1
    return highest(low)


def _order(scores: Tensor, grid: Grid) -> Tensor:
    """Return the places of all cells but those of the first row, best first, in the flattened table."""
    if tuple(scores.shape) != grid.shape:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; this grid needs {grid.shape[0]} x {grid.shape[1]}.")
    if not torch.isfinite(scores).all():
        raise ValueError(f"scores holds {int((~torch.isfinite(scores)).sum())} values that are not finite numbers.")
    return scores[1:].flatten().argsort(descending=True, stable=True) + grid.shape[1]


def threshold_scores(scores: object, grid: Grid, keep_macs: float, **provenance: object) -> Schedule:
    """Keep the cells with the highest scores: those `within_budget`, then the next ones that fit in what it leaves.

    The schedule has no dead work, and notes the `provenance`.
    """
    scores = torch.as_tensor(scores).detach().double().cpu()
    allowed, on = check_budget(grid, keep_macs), within_budget(scores, grid, keep_macs)
    cells, left = on.view(-1), allowed - grid.macs_of(on)
    for place in _order(scores, grid).tolist():
        if left < min(grid.macs):
            break
        if not cells[place] and grid.macs[place % len(grid.macs)] <= left:
            cells[place] = True
            left_then = allowed - grid.macs_of(on)
            if left_then >= 0:
                left = left_then
            else:  # with what works for it, it is too much
                cells[place] = False
    return grid.schedule(grid.live(on), **{"method": "scores", "keep_macs": keep_macs, **provenance})


def uniform(grid: Grid, keep_macs: float) -> Schedule:
    """Compute the whole denoiser at equal distances, and reuse its output in between; arguments as `evenly`."""
    return grid.schedule(evenly(grid, keep_macs), method="uniform", keep_macs=keep_macs)


def every(grid: Grid, interval: int) -> Schedule:
    """Compute the whole denoiser at every `interval`-th call, from 1."""
    rows = slice(None, None, check_whole("interval", interval, 1))
    return grid.schedule(whole_calls(grid, rows), method="uniform", interval=interval)


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
    """
    if (interval is None) == (keep_macs is None):
        raise ValueError(f"interval={interval!r}, keep_macs={keep_macs!r}; give one of them.")
    shallow = _shallow(grid, branch)

    def pattern(interval: int, **more: object) -> Schedule:
        on = every(grid, interval).on
        on[:, shallow] = True
        return grid.schedule(on, method="DeepCache", interval=interval, branch=branch, **more)

    if interval is not None:
        return pattern(interval)
    allowed = check_budget(grid, keep_macs)
    for distance in range(1, grid.shape[0] + 1):
        found = pattern(distance, keep_macs=keep_macs)
        if found.macs() <= allowed:
            return found
    raise ValueError(
        f"keep_macs={keep_macs:g} is less than branch {branch} of DeepCache takes with a single whole call "
        f"({found.macs_ratio():.3g} of the MACs). Keep more, or use a lower branch."
    )


def _shallow(grid: Grid, branch: int) -> list[int]:
    """Return the units that a call in between computes."""
    check_whole("branch", branch, 0)
    places = []
    for unit, name in enumerate(grid.names):
        if name.count(".") == 3:  # as "up_blocks.3.layers.0"
            way, block, kind, number = name.split(".")
            places.append((unit, way == "up_blocks", int(block), kind.endswith("samplers"), int(number)))
    top = max((block for _, up, block, _, _ in places if up), default=-1)
    if top < 0:
        given = f"the units are such as {grid.names[0]!r} (grain {grid.grain!r})"
        raise ValueError(f"DeepCache needs the layers of a UNet, but {given}. Use grain 'layers' or 'modules'.")
    level, layers = divmod(branch, 3)
    if level > top:
        raise ValueError(f"branch={branch} lies {level} levels deep, but this UNet has {top + 1}.")
    last = max(number for _, up, block, sampler, number in places if up and block == top - level and not sampler)

    def is_shallow(up: bool, block: int, sampler: bool, number: int) -> bool:
        depth = top - block if up else block
        if depth != level:
            return depth < level
        if up:
            return sampler or number >= last - layers
        return not sampler and number < layers

    return [unit for unit, *place in places if is_shallow(*place)]
