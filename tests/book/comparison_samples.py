"""A record of schedules at equal MACs, made up for tests."""

from __future__ import annotations

from pruning_book.verdicts import METRICS

BUDGETS, ROWS = (0.5, 0.25), {"ddim": "fewer steps", "uniform": "uniform reuse", "ours": "ours"}


def interval(value: float, width: float = 0.01) -> dict:
    return {"value": value, "low": value - width, "high": value + width, "n": 8, "level": 0.95}


def made_up() -> dict:
    """Return a record in which ours is better than either rival on all metrics."""
    figures, place, cells = (*METRICS, "psnr_db"), 1, []
    for budget in BUDGETS:
        for index, row in enumerate(ROWS):
            cell = {
                "steps": 4,
                "budget": budget,
                "row": row,
                "macs_ratio": budget,
                "sheet_row": place,
                "reuse": "output",
            }
            cell |= {key: interval((0.2 + 0.1 * index) * budget) for key in figures}
            cell |= {"num_inference_steps": int(4 * budget) if row == "ddim" else 4}
            if row != "ddim":
                cell["rows"] = ["11", "00", "01", "00"]
            if row == "ours":
                cell["reuse"] = "prediction"
            else:
                signs = {key: sign for key, (_, sign) in METRICS.items()}
                cell["ours_minus"] = {key: interval(0.1 * signs.get(key, 1)) for key in figures}
            cells.append(cell)
            place += 1
    return {
        "budgets": list(BUDGETS),
        "rows": ROWS,
        "methods": list(ROWS),
        "cells": cells,
        "n": 8,
        "shown": ["lion", "pizza"],
        "prompts": ["lion", "pizza"],
        "unpruned": {"4": {"sheet_row": 0, "clip_score": interval(80), "frechet_real": interval(3)}},
    }
