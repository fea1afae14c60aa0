"""Pruning for diffusion models, in a form people can read.

    import pruning_lib as pl

    pipe = pl.load("emoji-sd")
    image = pipe("lion", num_inference_steps=25, guidance_scale=3).images[0]
    print(pl.count_macs(pipe.unet).table())

The names below are the ones a reader meets first; each lives in the module named beside it and is imported when used,
so that `import pruning_lib` itself costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_NAMES = {
    "loading": ("load", "models", "denoiser_on_meta"),
    "checkpoint.inspect": ("inspect_checkpoint",),
    "checkpoint.slim": ("slim",),
    "weights.magnitude": ("prune_magnitude",),
    "structured.structured": ("prune_structured",),
    "structured.blocks": ("remove_blocks",),
    "operators.find": ("find_operators",),
    "operators.score": ("score_operators",),
    "operators.scores": ("Scores",),
    "operators.plan": ("Plan",),
    "operators.remove": ("remove_operators",),
    "steps.units": ("units_of",),
    "steps.schedule": ("grid_of", "Schedule"),
    "steps.training": ("train_pruner",),
    "steps.search": ("search_schedule",),
    "finetuning.finetune": ("finetune",),
    "macs": ("count_macs",),
    "latency": ("measure_latency",),
    "records": ("load_record", "save_record", "passport"),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from .checkpoint.inspect import inspect_checkpoint
    from .checkpoint.slim import slim
    from .finetuning.finetune import finetune
    from .latency import measure_latency
    from .loading import denoiser_on_meta, load, models
    from .macs import count_macs
    from .operators.find import find_operators
    from .operators.plan import Plan
    from .operators.remove import remove_operators
    from .operators.score import score_operators
    from .operators.scores import Scores
    from .records import load_record, passport, save_record
    from .steps.schedule import Schedule, grid_of
    from .steps.search import search_schedule
    from .steps.training import train_pruner
    from .steps.units import units_of
    from .structured.blocks import remove_blocks
    from .structured.structured import prune_structured
    from .weights.magnitude import prune_magnitude


def lazily(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names are imported from `where`, below it, when used."""

    def __getattr__(name: str) -> object:
        module = sys.modules[package]
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}. It has: {', '.join(module.__all__)}.")
        value = getattr(import_module(f".{where[name]}", package), name)
        setattr(module, name, value)
        return value

    return __getattr__, lambda: sorted(sys.modules[package].__all__)


__getattr__, __dir__ = lazily(__name__, _WHERE)
