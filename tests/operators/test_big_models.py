"""A dry run on the papers' models, layer for layer at reduced width: score, plan, remove, fine-tune, save, load."""

from __future__ import annotations

import pytest
import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.stand_in import stand_in
from pruning_lib.denoisers import denoiser_of
from pruning_lib.operators.remove import load_pruned
from pruning_lib.operators.score import LatentSampler

# Some of each kind that matters, early and late; PixArt's pipeline would round a size to one it was trained for.
SD15 = ["down_blocks.2.attentions.1", "mid_block.resnets.0", "up_blocks.0.upsamplers.0"]
PIXART = ["transformer_blocks.5", "transformer_blocks.20.attn2", "transformer_blocks.27.ff"]


@pytest.mark.parametrize(
    ("name", "paths", "options"), [("sd-1.5", SD15, {}), ("pixart-alpha", PIXART, {"use_resolution_binning": False})]
)
def test_from_scores_to_a_saved_pipeline(name, paths, options, tmp_path):
    pipe, how = stand_in(name), {"num_latents": 2, "steps": 2, "options": options}
    whole = denoiser_of(pipe)[1]
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    scores = pl.score_operators(pipe, ["lion"], operators=paths, progress=False, **how)
    assert all(value > 0 for value in scores.values().values()), "random weights leave nothing without effect"
    small = pl.remove_operators(pipe, scores.lowest(2))
    assert all(torch.equal(before[key], value) for key, value in whole.state_dict().items()), "the given one stays"
    assert pl.count_macs(denoiser_of(small)[1]).macs < pl.count_macs(whole).macs
    if name == "sd-1.5":  # text, and one text encoder: what finetune takes
        start = [p.detach().clone() for p in small.unet.parameters()]
        distilled = {"teacher": pipe, "distill_output": 1, "distill_features": 1, "checkpointing": True}
        training = {"steps": 1, "batch": 1, "ema": 0, "warmup": 1, **distilled}
        pl.finetune(small, pb.training_images()[:1], pb.captions()[:1], **training)
        moved = [not torch.equal(a, b) for a, b in zip(start, small.unet.parameters(), strict=True)]
        assert sum(moved) > 0.9 * len(moved)
    small.save_pretrained(tmp_path)
    again = load_pruned(tmp_path)
    wanted, found = denoiser_of(small)[1].state_dict(), denoiser_of(again)[1].state_dict()
    assert type(again) is type(pipe) and list(wanted) == list(found)
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert torch.equal(*(LatentSampler(p, ["lion"], **how).draw() for p in (small, again)))
