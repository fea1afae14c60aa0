"""What two processes do together in test_processes.py: fine-tune, and score operators; each writes what it got."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from small_pipe import CAPTIONS, IMAGES, copy_of, small_pipe
from tiny_pipes import PROMPTS, pipe_of

from pruning_lib.finetuning.finetune import finetune
from pruning_lib.operators.score import LatentSampler, score_operators


def tune(folder: Path, batch: int, steps: int, spoil: int = 0, **more: object) -> tuple[dict, list]:
    """Fine-tune a small pipeline with a teacher; the two processes start from different weights on purpose."""
    pipe = small_pipe()
    small = copy_of(pipe)
    small.unet.mid_block = None
    with torch.no_grad():
        small.unet.conv_in.weight.add_(spoil)
    how = {"lr": 1e-3, "warmup": 1, "decay": 0, "log_every": 1, "checkpoint_every": 1, "validate_every": 1}
    how |= {"teacher": pipe, "distill_output": 1, "distill_features": 1}
    log = finetune(small, IMAGES, CAPTIONS, steps=steps, batch=batch, folder=folder, **how, **more)
    return small.unet.state_dict(), log.lines


def score(folder: Path | None = None, most: int = 1000) -> dict:
    """Score the residual blocks; a generation beyond `most` runs out of memory."""
    draw, drawn = LatentSampler.draw, []

    def counted(sampler):
        drawn.append(sampler)
        if len(drawn) > most:
            raise MemoryError("no room")
        return draw(sampler)

    LatentSampler.draw = counted
    how = {"num_latents": 2, "steps": 1, "guidance_scale": 2.0, "progress": False}
    try:
        scores = score_operators(pipe_of("text"), PROMPTS["text"], kinds=["resnet"], folder=folder, **how)
        found = {"values": scores.values()}
    except MemoryError as error:
        found = {"error": str(error)}
    LatentSampler.draw = draw
    return {**found, "drawn": len(drawn), "files": folder and len(list(folder.glob("*.resnets.*.safetensors")))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, rank, seen = Path(sys.argv[1]), int(os.environ["RANK"]), []
    look = {"validate": lambda step: seen.append(step) or {"looked": float(step)}}
    tune(out / "run", 2, 1, rank, **look)
    weights, lines = tune(out / "run", 2, 2, rank, **look)  # from the checkpoint
    torch.save({"weights": weights, "lines": lines, "validated": seen}, out / f"{rank}.pt")
    folder = out / f"scores-{rank}"  # as on two machines without a common disk
    full = score(folder, 3 if rank else 1000)  # only the second runs out of memory
    (out / f"{rank}.json").write_text(json.dumps({"full": full, "goes on": score(folder)}))
