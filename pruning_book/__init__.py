"""The book's own room: what its chapters and benchmarks need and an engineer's pipeline does not."""

from __future__ import annotations

from pruning_lib._lazy import lazy_names

_WHERE = {
    "start": "start",
    "glue": "output",
    "must_fail": "output",
    "picture": "output",
    "table": "output",
    "verdict": "verdicts",
    "captions": "judge",
    "load_clip": "judge",
    "new_concepts": "judge",
    "training_images": "judge",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_names(__name__, _WHERE)
