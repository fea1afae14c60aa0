"""Record of chapters 7 to 9: what every operator of emoji-sd is worth.

    python benchmarks/operator_scores.py --kinds default     # without single linear layers and norms
    python benchmarks/operator_scores.py                     # all; goes on from the former

Writes the record operator_scores.json, one row per operator, and operator_scores.safetensors, the same as `Scores`
with averages and standard deviations. About 18 minutes on one CPU core; it may be interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from judged import spread

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.operators.find import DEFAULT_KINDS, KINDS, find_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.records import check_writable

RESULTS = Path(__file__).resolve().parents[1] / "pruning_book" / "records"
MODEL = "emoji-sd"
NUM_LATENTS, SEED = 16, 0
SAMPLING = {"steps": 8, "guidance_scale": 3.0, "seed": SEED}


def prompts(count: int = NUM_LATENTS) -> list[str]:
    """Return captions spread over all that the model knows."""
    known = pb.captions(MODEL)
    return [known[i] for i in spread(count, len(known))]


def main(path: Path, work: Path, kinds: tuple[str, ...]) -> None:
    """Score, and write both files."""
    check_writable(path)
    pipe = pl.load(MODEL)
    scores = score_operators(
        pipe, prompts(), kinds=kinds, num_latents=NUM_LATENTS, folder=work / "scores", keep_latents=True, **SAMPLING
    )
    saved = scores.save(path.with_suffix(".safetensors"))
    data = {
        "rows": scores.rows(),
        "model": MODEL,
        "sampling": scores.sampling,
        "kinds": list(kinds),
        "found": len(find_operators(pipe.unet, tuple(KINDS))),
        "broken": scores.broken,
        "seconds": scores.seconds,
        "generation_seconds": scores.original.seconds,
        "file": saved.name,
        "macs": pl.count_macs(pipe.unet).macs,
        "params": pl.count_macs(pipe.unet).params,
        "macs_convention": "with attention products, batch 1, one call",
    }
    passport = pl.passport(seeds=list(range(SEED, SEED + NUM_LATENTS)), n=NUM_LATENTS)
    print(pl.save_record(path, "operator_scores", data, passport))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "operator_scores.json")
    parser.add_argument("--work", type=Path, default=Path("_build") / "operator_scores")
    parser.add_argument("--kinds", choices=("all", "default"), default="all")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    main(arguments.out, arguments.work, tuple(KINDS) if arguments.kinds == "all" else DEFAULT_KINDS)
