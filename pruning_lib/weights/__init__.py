"""The first grain: single weights, channels, and what a checkpoint need not carry.

Nothing here knows the zoo; models come in as arguments.  Names are imported when used.
"""

from __future__ import annotations

from .._lazy import lazy_names

_WHERE: dict[str, str] = {
    "inspect_checkpoint": "checkpoint",
    "CheckpointReport": "checkpoint",
    "slim": "slimming",
    "SlimReport": "slimming",
    "to_ldm": "ldm_layout",
    "ldm_ema": "ldm_layout",
    "CheckpointError": "pickle_names",
    "UnsafePickleError": "pickle_names",
    "CastError": "slim_plan",
    "prune_magnitude": "magnitude",
    "magnitude_masks": "magnitude",
    "SCOPES": "magnitude",
    "Pruned": "masks",
    "prune_nm": "nm",
    "to_semi_structured": "nm",
    "Sensitivity": "sensitivity",
    "measure_sensitivity": "sensitivity",
    "estimate_sensitivity": "sensitivity",
    "prunable_weights": "select",
    "LEAVE_ALONE": "select",
    "prune_structured": "structured",
    "narrow_widths": "structured",
    "Narrowed": "structured",
    "accumulate_gradients": "taylor",
    "remove_blocks": "blocks",
    "Shortened": "blocks",
    "save_sparse": "sparse_file",
    "load_sparse": "sparse_file",
    "sparse_bytes": "sparse_plan",
    "dense_bytes": "sparse_plan",
    "to_csr": "sparse_speed",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_names(__name__, _WHERE)
