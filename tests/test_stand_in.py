"""Stand-ins: the published structure at any width, and random weights that a seed decides."""

from __future__ import annotations

import pytest
import torch

import pruning_lib as pl
from pruning_book.stand_in import STAND_INS, stand_in
from pruning_lib.denoisers import Fingerprint, denoiser_of


@pytest.mark.parametrize("name", [n for n in STAND_INS if n != "sd-1.4"])
def test_every_layer_is_there_and_narrower(name):
    narrow, published = denoiser_of(stand_in(name))[1], pl.denoiser_on_meta(name)
    ours, theirs = (dict(m.named_modules()) for m in (narrow, published))
    # PixArt at another size than 1024 pixels has no embedding of the size
    words = ("resolution_embedder", "aspect_ratio_embedder", "additional_condition_proj")
    extra = {n for n in theirs if any(word in n for word in words)}
    assert list(ours) == [n for n in theirs if n not in extra or n in ours]
    assert {n: type(m).__name__ for n, m in ours.items()} == {n: type(theirs[n]).__name__ for n in ours}
    small, large = (sum(p.numel() for p in m.parameters()) for m in (narrow, published))
    assert small < large / 50 and not narrow.training
    blocks = [{k: v for k, v in m.config.items() if "block_types" in k} for m in (narrow, published)]
    assert blocks[0] == blocks[1]


def test_full_width_is_the_published_architecture():
    with torch.device("meta"):
        whole = stand_in("sd-1.5", scale=1, sample_size=None).unet
    theirs = pl.denoiser_on_meta("sd-1.5")
    assert Fingerprint.of(whole) == Fingerprint.of(theirs) and whole.config.sample_size == 64


def test_the_seed_decides_and_leaves_the_global_one_alone():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = stand_in(seed=0), stand_in(seed=0), stand_in(seed=1, dtype=torch.float16)
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(a.unet.conv_in.weight, b.unet.conv_in.weight)
    assert c.unet.dtype == c.vae.dtype == c.text_encoder.dtype == torch.float16
    assert not torch.equal(a.unet.conv_in.weight.half(), c.unet.conv_in.weight)


def test_weights_are_drawn_where_the_pipeline_goes():
    pipe, same = (stand_in(seed=4, dtype=torch.bfloat16, device="cpu") for _ in range(2))
    weights = dict(pipe.unet.named_parameters())
    assert {name: p.shape for name, p in stand_in().unet.named_parameters()} == {n: p.shape for n, p in weights.items()}
    assert all(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in weights.values())
    assert all(torch.equal(p, weights[name]) for name, p in same.unet.named_parameters())
    assert (weights["conv_norm_out.weight"] == 1).all() and (weights["conv_norm_out.bias"] == 0).all()
    assert abs(weights["mid_block.resnets.0.conv1.weight"].float().std() - 0.02) < 0.002
    images = pipe(["lion", "pizza"], num_inference_steps=1, output_type="pt").images
    assert images.shape == (2, 3, 64, 64) and images.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "sd-1.6"}, "no stand-in for 'sd-1.6'.*sd-1.5"),
        ({"device": "tpu"}, "Unknown device 'tpu'"),
        ({"scale": 0}, "scale=0"),
        ({"scale": 2}, "scale=2"),
    ],
)
def test_bad_input(options, words):
    with pytest.raises(ValueError, match=words):
        stand_in(**options)
