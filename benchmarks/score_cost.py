"""Record of chapter 9: what scoring costs, against the k + 1 generations that it cannot do without.

The record in the repository was made when `score_operators` could share the first step between operators, and holds
both of its forms. Needs a quiet machine; four minutes on one core.
"""

from __future__ import annotations

import tempfile

import pruning_lib as pl
from pruning_lib.latency import measure_latency, ratio
from pruning_lib.operators.find import DEFAULT_KINDS, find_operators
from pruning_lib.operators.plan import plan_for
from pruning_lib.operators.remove import change_operators

from .common import MODEL, Record, latents
from .operator_scores import SAMPLING, prompts

EVERY, NUM_LATENTS = 8, 8


def measure(rounds: int = 4) -> Record:
    """Time both in turn."""
    pipe, asked = pl.load(MODEL), prompts(NUM_LATENTS)
    operators = find_operators(pipe.unet, DEFAULT_KINDS)[::EVERY]
    plans = [plan_for([op], operators) for op in operators.paths]

    def generate() -> None:
        latents(pipe, asked, SAMPLING["steps"])

    def plain() -> None:
        generate()
        for plan in plans:
            with change_operators(pipe.unet, plan):
                generate()

    def score() -> None:
        options = {"operators": operators, "num_latents": NUM_LATENTS, "progress": False, **SAMPLING}
        with tempfile.TemporaryDirectory() as folder:
            pl.score_operators(pipe, asked, folder=folder, **options)

    times = measure_latency({"plain": plain, "score, nothing shared": score}, repeats=rounds, warmup=1, device="cpu")
    data = {
        **{"model": MODEL, "operators": len(operators), "num_latents": NUM_LATENTS, **SAMPLING},
        "seconds": {name: found.median_ms / 1000 for name, found in times.items()},
        "latency": {name: found.to_dict() for name, found in times.items()},
        "relative": {"score, nothing shared": ratio(times["score, nothing shared"], times["plain"]).to_dict()},
        "rounds": rounds,
    }
    return Record(data, seeds=[0], n=rounds)
