"""A short training of a small pipeline, alone or, as a program, in one of several processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from tiny import laid_out
from tiny_pipes import pipe_of

from pruning_lib.steps.training import TrainedPruner, train_pruner

PROMPTS = ["lion", "pizza", "red heart", "cat face", "rocket"]
SMALL = {
    "best": {"iterations": 3, "batch": 2, "keep_macs": (0.8, 0.5)},
    "published": {"iterations": 3, "batch": 1, "width": 16, "loss": "l1", "on_collapse": "go on", "lr": 0.02},
}


def small_run(recipe: str = "best", pipe=None, prompts: list[str] = PROMPTS, **more: object) -> TrainedPruner:
    """Train for a few iterations of a few steps."""
    given = {"steps": 3, "guidance_scale": 1 if recipe == "published" else 3, **SMALL[recipe], **more}
    pipe = pipe or pipe_of("text")
    return train_pruner(pipe, prompts, recipe=recipe, **{"grain": laid_out(pipe, given["steps"]), **given})


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, rank, seen = Path(sys.argv[1]), int(os.environ["RANK"]), []
    found = small_run(batch=1, folder=out / "run", callback=lambda look: seen.append(look.iteration))
    again = small_run(batch=1, folder=out / "run", callback=lambda look: seen.append(look.iteration))  # all is done
    assert torch.equal(found.tables, again.tables)
    found.save(out / f"{rank}.safetensors")
    torch.save(seen, out / f"{rank}.pt")
