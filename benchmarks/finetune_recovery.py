"""Record of chapter 6: how pictures come back while a pruned model is trained on its own training pictures.

Three starts with the same data order, noise and learning rate, judged at eight moments with averaged weights: narrow
from the pruned weights, narrow from random ones, and whole with most weights held at zero. 15 minutes on one CPU core.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

import pruning_book as pb
import pruning_lib as pl

from .common import MODEL, Record, judge, once, spread

WIDTHS, SPARSITY = (16, 48, 64, 64), 0.8
EVERY, SEED = 100, 0
FINETUNE = {"steps": 700, "batch": 16, "lr": 1e-3, "seed": SEED}
N, SAMPLER = 64, {"steps": 8, "guidance": 3.0}
RUNS = {
    "pruned": "narrow, from the pruned weights",
    "scratch": "narrow, from random weights",
    "held": f"whole, {SPARSITY:.0%} zeros held",
}


def train_one(name: str, folder: Path) -> dict:
    """Train one start; return the figures of each moment."""
    pipe, clip, captions = pl.load(MODEL), pb.load_clip(MODEL), pb.captions(MODEL)
    asked = spread(captions, N)
    wanted = judge(pipe, clip, asked, captions, None, **SAMPLER).pictures
    after_step = None
    if name == "held":
        after_step = pl.prune_magnitude(pipe.unet, SPARSITY).reapply
    else:
        small = pl.prune_structured(pipe.unet, widths=WIDTHS).unet
        if name == "scratch":
            torch.manual_seed(SEED)
            small = UNet2DConditionModel.from_config(dict(small.config))
        pipe.unet = small
    whole = pl.count_macs(pipe.unet)

    def validate(step: int) -> dict[str, object]:
        return {"judged": judge(pipe, clip, asked, captions, wanted, **SAMPLER).intervals()}

    often = {"validate_every": EVERY, "checkpoint_every": EVERY}
    told = {"after_step": after_step, "validate": validate, "folder": folder, **often, **FINETUNE}
    log = pl.finetune(pipe, pb.training_images(MODEL), captions, **told)
    steps, judged = log.curve("judged")
    about = {"name": name, "label": RUNS[name], "params": whole.params, "macs": whole.macs}
    return {**about, "steps": steps, "judged": judged, "loss": log.curve(), "seconds": log.curve("seconds")[1][-1]}


def measure(work: Path) -> Record:
    """Train all starts."""
    runs = [once(work / f"{name}.json", train_one, name, work / name) for name in RUNS]
    data = {"runs": runs, "model": MODEL, "widths": list(WIDTHS), "sparsity": SPARSITY}
    data |= {"sampler": SAMPLER, "finetune": FINETUNE}
    return Record(data, seeds=[SEED], n=N)
