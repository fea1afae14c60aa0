"""A record of schedules at equal MACs, made up for tests."""

from __future__ import annotations

from pruning_book.verdicts import METRICS

BUDGETS, ROWS = (0.5, 0.25), {"ddim": "fewer steps", "uniform": "uniform reuse", "ours": "ours"}


def interval(value: float, width: float = 0.01) -> dict:
    return {"value": value, "low": value - width, "high": value + width, "n": 8, "level": 0.95}


def made_up() -> dict:
    """Return a record in which ours is better than either rival on all metrics."""
    figures, cells = (*METRICS, "psnr_db"), []
    for budget in BUDGETS:
        for index, row in enumerate(ROWS):
            cell = {"steps": 4, "budget": budget, "row": row, "macs_ratio": budget, "sheet_row": len(cells) + 1}
            cell |= {key: interval((0.2 + 0.1 * index) * budget) for key in figures}
            cell |= {"num_inference_steps": int(4 * budget) if row == "ddim" else 4}
            cell["reuse"] = "prediction" if row == "ours" else "output"
            if row != "ddim":
                cell["rows"] = ["11", "00", "01", "00"]
            if row != "ours":
                cell["ours_minus"] = {key: interval(0.1 * METRICS.get(key, ("", 1))[1]) for key in figures}
            cells.append(cell)
    whole = {"4": {"sheet_row": 0, "clip_score": interval(80), "frechet_real": interval(3)}}
    facts = {"budgets": list(BUDGETS), "rows": ROWS, "methods": list(ROWS), "n": 8, "unpruned": whole}
    return {**facts, "cells": cells, "shown": ["lion", "pizza"], "prompts": ["lion", "pizza"]}
