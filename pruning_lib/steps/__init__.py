"""The third grain: single units of the denoiser at single denoising steps, run or reused (DiP-GO).

`units_of` lists what can be reused, `grid_of` lays the units out over the steps of a sampler, a `Schedule` says which
cells of that grid are computed, and `schedule.applied(pipe)` runs the pipeline so.  Nothing here knows the zoo;
pipelines come in as arguments.  Names are imported when used.
"""

from __future__ import annotations

from .._lazy import lazy_names

_WHERE: dict[str, str] = {
    "GRAINS": "units",
    "Unit": "units",
    "Units": "units",
    "units_of": "units",
    "Wiring": "wiring",
    "trace_wiring": "wiring",
    "Grid": "grid",
    "grid_of": "grid",
    "live_cells": "live",
    "paper_cascade": "live",
    "Schedule": "schedule",
    "attach": "hooks",
    "Attached": "hooks",
    "Control": "hooks",
    "SuperNet": "supernet",
    "PrunerNetwork": "pruner",
    "GateTable": "pruner",
    "keep_probability": "pruner",
    "straight_through": "pruner",
    "LOSSES": "losses",
    "picture_loss": "losses",
    "cell_shares": "sparsity",
    "own_shares": "sparsity",
    "sparsity_loss": "sparsity",
    "within_budget": "sparsity",
    "gate_gradients": "gradient",
    "train_pruner": "training",
    "TrainedPruner": "trained",
    "PrunerConfig": "train_config",
    "PrunerCollapseError": "collapse",
    "RECIPES": "train_config",
    "Look": "look",
    "from_scores": "search",
    "uniform": "baselines",
    "deepcache": "baselines",
    "FewerSteps": "fewer_steps",
    "Evaluator": "evaluate",
    "cell_worth": "held_gradient",
    "reusing": "reuse",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_names(__name__, _WHERE)
