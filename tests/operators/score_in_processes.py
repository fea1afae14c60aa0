"""What two processes do together in test_processes.py; each writes what it got."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tiny_pipes import PROMPTS, pipe_of

from pruning_lib.operators.score import score_operators
from pruning_lib.sampling import LatentSampler

OUT, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
drawn, limit, draw = [], [1000], LatentSampler.draw_part


def counted(self, index, around=None):
    drawn.append(index)
    if len(drawn) > limit[0]:
        raise MemoryError("no room")
    return draw(self, index, around)


LatentSampler.draw_part = counted


def score(folder: str, most: int = 1000) -> dict:
    drawn.clear()
    limit[0] = most
    place = OUT / f"{folder}-{RANK}"  # as on two machines without a common disk
    sampling = {"num_latents": 2, "steps": 2, "guidance_scale": 2.0, "progress": False}
    try:
        scores = score_operators(pipe_of("text"), PROMPTS["text"], kinds=["resnet"], folder=place, **sampling)
        found = {"values": scores.values(), "mse": scores.values("mse")}
    except MemoryError as error:
        found = {"error": str(error)}
    return {**found, "drawn": len(drawn), "files": len(list(place.glob("*.resnets.*.safetensors")))}


results = {
    "whole": score("a"),
    "full": score("b", most=3 if RANK else 1000),  # only the second runs out of memory
    "goes on": score("b"),
}
(OUT / f"rank-{RANK}.json").write_text(json.dumps(results))
