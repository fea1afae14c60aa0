"""Record of chapters 7 to 9: what every operator of emoji-sd is worth, and `Scores` in a file beside the record.

python -m benchmarks operator_scores --kinds default     # without single linear layers and norms
python -m benchmarks operator_scores                     # all; goes on from the former; 18 minutes on one CPU core
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.operators.find import DEFAULT_KINDS, KINDS, find_operators

from .common import MACS_CONVENTION, MODEL, RESULTS, Record, spread

SCORES = RESULTS / "operator_scores.safetensors"
NUM_LATENTS, SEED = 16, 0
SAMPLING = {"steps": 8, "guidance_scale": 3.0, "seed": SEED}


def prompts(count: int = NUM_LATENTS) -> list[str]:
    """Return captions spread over all that the model knows."""
    return spread(pb.captions(MODEL), count)


def measure(out: Path, work: Path, kinds: Literal["all", "default"] = "all") -> Record:
    """Score, and save the scores beside the record."""
    kinds = tuple(KINDS) if kinds == "all" else DEFAULT_KINDS
    pipe = pl.load(MODEL)
    how = {"num_latents": NUM_LATENTS, "folder": work / "scores", "keep_latents": True, **SAMPLING}
    scores = pl.score_operators(pipe, prompts(), kinds=kinds, **how)
    saved, size = scores.save(out.with_suffix(".safetensors")), pl.count_macs(pipe.unet)
    data = {
        **{"rows": scores.rows(), "model": MODEL, "sampling": scores.sampling, "kinds": list(kinds)},
        **{"found": len(find_operators(pipe.unet, tuple(KINDS))), "broken": scores.broken, "seconds": scores.seconds},
        **{"generation_seconds": scores.original.seconds, "file": saved.name},
        **{"macs": size.macs, "params": size.params, "macs_convention": MACS_CONVENTION},
    }
    return Record(data, seeds=list(range(SEED, SEED + NUM_LATENTS)), n=NUM_LATENTS)
