"""The explorer of the chapter on schedules at equal MACs: a thing, a method, a share removed, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler

from pruning_lib.steps.schedule import Grid, Schedule, decode_table

from ..plots.comparison import Cells
from ..plots.training import recorded_tiles
from ..rivals.fewer_steps import FewerSteps
from .axes import Axis, Metric
from .sweep import SweepExplorer


def rival_of(cell: Mapping[str, Any], grid: Grid) -> Schedule | FewerSteps:
    """Return the schedule, or the fewer steps, of a cell of `schedule_comparison`, on the unpruned grid."""
    if "rows" not in cell:
        steps = cell["num_inference_steps"]
        return FewerSteps(grid, steps, steps, DPMSolverMultistepScheduler if cell["row"] == "dpm" else None)
    hold = "prediction" if "prediction" in (cell.get("hold"), cell.get("reuse")) else "value"  # of old it was "reuse"
    return grid.schedule(decode_table(cell["rows"]), hold=hold, method=cell["row"])


def draws(pipe: Any, cells: Cells, grid: Grid) -> Callable[[dict], dict[str, Any]]:
    """Return what draws the explorer's picture anew, by emoji-sd on the grid of the unpruned generation."""

    def on_change(state: dict) -> dict[str, Any]:
        prompt, kept = state["thing"], round(1 - state["removed"] / 100, 4)
        rival = grid.full() if kept == 1 else rival_of(cells.at(grid.steps, state["method"], kept), grid)
        noise = torch.Generator().manual_seed(cells.data["prompts"].index(prompt))
        with rival.applied(pipe):
            drawn = pipe(prompt, num_inference_steps=rival.steps, guidance_scale=3.0, generator=noise)
        return {"image": drawn.images[0]}

    return on_change


def comparison_explorer(
    name: str, record: Mapping[str, Any], *, steps: int = 20, source: str = "schedule_comparison", **options: Any
) -> SweepExplorer:
    """Return the explorer of the record `schedule_comparison`, as `load_record` returns it.

    `steps` are those of the unpruned model; `source` is the record's name or file, whose sheet of pictures lies beside
    it; `name` and `options` are of `SweepExplorer`.
    """
    data, cells = record["data"], Cells(record["data"])
    tiles, things = recorded_tiles(source), data["shown"]
    rows, unpruned = cells.methods(steps), data["unpruned"][str(steps)]
    whole = {**unpruned, "macs_ratio": 1.0, "ssim": dict.fromkeys(("value", "low", "high"), 1.0)}
    stops = [cell for row in rows for cell in (whole, *(cells.at(steps, row, budget) for budget in cells.budgets))]
    found = stops * len(things)
    images = [tiles[cell["sheet_row"] * len(things) + i] for i in range(len(things)) for cell in stops]
    times = (data.get("speed") or {}).get("times", {})

    def judged(key: str, label: str, digits: int) -> Metric:
        values, low, high = ([cell[key][end] for cell in found] for end in ("value", "low", "high"))
        ends = {"low": low, "high": high, "interval": "95 % interval"}
        return Metric(key, values, label=label, n=data["n"], digits=digits, **ends)

    def fast(cell: Mapping[str, Any]) -> float | None:
        if cell is whole:
            return 1.0
        timed = times.get(f"{steps}-{cell['budget']:g}-{cell['row']}")
        return timed and timed["generation"]["times_as_fast"]["value"]

    metrics = [
        Metric("macs", [100 * cell["macs_ratio"] for cell in found], label="MACs kept", unit="%", digits=1),
        judged("ssim", f"SSIM to the unpruned, {data['n']} pictures", 3),
        judged("clip_score", "CLIP score", 1),
        Metric("fast", [fast(cell) for cell in found], label="times as fast, measured"),
    ]
    axes = [
        Axis("thing", things, label="Prompt"),
        Axis("method", rows, label="Method", labels=[cells.names[row] for row in rows]),
        Axis("removed", [0, *(round(100 * (1 - b)) for b in cells.budgets)], label="MACs removed", unit="%"),
    ]
    told = {"title": "Schedules and their rivals", "picture": f"picture from emoji-sd, {steps} steps"}
    told |= {"baseline": {"removed": 0}, "passport": record["passport"]}
    return SweepExplorer(name, axes, images, metrics, **{**told, **options})
