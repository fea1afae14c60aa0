"""What two processes do together in test_processes.py; started by `accelerate launch` or torchrun's variables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from small_pipe import copy_of, small_unet, with_unet

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.finetuning.finetune import finetune


def run(folder: Path, batch: int, steps: int, **more: object) -> tuple[dict, list]:
    """Fine-tune a small pipeline with a teacher; the two processes start from different weights on purpose."""
    pipe = with_unet(pl.load("emoji-sd"), small_unet())
    small = copy_of(pipe)
    small.unet.mid_block = None
    if int(more.pop("spoil", 0)):
        with torch.no_grad():
            small.unet.conv_in.weight.add_(1)
    log = finetune(
        small,
        pb.training_images()[:4],
        pb.captions()[:4],
        steps=steps,
        batch=batch,
        folder=folder,
        lr=1e-3,
        warmup=1,
        decay=0,
        log_every=1,
        checkpoint_every=2,
        teacher=pipe,
        distill_output=1,
        distill_features=1,
        validate_every=2,
        **more,
    )
    return small.unet.state_dict(), log.lines


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, batch, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rank, seen = int(os.environ["RANK"]), []
    validate = lambda step: seen.append(step) or {"looked": float(step)}  # noqa: E731
    run(out / "run", batch, steps // 2, spoil=rank, validate=validate)
    weights, lines = run(out / "run", batch, steps, spoil=rank, validate=validate)  # from the checkpoint
    torch.save({"weights": weights, "lines": lines, "validated": seen}, out / f"{rank}.pt")
