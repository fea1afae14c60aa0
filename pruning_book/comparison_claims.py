"""What the record of the comparison decides: where ours is best, tied or beaten, and whether the clock agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .plots.comparison import Cells
from .verdicts import Ruling

__all__ = ["METRICS", "Beaten", "best_or_tied", "beaten", "as_fast_as_macs_say"]

# figure of the record -> (what the page calls it, 1 where higher is better and -1 where lower is)
METRICS = {
    "ssim": ("SSIM to the unpruned picture", 1),
    "frechet_unpruned": ("Fréchet distance to the unpruned pictures", -1),
    "frechet_real": ("Fréchet distance to the real pictures", -1),
    "clip_score": ("CLIP score", 1),
}


@dataclass(frozen=True)
class Beaten:
    """A comparison that ours loses: the paired interval lies on the rival's side of zero.

    Attributes:
        steps, budget, row, metric: of the comparison.
        by: ours minus the rival, with "low" and "high".
    """

    steps: int
    budget: float
    row: str
    metric: str
    by: Mapping[str, float]


def compared(cells: Cells, steps: int, rivals: Sequence[str]) -> Iterator[tuple[float, str, str, Mapping[str, float]]]:
    """Yield budget, rival, metric and difference of every comparison with ours."""
    for budget in sorted(cells.data["budgets"], reverse=True):
        for row in rivals:
            found = cells.at(steps, row, budget)["ours_minus"]
            for metric in METRICS:
                yield budget, row, metric, found[metric]


def beaten(cells: Cells, steps: int, rivals: Sequence[str]) -> list[Beaten]:
    """Return the comparisons that ours loses: no interval of the difference reaches ours' side of zero."""
    found = []
    for budget, row, metric, by in compared(cells, steps, rivals):
        sign = METRICS[metric][1]
        if (by["high"] if sign > 0 else -by["low"]) < 0:
            found.append(Beaten(steps, budget, row, metric, by))
    return found


def best_or_tied(cells: Cells, steps: int, rivals: Sequence[str]) -> tuple[Ruling, str]:
    """Rule whether ours is best or tied on every metric at every budget.

    Returns:
        The ruling, and one or two sentences with the numbers.
    """
    every = list(compared(cells, steps, rivals))
    lost = beaten(cells, steps, rivals)
    won = sum((by["low"] if METRICS[m][1] > 0 else -by["high"]) > 0 for _, _, m, by in every)
    text = (
        f"At {steps} steps, of {len(every)} comparisons ({len(cells.data['budgets'])} budgets, {len(rivals)} rivals, "
        f"{len(METRICS)} metrics) ours is clearly better in {won}, clearly worse in {len(lost)}; the rest are ties."
    )
    if lost:
        places = [f"{cells.names[b.row]} at {100 * b.budget:.0f} % ({METRICS[b.metric][0]})" for b in lost[:4]]
        text += f" Worse than {'; '.join(places)}{', and others' if len(lost) > 4 else ''}."
    return ("holds" if not lost else "holds in part" if won > len(lost) else "does not hold"), text


def as_fast_as_macs_say(data: Mapping, least: float = 0.9) -> tuple[Ruling, str]:
    """Rule whether ours denoises as much faster as its MACs promise, or `least` of that, at every budget."""
    if not data.get("speed"):
        return "not measured", "The times of this record have not been measured yet."
    found = {}
    for cell in data["cells"]:
        name = f"{cell['steps']}-{cell['budget']:g}-ours"
        if cell["row"] == "ours" and name in data["speed"]["times"]:
            fast = data["speed"]["times"][name]["denoising"]["times_as_fast"]["value"]
            found[name] = (fast * cell["macs_ratio"], fast, 1 / cell["macs_ratio"])
    if not found:
        return "not measured", "The times of ours have not been measured yet."
    worst, best = min(found.values()), max(found.values())
    met = sum(share >= least for share, _, _ in found.values())
    text = (
        f"Denoising alone reaches {100 * worst[0]:.0f} % to {100 * best[0]:.0f} % of the promised speed-up; {met} of "
        f"{len(found)} schedules reach {100 * least:.0f} %. The one furthest from its promise is {worst[1]:.2f} times "
        f"as fast instead of {worst[2]:.2f}."
    )
    return ("holds" if met == len(found) else "holds in part" if met else "does not hold"), text
