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
    "load": "zoo.hub",
    "models": "zoo.models",
    "load_clip": "zoo.judge",
    "captions": "zoo.judge",
    "training_images": "zoo.judge",
    "new_concepts": "zoo.unseen",
    "inspect_checkpoint": "weights.checkpoint",
    "slim": "weights.slimming",
    "prune_magnitude": "weights.magnitude",
    "prune_structured": "weights.structured",
    "remove_blocks": "weights.blocks",
    "find_operators": "operators.find",
    "score_operators": "operators.score",
    "remove_operators": "operators.remove",
    "load_pruned": "operators.saving",
    "units_of": "steps.units",
    "grid_of": "steps.grid",
    "Schedule": "steps.schedule",
    "train_pruner": "steps.training",
    "finetune": "training.finetune",
    "denoiser_on_meta": "zoo.architectures",
    "count_macs": "measure.macs",
    "measure_latency": "measure.latency",
    "load_record": "measure.record",
    "save_record": "measure.record",
    "passport": "measure.record",
}

__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from .measure.latency import measure_latency
    from .measure.macs import count_macs
    from .measure.record import load_record, passport, save_record
    from .operators.find import find_operators
    from .operators.remove import remove_operators
    from .operators.saving import load_pruned
    from .operators.score import score_operators
    from .steps.grid import grid_of
    from .steps.schedule import Schedule
    from .steps.training import train_pruner
    from .steps.units import units_of
    from .training.finetune import finetune
    from .weights.blocks import remove_blocks
    from .weights.checkpoint import inspect_checkpoint
    from .weights.magnitude import prune_magnitude
    from .weights.slimming import slim
    from .weights.structured import prune_structured
    from .zoo.architectures import denoiser_on_meta
    from .zoo.hub import load
    from .zoo.judge import captions, load_clip, training_images
    from .zoo.models import models
    from .zoo.unseen import new_concepts

__getattr__, __dir__ = lazy_names(__name__, _WHERE)
