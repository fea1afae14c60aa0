"""A dry run on the papers' models, layer for layer at reduced width: score, plan, remove, fine-tune, save, load."""

from __future__ import annotations

import pytest
import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.stand_in import stand_in
from pruning_lib.denoisers import denoiser_of
from pruning_lib.operators.plan import Plan
from pruning_lib.operators.remove import load_pruned
from pruning_lib.operators.score import score_operators
from pruning_lib.operators.scores import Scores
from pruning_lib.sampling import LatentSampler

PROMPTS = {"sd-1.5": ["lion", "pizza"], "pixart-alpha": ["lion"], "dit-xl-2-256": [207, 360], "ldm-celebahq-256": None}
# Some of each kind that matters, early and late.
PATHS = {
    "sd-1.5": ["down_blocks.2.attentions.1", "mid_block.resnets.0", "up_blocks.0.upsamplers.0"],
    "pixart-alpha": ["transformer_blocks.5", "transformer_blocks.20.attn2", "transformer_blocks.27.ff"],
    "dit-xl-2-256": ["transformer_blocks.5", "transformer_blocks.20.attn1", "transformer_blocks.27.ff"],
    "ldm-celebahq-256": ["down_blocks.1.attentions.0", "down_blocks.1.resnets.1", "up_blocks.2.upsamplers.0"],
}
# PixArt's pipeline would round a size to one of those it was trained for.
OPTIONS = {"pixart-alpha": {"use_resolution_binning": False}}


@pytest.mark.parametrize("name", PROMPTS)
def test_from_scores_to_a_saved_pipeline(name, tmp_path):
    pipe = stand_in(name)
    whole = denoiser_of(pipe)[1]
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    how = {"num_latents": 2, "steps": 2, "options": OPTIONS.get(name)}
    scores = score_operators(pipe, PROMPTS[name], operators=PATHS[name], progress=False, **how)
    assert all(value > 0 for value in scores.values().values()), "random weights leave nothing without effect"
    plan = Scores.load(scores.save(tmp_path / "scores.safetensors")).lowest(2)
    assert plan.paths == scores.ranked()[:2]
    small = pl.remove_operators(pipe, Plan.load(plan.save(tmp_path / "plan.json")))
    kept = {key: torch.equal(before[key], value) for key, value in whole.state_dict().items()}
    assert all(kept.values()), "the given pipeline stays as it is"
    assert pl.count_macs(denoiser_of(small)[1]).macs < pl.count_macs(whole).macs

    if name == "sd-1.5":  # text, and one text encoder: what finetune takes
        start = [p.detach().clone() for p in small.unet.parameters()]
        distilled = {"teacher": pipe, "distill_output": 1, "distill_features": 1, "checkpointing": True}
        options = {"steps": 1, "batch": 1, "ema": 0, "warmup": 1, **distilled}
        pl.finetune(small, pb.training_images()[:1], pb.captions()[:1], **options)
        moved = [not torch.equal(a, b) for a, b in zip(start, small.unet.parameters(), strict=True)]
        assert sum(moved) > 0.9 * len(moved)

    small.save_pretrained(tmp_path / "small")
    again = load_pruned(tmp_path / "small")
    wanted, found = denoiser_of(small)[1].state_dict(), denoiser_of(again)[1].state_dict()
    assert type(again) is type(pipe) and list(wanted) == list(found)
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    latents = [LatentSampler(p, PROMPTS[name], **how).draw() for p in (small, again)]
    assert torch.equal(*latents)
