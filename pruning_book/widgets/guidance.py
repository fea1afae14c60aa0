"""The explorer of chapter 1: one prompt, one noise, more and more steps, stronger and stronger guidance."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pruning_lib.macs import count_macs
from pruning_lib.quality import clip_score

from .sweep import SweepExplorer

MODEL = "emoji-sd"
SEED = 7


def redraw(pipe: Any, prompt: str, steps: int, guidance: float, seed: int = SEED) -> Image.Image:
    """Return the picture of one stop, from noise that the CPU draws for every device; a guidance of 1 is none."""
    noise = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=noise).images[0]


def total_macs(macs: int, steps: int, guidance: float) -> int:
    """Return the UNet's MACs for a picture: `macs` a call, one prompt a step, two with guidance."""
    return macs * steps * (2 if guidance > 1 else 1)


def first_explorer(
    record: str | Path = "first_explorer",
    *,
    load: Callable[[str], Any] | None = None,
    load_clip: Callable[[str], Any] | None = None,
) -> SweepExplorer:
    """Return the explorer of chapter 1, from the record that `benchmarks/first_explorer.py` writes.

    With `load`, as `pruning_lib.load`, each stop is drawn and timed anew where a kernel is there; `load_clip`, as
    `pruning_book.load_clip`, scores the new pictures too.
    """

    @cache
    def live() -> tuple[Any, int, Any]:
        pipe = load(MODEL)
        redraw(pipe, "lion", 1, 3.0)  # the first call allocates; it is not timed
        return pipe, count_macs(pipe.unet).macs, load_clip(MODEL) if load_clip else None

    def on_change(stop: dict) -> dict:
        pipe, macs, clip = live()
        begin = time.perf_counter()
        image = redraw(pipe, **stop)
        metrics = {
            "latency_ms": 1000 * (time.perf_counter() - begin),
            "unet_gmacs": total_macs(macs, stop["steps"], stop["guidance"]) / 1e9,
        }
        if clip is not None:
            metrics["clip_score"] = clip_score(clip, [image], [stop["prompt"]]).item()
        return {"image": image, "metrics": metrics}

    return SweepExplorer.from_record(
        record,
        "first-explorer",
        title="More steps, stronger guidance: what changes, and what does it cost?",
        picture="64 x 64 image from emoji-sd",
        start={"steps": 8, "guidance": 3.0},
        baseline={"steps": 50},
        chart=("latency_ms", "clip_score"),
        on_change=on_change if load else None,
    )
