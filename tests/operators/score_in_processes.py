"""What two processes do together in test_processes.py; each writes what it got."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from tiny_pipes import PROMPTS, pipe_of

from pruning_lib.operators.score import score_operators
from pruning_lib.sampling import LatentSampler

SAMPLING = {"num_latents": 2, "steps": 2, "guidance_scale": 2.0, "progress": False}


def score(folder: Path | None = None, most: int = 1000) -> dict:
    """Score the residual blocks; a generation beyond `most` runs out of memory."""
    draw, drawn = LatentSampler.draw, []

    def counted(sampler):
        drawn.append(sampler)
        if len(drawn) > most:
            raise MemoryError("no room")
        return draw(sampler)

    LatentSampler.draw = counted
    try:
        scores = score_operators(pipe_of("text"), PROMPTS["text"], kinds=["resnet"], folder=folder, **SAMPLING)
        found = {"values": scores.values(), "mse": scores.values("mse")}
    except MemoryError as error:
        found = {"error": str(error)}
    finally:
        LatentSampler.draw = draw
    return {**found, "drawn": len(drawn), "files": len(list(folder.glob("*.resnets.*.safetensors"))) if folder else 0}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    folders = [out / f"{name}-{rank}" for name in "ab"]  # as on two machines without a common disk
    full = {"most": 3} if rank else {}  # only the second runs out of memory
    results = {"whole": score(folders[0]), "full": score(folders[1], **full), "goes on": score(folders[1])}
    (out / f"rank-{rank}.json").write_text(json.dumps(results))
