"""Pruning for diffusion models, in a form people can read.

    import pruning_lib as pl

    pipe = pl.load("emoji-sd")
    image = pipe("lion", num_inference_steps=25, guidance_scale=3).images[0]
    print(pl.count_macs(pipe.unet).table())

The names below are the ones a reader meets first; each lives in the module named beside it and is imported when used,
so that `import pruning_lib` itself costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names

__version__ = "0.1.0"

_WHERE = {
    "load": "loading",
    "models": "loading",
    "inspect_checkpoint": "checkpoint.inspect",
    "slim": "checkpoint.slim",
    "prune_magnitude": "weights.magnitude",
    "prune_structured": "structured.structured",
    "remove_blocks": "structured.blocks",
    "find_operators": "operators.find",
    "score_operators": "operators.score",
    "remove_operators": "operators.remove",
    "load_pruned": "operators.remove",
    "units_of": "steps.units",
    "grid_of": "steps.schedule",
    "Schedule": "steps.schedule",
    "train_pruner": "steps.training",
    "finetune": "finetuning.finetune",
    "denoiser_on_meta": "loading",
    "count_macs": "macs",
    "measure_latency": "latency",
    "load_record": "records",
    "save_record": "records",
    "passport": "records",
}

__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:

    from .checkpoint.inspect import inspect_checkpoint
    from .checkpoint.slim import slim
    from .finetuning.finetune import finetune
    from .latency import measure_latency
    from .loading import denoiser_on_meta, load, models
    from .macs import count_macs
    from .operators.find import find_operators
    from .operators.remove import load_pruned, remove_operators
    from .operators.score import score_operators
    from .records import load_record, passport, save_record
    from .steps.schedule import Schedule, grid_of
    from .steps.training import train_pruner
    from .steps.units import units_of
    from .structured.blocks import remove_blocks
    from .structured.structured import prune_structured
    from .weights.magnitude import prune_magnitude

__getattr__, __dir__ = lazy_names(__name__, _WHERE)
