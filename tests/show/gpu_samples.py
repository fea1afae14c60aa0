"""Records of `make gpu` for tests, in the form that its stages write, with made-up figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruning_lib.latency import Latency
from pruning_lib.records import save_record

OOM = {"out_of_memory": "OutOfMemoryError: CUDA out of memory"}
BROKEN = {"error": "RuntimeError: an illegal memory access was encountered"}
WAYS = ("fewer steps", "uniform", "DeepCache", "deepcache package", "searched-like")


def latency(ms: float, n: int = 3) -> Latency:
    """Return n times around a median."""
    return Latency(tuple(ms * (1 + 0.03 * (i / (n - 1) - 0.5)) for i in range(n)), 1, 9000.0, "cuda")


def faster(base: Latency, other: Latency) -> dict:
    """Return a ratio with its interval; without chance, because every round of both is alike."""
    value = base.median_ms / other.median_ms
    return {"value": value, "low": value, "high": value, "n": base.n, "level": 0.95}


def compared(base: Latency, other: Latency, macs_ratio: float) -> dict:
    """Return measured beside promised speed."""
    found = faster(base, other)
    return {
        "latency": other.to_dict(),
        "times_as_fast": found,
        "promised": 1 / macs_ratio,
        "reached": found["value"] * macs_ratio,
    }


def way(name: str, keep: float, base: Latency, reached: float = 1.0) -> dict:
    """Return one way to run a pipeline that reaches this share of its promise."""
    other = latency(base.median_ms * keep / reached, base.n)
    return {
        "way": name,
        "keep": keep,
        "calls": round(50 * keep),
        "cells": 99,
        **compared(base, other, keep),
        "macs_ratio": keep,
    }


def timed(steps: int, batch: int, reached: Mapping[str, float] | None = None, **more: Any) -> dict:
    """Return a part of `sd15_speed`; `reached` names ways that do not reach exactly what is promised."""
    base, reached = latency(30.0 * steps * batch), reached or {}
    rows = [way(name, keep, base, reached.get(name, 1.0)) for keep in (0.5, 0.2) for name in WAYS]
    return {
        "steps": steps,
        "batch": batch,
        "guidance": 7.5,
        "side": 64,
        "dtype": "float16",
        "unpruned": base.to_dict(),
        "rows": rows,
        **more,
    }


def trained(steps: int, recipe: str, checkpointing: bool, found: dict | None = None, **more: Any) -> tuple[str, dict]:
    """Return name and part of `sd15_training`."""
    facts = {
        "steps": steps,
        "recipe": recipe,
        "loss": {"best": "latent", "published": "ssim"}[recipe],
        "dtype": "float16",
        "checkpointing": checkpointing,
        "counted_mib": 8192.0,
        **more,
    }
    name = f"{steps} steps, {recipe}, {facts['dtype']}, {'checkpoints' if checkpointing else 'all is kept'}"
    return name, {**facts, **(found or {"seconds_per_iteration": 6.5, "peak_mib": 9216.0, "before_mib": 2048.0})}


def layer_rows(name: str) -> dict:
    """Return a part of `zeros` that is a layer."""
    base = latency(0.2, 50)
    rows = []
    for form, sparsity, ms, fewer in (
        ("dense", 0.0, 0.2, 1.0),
        ("zeros", 0.5, 0.2, 1.0),
        ("2:4", 0.5, 0.125, 2.0),
        ("structured", 0.5, 0.11, 2.0),
    ):
        other = latency(ms, 50)
        rows.append(
            {
                "form": form,
                "sparsity": sparsity,
                "times_fewer_macs": fewer,
                **{key: other.to_dict()[key] for key in ("median_ms", "p10_ms", "p90_ms")},
                "times_as_fast": faster(base, other),
            }
        )
    return {"name": name, "dtype": "float16", "rows": rows, "refused": {"csr": "no kernel for half precision."}}


def scored() -> dict:
    """Return the part "scoring" of `sd15_operators`."""
    operators = [
        {"path": f"down.{i}", "kind": "resnet", "macs": 10, "order": i, "seconds": 2.0, "of_generation": 0.9}
        for i in range(24)
    ]
    return {
        "latents": 8,
        "steps": 10,
        "guidance": 7.5,
        "batch": 8,
        "size": 64,
        "dtype": "float16",
        "params": 859_520_964,
        "macs": 401_000_000_000,
        "generation_seconds": [2.0, 2.0],
        "floor_seconds": 50.0,
        "seconds": 56.0,
        "of_floor": 1.12,
        "peak_generation_mib": 4000.0,
        "peak_scoring_mib": 4608.0,
        "weights_mib": 2048.0,
        "operators": operators,
    }


def parts() -> dict[str, dict[str, dict]]:
    """Return stage -> parts, all of them measured."""
    whole, small = latency(30.0, 30), latency(24.0, 30)
    cuts = {"whole": whole.to_dict(), "cut": small.to_dict(), **compared(whole, small, 0.7)}
    cuts.pop("latency")
    settings = [(steps, batch) for steps in (50, 20) for batch in (1, 4)]
    compiled = {"compile_seconds": 61.0, "graphs": 34, "eager_unpruned": latency(1200.0).to_dict()}
    big = {"steps": 20, "pixels": 1024, "dtype": "float16", "guidance": 4.5}
    base = latency(5000.0)
    narrow = {
        "batch": 2,
        "unpruned": whole.to_dict(),
        "rows": [{"ratio": 0.5, "macs_ratio": 0.3, **compared(whole, latency(12.0, 30), 0.3)}],
    }
    suite = {"passed": 40, "failed": [], "skipped": 2, "seconds": 71.4}
    return {
        "tests": {"pytest": suite},
        "tests_compiled": {"pytest": {**suite, "passed": 7, "failed": ["test_graphs_replay"]}},
        "sd15_speed": {f"{steps} steps, batch {batch}": timed(steps, batch) for steps, batch in settings},
        "sd15_compiled": {"20 steps, batch 1": timed(20, 1, **compiled)},
        "sd15_training": dict(
            [
                trained(50, "best", True),
                trained(50, "published", True),
                trained(20, "best", False, OOM),
                trained(50, "best", True, BROKEN, dtype="float32"),
            ]
        ),
        "sd15_operators": {
            "scoring": scored(),
            "cut": {
                "removed": 0.3,
                "macs_ratio": 0.7,
                "operators": 31,
                "rows": [{"batch": 1, **cuts}, {"batch": 8, **cuts}],
            },
        },
        "big_models": {
            "PixArt-alpha, 20 steps": {
                **big,
                "model": "PixArt-alpha",
                "unpruned": base.to_dict(),
                "rows": [way("uniform", 0.4, base)],
            },
            "DiT-XL/2, 250 steps": {**big, "steps": 250, "pixels": 256, "model": "DiT-XL/2", **OOM},
        },
        "zeros": {"linear 1280 to 320, 8192 tokens": layer_rows("linear"), "UNet with fewer channels": narrow},
        "throughput": {
            "unet": {"batch": 32, "steps": 200, "dtype": "float32", "images_per_second": 2345.6},
            "vae": {"batch": 24, "steps": 200, "dtype": "bfloat16", "images_per_second": 1200.0},
        },
    }


def run(of: Mapping[str, dict], hardware: str = "NVIDIA H100 80GB HBM3", n: int = 3) -> dict:
    """Return a run on a GPU."""
    stamp = {
        "hardware": hardware,
        "device": "cuda",
        "cpu_threads": 8,
        "os": "Linux",
        "python": "3.12.3",
        "versions": {"torch": "2.11.0+cu130", "pruning_lib": "0.1.0"},
        "seeds": [0],
        "n": n,
        "date": "2026-12-01T10:00:00+00:00",
        "commit": "0" * 40,
        "dirty": False,
        "gpu": {"driver": "580.65", "cuda": "13.0", "memory_mib": 81559, "clocks_mhz": {"sm": 1980}},
    }
    return {"hardware": hardware, "passport": stamp, "unfinished": "", "dry": False, "parts": dict(of)}


def one(*found: tuple[str, dict]) -> list[dict]:
    """Return the runs of a record with one GPU and these parts."""
    return [run(dict(found))]


def write(folder: Path, stage: str, runs: Sequence[dict]) -> Path:
    """Write the record of a stage."""
    return save_record(folder / f"gpu_{stage}.json", f"gpu_{stage}", {"runs": list(runs)}, runs[-1]["passport"])


def write_all(folder: Path, hardware: Sequence[str], change: Callable[[dict], dict] = lambda found: found) -> None:
    """Write the records of all stages, with a run for each GPU."""
    for stage, found in change(parts()).items():
        write(folder, stage, [run(found, name) for name in hardware])
