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
from pruning_lib.checkpoint.ldm_layout import UNET_PREFIX, ldm_ema, ldm_unet_names, to_ldm


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_emoji_sd_there_and_back(emoji):
    parts = emoji.unet.state_dict(), emoji.vae.state_dict(), emoji.text_encoder.state_dict()
    state = to_ldm(*parts)
    assert len(state) == sum(map(len, parts))
    same(convert_ldm_unet_checkpoint(dict(state), emoji.unet.config), parts[0])
    same(convert_ldm_vae_checkpoint(dict(state), emoji.vae.config), parts[1])
    back = convert_ldm_clip_checkpoint(state)
    same(
        {name.removeprefix("text_model."): t for name, t in back.items()},
        {name.removeprefix("text_model."): t for name, t in parts[2].items()},
    )


def test_the_ema_copy_is_where_diffusers_looks_for_it(emoji, averaged):
    state = {**to_ldm(emoji.unet.state_dict()), **ldm_ema(averaged)}
    same(convert_ldm_unet_checkpoint(state, emoji.unet.config, extract_ema=True), averaged)


def test_a_vae_with_attention_there_and_back():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
    )
    state = to_ldm(vae=vae.state_dict())
    assert state["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    same(convert_ldm_vae_checkpoint(state, vae.config), vae.state_dict())


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
