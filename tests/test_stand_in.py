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
    ours, theirs = ({n: type(m).__name__ for n, m in model.named_modules()} for model in (narrow, published))
    # PixArt at another size than 1024 pixels has no embedding of the size
    words = ("resolution_embedder", "aspect_ratio_embedder", "additional_condition_proj")
    extra = {n for n in theirs if any(word in n for word in words)}
    assert list(ours.items()) == [(n, kind) for n, kind in theirs.items() if n not in extra or n in ours]
    small, large = (sum(p.numel() for p in m.parameters()) for m in (narrow, published))
    assert small < large / 50 and not narrow.training
    assert all(v == published.config[k] for k, v in narrow.config.items() if "block_types" in k)


def test_full_width_is_the_published_architecture():
    with torch.device("meta"):
        whole = stand_in("sd-1.5", scale=1, sample_size=None).unet
    assert Fingerprint.of(whole) == Fingerprint.of(pl.denoiser_on_meta("sd-1.5")) and whole.config.sample_size == 64


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_seed_decides_and_leaves_the_global_one_alone(device):
    """Where a device is named, weights are drawn there, by a rule that half precision survives at any depth."""
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = (stand_in(seed=seed, dtype=torch.bfloat16, device=device) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), wanted)
    assert {part.dtype for part in (a.unet, a.vae, a.text_encoder)} == {torch.bfloat16}
    assert all(torch.equal(p, q) for p, q in zip(a.unet.parameters(), b.unet.parameters(), strict=True))
    assert not torch.equal(a.unet.conv_in.weight, c.unet.conv_in.weight)
    if device:
        assert Fingerprint.of(a.unet) == Fingerprint.of(stand_in().unet)
        assert (a.unet.conv_norm_out.weight == 1).all() and (a.unet.conv_norm_out.bias == 0).all()
        assert abs(a.unet.mid_block.resnets[0].conv1.weight.float().std() - 0.02) < 0.002
        images = a(["lion", "pizza"], num_inference_steps=1, output_type="pt").images
        assert images.shape == (2, 3, 64, 64) and images.isfinite().all()


def test_bad_input():
    for options, words in (({"name": "sd-1.6"}, "no stand-in for 'sd-1.6'.*sd-1.5"), ({"scale": 2}, "scale=2")):
        with pytest.raises(ValueError, match=words):
            stand_in(**options)
