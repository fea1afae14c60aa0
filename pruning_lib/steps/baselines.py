"""Rivals without training: whole calls at equal distances, and DeepCache's pattern.

Both are schedules like any other, so they are counted, applied, saved and drawn in the same way.
"""

from __future__ import annotations

import re

import torch

from .budget import check_budget, evenly
from .grid import Grid
from .schedule import Schedule

__all__ = ["deepcache", "every", "uniform"]


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


def deepcache(
    grid: Grid, interval: int | None = None, branch: int = 0, *, keep_macs: float | None = None
) -> Schedule:
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
