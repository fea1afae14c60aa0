"""BK-SDM's block removal: the published sizes, the weights that stay, and what is refused."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_models import dit

import pruning_lib as pl
from pruning_lib.denoisers import example_inputs
from pruning_lib.structured.blocks import remove_blocks


def tiny(**options) -> UNet2DConditionModel:
    config = dict(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=12,
        norm_num_groups=4,
        attention_head_dim=(1, 2, 2),
        down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    )
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**config, **options}).eval()


def run(unet) -> torch.Tensor:
    with torch.no_grad():
        return unet(**example_inputs(unet, device="cpu", tokens=5)).sample


@pytest.mark.parametrize(("variant", "millions"), [("base", 579.4), ("small", 482.3), ("tiny", 323.4)])
def test_sizes_of_stable_diffusion_are_the_published_ones(variant, millions):
    """Kim et al. 2023, table 1: 0.58 B, 0.49 B and 0.33 B parameters in the denoiser."""
    small = remove_blocks(pl.denoiser_on_meta("sd-1.5"), variant)
    assert small.params_after / 1e6 == pytest.approx(millions, abs=0.05)
    assert small.params_before / 1e6 == pytest.approx(859.52, abs=0.01)
    assert small.macs_after == pl.count_macs(small.unet).macs < small.macs_before


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_it_runs_and_diffusers_reloads_it(tmp_path, variant):
    unet = tiny()
    before = run(unet)
    small = remove_blocks(unet, variant)
    small.unet.save_pretrained(tmp_path)
    again, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(again.state_dict()[k], v) for k, v in small.unet.state_dict().items())
    assert torch.allclose(run(again), run(small.unet), atol=1e-5)
    assert torch.equal(run(unet), before), "the given model was changed"
    shared = {p.data_ptr() for p in unet.parameters()} & {p.data_ptr() for p in small.unet.parameters()}
    assert not shared, "the smaller model shares weights with the given one"


def test_the_pairs_that_stay_keep_their_weights_and_their_skips():
    unet = tiny()
    small = remove_blocks(unet, "base")
    pairs = {
        "down_blocks.0.resnets.0": "down_blocks.0.resnets.0",
        "down_blocks.1.attentions.0": "down_blocks.1.attentions.0",
        "down_blocks.0.downsamplers.0": "down_blocks.0.downsamplers.0",
        "up_blocks.1.resnets.0": "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1": "up_blocks.1.resnets.2",  # the one that takes the skip from the level above
        "up_blocks.2.attentions.1": "up_blocks.2.attentions.2",
        "mid_block": "mid_block",
    }
    for new, old in pairs.items():
        a, b = small.unet.get_submodule(new).state_dict(), unet.get_submodule(old).state_dict()
        assert all(torch.equal(a[key], b[key]) for key in b), new
    gone = [f"down_blocks.{i}.resnets.1" for i in range(3)] + [f"up_blocks.{i}.resnets.1" for i in range(3)]
    gone += [f"down_blocks.{i}.attentions.1" for i in (0, 1)] + [f"up_blocks.{i}.attentions.1" for i in (1, 2)]
    assert set(small.removed) == set(gone)


def test_small_and_tiny_remove_more():
    unet = tiny()
    base, small, low = (remove_blocks(unet, v) for v in ("base", "small", "tiny"))
    assert set(small.removed) - set(base.removed) == {"mid_block"} and small.unet.mid_block is None
    assert len(low.unet.down_blocks) == 2 and low.unet.config.block_out_channels == (8, 16)
    assert low.unet.config.attention_head_dim == (1, 2)
    assert "down_blocks.1.downsamplers.0" in low.removed and "up_blocks.0.resnets.2" in low.removed
    assert torch.equal(low.unet.up_blocks[0].resnets[1].conv1.weight, unet.up_blocks[1].resnets[2].conv1.weight)
    assert base.params_after > small.params_after > low.params_after


def test_three_layers_keep_the_first_and_the_last():
    unet = tiny(layers_per_block=3)
    small = remove_blocks(unet, "base").unet
    assert torch.equal(small.up_blocks[2].resnets[1].conv1.weight, unet.up_blocks[2].resnets[3].conv1.weight)
    assert run(small).isfinite().all()


def test_half_precision_stays():
    assert remove_blocks(tiny().half()).unet.dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "variant", "words"),
    [
        ({}, "bse", "Did you mean 'base'"),
        ({"layers_per_block": 1}, "base", "layers_per_block=1: a level with one pair"),
        ({"mid_block_type": None}, "small", "no mid block"),
        ({"block_out_channels": (8, 16, 24), "attention_head_dim": (1, 2, 2)}, "tiny", r"equally wide.*\(8, 16, 24\)"),
    ],
)
def test_bad_arguments(options, variant, words):
    with pytest.raises(ValueError, match=words):
        remove_blocks(tiny(**options), variant)


def test_other_families_are_refused():
    other = dit()
    with pytest.raises(TypeError, match="DiTTransformer2DModel"):
        remove_blocks(other)
    with pytest.raises(TypeError, match="pipe.unet"):
        remove_blocks(pl.load("emoji-sd"))
