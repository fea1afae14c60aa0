"""Records of `make gpu` for tests: parts in the form that its stages write, with made-up figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_lib.latency import Latency

OOM = {"out_of_memory": "OutOfMemoryError: CUDA out of memory"}
BROKEN = {"error": "RuntimeError: an illegal memory access was encountered"}
WAYS = ("fewer steps", "uniform", "DeepCache", "deepcache package", "searched-like")
H100, T4 = "NVIDIA H100 80GB HBM3", "Tesla T4"


def latency(ms: float, n: int = 3) -> Latency:
    """Return n times around a median."""
    return Latency(tuple(ms * (1 + 0.03 * (i / (n - 1) - 0.5)) for i in range(n)), 1, 9000.0, "cuda")


def compared(base: Latency, other: Latency, macs_ratio: float) -> dict:
    """Return measured beside promised speed; without chance, because every round of both is alike."""
    value = base.median_ms / other.median_ms
    found = {"value": value, "low": value, "high": value, "n": base.n, "level": 0.95}
    reached = {"promised": 1 / macs_ratio, "reached": value * macs_ratio}
    return {"latency": other.to_dict(), "times_as_fast": found, **reached}


def timed(steps: int, batch: int, reached: Mapping[str, float] | None = None, **more: Any) -> dict:
    """Return a part of `sd15_speed`; `reached` names ways that do not reach exactly what is promised."""
    base, rows = latency(30.0 * steps * batch), []
    for keep in (0.5, 0.2):
        for name in WAYS:
            other = latency(base.median_ms * keep / (reached or {}).get(name, 1.0))
            facts = {"way": name, "keep": keep, "calls": round(50 * keep), "cells": 99, "macs_ratio": keep}
            rows.append({**facts, **compared(base, other, keep)})
    facts = {"steps": steps, "batch": batch, "guidance": 7.5, "side": 64, "dtype": "float16"}
    return {**facts, "unpruned": base.to_dict(), "rows": rows, **more}


def trained(recipe: str, found: dict | None = None, **more: Any) -> tuple[str, dict]:
    """Return name and part of `sd15_training`."""
    facts = {"steps": 50, "recipe": recipe, "dtype": "float16", "checkpointing": True, "counted_mib": 8192.0, **more}
    name = ", ".join(str(facts[key]) for key in ("steps", "recipe", "dtype", "checkpointing"))
    return name, {**facts, **(found or {"seconds_per_iteration": 6.5, "peak_mib": 9216.0, "before_mib": 2048.0})}


def run(of: Mapping[str, dict], hardware: str = H100, n: int = 3) -> dict:
    """Return a run on a GPU."""
    stamp = {
        "hardware": hardware,
        "versions": {"torch": "2.11.0+cu130"},
        "n": n,
        "date": "2026-12-01T10:00:00+00:00",
        "gpu": {"driver": "580.65", "cuda": "13.0", "memory_mib": 81559},
    }
    return {"hardware": hardware, "passport": stamp, "unfinished": "", "dry": False, "parts": dict(of)}


def one(*found: tuple[str, dict]) -> list[dict]:
    """Return the runs of a record with one GPU and these parts."""
    return [run(dict(found))]
