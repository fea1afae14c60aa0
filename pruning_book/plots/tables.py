"""Tables of the chapter on schedules at equal MACs, from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import HTML

from ..output import table
from .comparison import Cells, shown_names


def spread(found: Mapping[str, float], digits: int = 3) -> str:
    """Return a figure with its interval, as "0.981 (0.979 to 0.983)"."""
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def percent(share: float, digits: int = 0) -> str:
    """Return a share in percent, as "25 %"."""
    return f"{100 * share:.{digits}f} %"


def quality_table(cells: Cells, steps: int, budget: float, rows: Sequence[str]) -> HTML:
    """Return all figures of quality of some methods at one budget, a share of MACs kept; the unpruned model first."""
    data = cells.data
    whole = data["unpruned"][str(steps)]
    lines = [["unpruned", "100 %", "1", "0", spread(whole["frechet_real"], 2), spread(whole["clip_score"], 1)]]
    digits = {"ssim": 3, "frechet_unpruned": 2, "frechet_real": 2, "clip_score": 1}
    for row in rows:
        cell = cells.at(steps, row, budget)
        figures = [spread(cell[key], places) for key, places in digits.items()]
        lines.append([cells.names[row], percent(cell["macs_ratio"], 1), *figures])
    return table(
        ["method", "MACs kept", "SSIM", "Fréchet, unpruned", "Fréchet, real", "CLIP score"],
        lines,
        caption=f"{steps} steps, at most {percent(budget)} of the MACs, n = {data['n']}; means and distances with 95 % "
        "intervals. Fréchet distances and CLIP scores are the mini CLIP's.",
    )


def held_table(cells: Cells, steps: int, pairs: Sequence[tuple[str, str]]) -> HTML:
    """Return what holding the prediction instead of the output does to the SSIM of the same schedules, by budget.

    `pairs` are rows that hold the output, each with the row that holds the prediction.
    """
    budgets = sorted(cells.data["budgets"], reverse=True)

    def mean(row: str, budget: float) -> str:
        return f"{cells.at(steps, row, budget)['ssim']['value']:.3f}"

    lines = [
        [cells.names[plain], *(f"{mean(plain, b)} \u2192 {mean(held, b)}" for b in budgets)] for plain, held in pairs
    ]
    return table(
        ["MACs kept at most", *(percent(b) for b in budgets)],
        lines,
        caption=f"Mean SSIM to the unpruned picture, {steps} steps, n = {cells.data['n']}: with the output held, and "
        "with the prediction held.",
    )


def search_table(search: Mapping[str, Any]) -> HTML:
    """Return what each kind of search cost and found, from the data of the record `schedule_search`."""
    names = shown_names(search["names"])
    lines = [
        [
            names[row["method"]],
            percent(1 - row["budget"]),
            f"{row['images']}" if row["images"] else f"{row['images_with_gradient']} *",
            f"{row['cpu_seconds']:.0f}",
            f"{row['latent_mse']:.4f}",
            spread(row["ssim"]),
            spread(row["clip_score"], 1),
        ]
        for row in search["rows"]
    ]
    return table(
        ["method", "removed", "images", "seconds of one core", "latent error", "SSIM", "CLIP score"],
        lines,
        caption=f"{search['steps']} steps, n = {search['n']} held-out prompts. Unpruned CLIP score: "
        f"{spread(search['unpruned_clip_score'], 1)}. A backward pass of a search is charged as four images. "
        "*: with gradients, once for all budgets.",
    )


def speed_table(cells: Cells, steps: int, rows: Sequence[str], kind: str = "denoising") -> HTML | None:
    """Return the measured speed-ups of some methods at every budget; None if they were not measured.

    `kind` is "denoising", or "generation" with the text encoder and decoding.
    """
    speed = cells.data.get("speed")
    if not speed or f"{steps}-unpruned" not in speed["times"]:
        return None
    times, stamp = speed["times"], speed["passport"]
    budgets = sorted(cells.data["budgets"], reverse=True)

    def measured(row: str, budget: float) -> str:
        timed = times.get(f"{steps}-{budget:g}-{row}")
        return spread(timed[kind]["times_as_fast"], 2) if timed else "not measured"

    lines = [["promised, at least", *(f"{1 / budget:.2f}" for budget in budgets)]]
    lines += [[cells.names[row], *(measured(row, budget) for budget in budgets)] for row in rows]
    what = {"denoising": "Denoising alone", "generation": "Whole generations, prompt and decoding included"}[kind]
    return table(
        ["MACs kept at most", *(percent(budget) for budget in budgets)],
        lines,
        caption=f"{what}: times as fast as the unpruned, {speed['pictures']} pictures, {steps} steps. "
        f"{stamp['hardware']}, one thread, {stamp['n']} rounds, the schedules of a method in turn with the unpruned.",
    )
