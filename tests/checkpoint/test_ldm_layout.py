"""LDM's names: the exact inverse of diffusers' own conversion."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

import pruning_lib as pl
from pruning_book.ldm_layout import UNET_PREFIX, ldm_ema, ldm_unet_names, to_ldm


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_emoji_sd_there_and_back(emoji, averaged):
    unet, vae, text = (getattr(emoji, part).state_dict() for part in ("unet", "vae", "text_encoder"))
    state = {**to_ldm(unet, vae, text), **ldm_ema(averaged)}
    assert len(state) == len(unet) + len(vae) + len(text) + len(averaged)
    assert same(convert_ldm_unet_checkpoint(dict(state), emoji.unet.config), unet)
    assert same(convert_ldm_unet_checkpoint(dict(state), emoji.unet.config, extract_ema=True), averaged)
    assert same(convert_ldm_vae_checkpoint(dict(state), emoji.vae.config), vae)
    back = convert_ldm_clip_checkpoint(to_ldm(text_encoder=text))
    without = [{name.removeprefix("text_model."): tensor for name, tensor in one.items()} for one in (back, text)]
    assert same(*without)


def test_a_vae_with_attention_there_and_back():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=2, **blocks)
    state = to_ldm(vae=vae.state_dict())
    assert state["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    assert same(convert_ldm_vae_checkpoint(state, vae.config), vae.state_dict())


@pytest.mark.parametrize("name", ["sd-1.5", "sd-2.1"])
def test_the_names_of_stable_diffusion(name):
    model = pl.denoiser_on_meta(name)
    state = model.state_dict()
    ldm = {UNET_PREFIX + new: state[old] for old, new in ldm_unet_names(state).items()}
    back = convert_ldm_unet_checkpoint(ldm, model.config)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in state.items()}
    assert "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight" in ldm


def test_what_has_no_place_is_refused():
    with pytest.raises(ValueError, match="add_embedding"):
        ldm_unet_names(["add_embedding.linear_1.weight"])
