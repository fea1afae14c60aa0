"""Pictures during training: compared with the teacher's, logged as curves, and without a trace in the run."""

from __future__ import annotations

import json

import pytest
import torch
from small_pipe import copy_of, small_unet, with_unet

import pruning_book as pb
import pruning_lib as pl
from pruning_book.judge import HIGHEST_PSNR, PictureValidator, draw
from pruning_lib.finetuning.finetune import finetune
from pruning_lib.quality import clip_score, psnr, ssim


@pytest.fixture(scope="module")
def real():
    return pl.load("emoji-sd")


def test_pictures_are_the_pipelines_own_in_order_also_among_parts_in_half_precision(real):
    found = draw(real, ["lion", "tomato"], seeds=(3, 5), steps=1, batch=3)
    assert found.shape == (4, 3, 64, 64)
    for i, (prompt, seed) in enumerate([("lion", 3), ("lion", 5), ("tomato", 3), ("tomato", 5)]):
        call = {"num_inference_steps": 1, "guidance_scale": 3.0, "output_type": "pt"}
        own = real(prompt, generator=torch.Generator().manual_seed(seed), **call).images
        assert torch.allclose(own[0], found[i], atol=1e-4), (prompt, seed)
    mixed = pl.load("emoji-sd", dtype=torch.bfloat16)
    mixed.unet.float()
    half = draw(mixed, ["lion"], seeds=(3,), steps=1)
    assert half.dtype == torch.float32 and ssim(half, found[:1]) > 0.9


def test_figures_are_the_yardsticks_of_quality(real):
    small, judge = copy_of(real), pb.load_clip()
    look = PictureValidator(small, real, ["lion", "tomato"], steps=1, judge=judge, keep=True)
    same = look(0)
    assert same["ssim"] == pytest.approx(1, abs=1e-5) and same["psnr"] == HIGHEST_PSNR
    with torch.no_grad():
        small.unet.down_blocks[0].resnets[1].conv2.weight.zero_()
    worse, drawn = look(1), look.pictures[1]
    assert worse["ssim"] < 0.999 and worse["psnr"] < 60
    assert worse["ssim"] == pytest.approx(ssim(drawn, look.reference).mean().item())
    assert worse["psnr"] == pytest.approx(psnr(drawn, look.reference).mean().item())
    assert worse["clip"] == pytest.approx(clip_score(judge, drawn, ["lion", "tomato"]).mean().item())
    given = PictureValidator(small, look.reference, ["lion", "tomato"], steps=1)
    assert given(1) == {key: worse[key] for key in ("pictures", "ssim", "psnr")} and worse["pictures"] == 2
    with torch.no_grad():
        small.unet.conv_out.bias.fill_(float("nan"))
    found = given(3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found == {"pictures": 2, "ssim": None, "psnr": None}


def test_curves_during_training_change_nothing_of_the_run(real):
    teacher, runs = with_unet(real, small_unet()), []
    for every in (0, 1):
        small = copy_of(teacher)
        look = PictureValidator(small, teacher, ["lion"], steps=1, guidance_scale=1)
        options = {"steps": 2, "lr": 1e-2, "warmup": 1, "batch": 2, "ema": 0, "validate": look, "validate_every": every}
        log = finetune(small, pb.training_images()[:2], pb.captions()[:2], **options)
        runs.append(small.unet.state_dict())
    steps, values = log.curve("ssim")
    assert steps == [0, 1, 2] and values[0] == pytest.approx(1, abs=1e-5) and values[-1] < 0.999
    assert all(torch.equal(runs[0][name], value) for name, value in runs[1].items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": "lion"}, "prompts='lion'"),
        ({"seeds": ()}, "seeds is empty"),
        ({"teacher": torch.zeros(3, 3, 64, 64)}, "holds 3 pictures; 2 prompts with 1 seeds make 2"),
        ({"teacher": torch.full((2, 3, 64, 64), 2.0)}, r"expected \[0, 1\]"),
    ],
)
def test_bad_input(real, options, words):
    with pytest.raises(ValueError, match=words):
        PictureValidator(real, **{"teacher": real, "prompts": ["lion", "tomato"], **options})
