"""Schedules within a budget of MACs: of scores, of whole calls at equal distances, and DeepCache's pattern.

DiP-GO's post-processing (arXiv 2410.16942, Section 3.4) lowers a threshold until the asked share of MACs is gone.  Here
the threshold is searched, dead work is never counted, and the budget is never exceeded.
"""

from __future__ import annotations

import re

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
    least = grid.macs_of(_whole_calls(grid, [0]))
    if allowed < least:
        raise ValueError(
            f"keep_macs={keep_macs:g} is less than the first of {grid.shape[0]} calls, which is always computed "
            f"whole and takes {least / grid.total_macs:.3g} of the MACs. Keep more, or sample with more steps."
        )
    return allowed


def _whole_calls(grid: Grid, rows: list[int] | slice) -> Tensor:
    on = torch.zeros(grid.shape, dtype=torch.bool)
    on[rows] = True
    return on


def evenly(grid: Grid, keep_macs: float) -> Tensor:
    """Open whole calls at equal distances, as many as a budget allows: with k of T, floor(i T / k) for i < k.

    The budget, `keep_macs`, is the largest share of the MACs to keep, in (0, 1], and not below one call.

    Returns:
        bool `[T, N]`; the first row is open.
    """
    calls, allowed = grid.shape[0], check_budget(grid, keep_macs)
    tables = (_whole_calls(grid, [i * calls // k for i in range(k)]) for k in range(calls, 0, -1))
    return next(on for on in tables if grid.macs_of(on) <= allowed)


def within_budget(scores: Tensor, grid: Grid, keep_macs: float) -> Tensor:
    """Open the cells of the highest scores, as many as a budget allows; dead work is not counted.

    Args:
        scores: `[T, N]`, finite; ties go to the earlier call and unit. Row 0 is not looked at: it is always open.
        grid, keep_macs: as for `evenly`.

    Returns:
        bool `[T, N]`; the first row is open.
    """
    allowed = check_budget(grid, keep_macs)
    order = _order(scores, grid)

    def highest(count: int) -> Tensor:
        on = _whole_calls(grid, [0])
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

    Args:
        scores, grid, keep_macs: as for `within_budget`.
        provenance: noted in the schedule, which has no dead work.

    Example:
        >>> threshold_scores(torch.rand(grid.shape), grid, 0.5).macs_ratio() <= 0.5
        True
    """
    scores = torch.as_tensor(scores).detach().double().cpu()
    allowed = check_budget(grid, keep_macs)
    on = within_budget(scores, grid, keep_macs)
    cells, left = on.view(-1), allowed - grid.macs_of(on)
    for place in _order(scores, grid).tolist():
        if left < min(grid.macs):
            break
        if cells[place] or grid.macs[place % len(grid.macs)] > left:
            continue
        cells[place] = True
        left_then = allowed - grid.macs_of(on)
        if left_then < 0:  # with what works for it, it is too much
            cells[place] = False
        else:
            left = left_then
    return grid.schedule(grid.live(on), **{"method": "scores", "keep_macs": keep_macs, **provenance})


def uniform(grid: Grid, keep_macs: float) -> Schedule:
    """Compute the whole denoiser at equal distances, and reuse its output in between; arguments as `evenly`."""
    return grid.schedule(evenly(grid, keep_macs), method="uniform", keep_macs=keep_macs)


def every(grid: Grid, interval: int) -> Schedule:
    """Compute the whole denoiser at every `interval`-th call, from 1."""
    rows = slice(None, None, check_whole("interval", interval, 1))
    return grid.schedule(_whole_calls(grid, rows), method="uniform", interval=interval)


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

    Example:
        >>> deepcache(grid, 3).label
        'DeepCache'
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
    parsed = [re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)$", name) for name in grid.names]
    parts = [(i, m[1], int(m[2]), m[3], int(m[4])) for i, m in enumerate(parsed) if m]
    blocks = [block for _, way, block, _, _ in parts if way == "up"]
    if not blocks:
        raise ValueError(
            f"DeepCache needs the layers of a UNet, but the units are such as {grid.names[0]!r} (grain "
            f"{grid.grain!r}). Use a UNet, and grain 'layers' or 'modules'."
        )
    level, layers = divmod(branch, 3)
    if level > max(blocks):
        raise ValueError(f"branch={branch} lies {level} levels deep, but this UNet has {max(blocks) + 1}.")
    at = max(blocks) - level  # the up block of that level
    last = max(n for _, way, block, kind, n in parts if (way, block) == ("up", at) and not kind.endswith("samplers"))
    inside = []
    for unit, way, block, kind, number in parts:
        depth = block if way == "down" else max(blocks) - block
        if depth == level and way == "down":
            shallow = number < layers and not kind.endswith("samplers")
        elif depth == level:
            shallow = kind == "upsamplers" or number >= last - layers
        else:
            shallow = depth < level
        if shallow:
            inside.append(unit)
    return inside
