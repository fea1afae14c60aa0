"""LDM's names: the exact inverse of diffusers' own conversion."""

from __future__ import annotations

import pytest
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

import pruning_lib as pl
from pruning_book.ldm_layout import UNET_PREFIX, ldm_ema, ldm_unet_names, to_ldm


def test_emoji_sd_there_and_back(emoji, averaged, equal):
    unet, vae, text = (getattr(emoji, part).state_dict() for part in ("unet", "vae", "text_encoder"))
    state = {**to_ldm(unet, vae, text), **ldm_ema(averaged)}
    assert len(state) == len(unet) + len(vae) + len(text) + len(averaged)
    assert equal(convert_ldm_unet_checkpoint(dict(state), emoji.unet.config), unet)
    assert equal(convert_ldm_unet_checkpoint(dict(state), emoji.unet.config, extract_ema=True), averaged)
    assert equal(convert_ldm_vae_checkpoint(dict(state), emoji.vae.config), vae)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    attends = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=2, **blocks)
    assert equal(convert_ldm_vae_checkpoint(to_ldm(vae=attends.state_dict()), attends.config), attends.state_dict())
    back = convert_ldm_clip_checkpoint(to_ldm(text_encoder=text))
    assert equal(*({name.removeprefix("text_model."): tensor for name, tensor in one.items()} for one in (back, text)))


def test_the_names_of_stable_diffusion():
    model = pl.denoiser_on_meta("sd-1.5")
    state = model.state_dict()
    ldm = {UNET_PREFIX + new: state[old] for old, new in ldm_unet_names(state).items()}
    back = convert_ldm_unet_checkpoint(ldm, model.config)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in state.items()}
    with pytest.raises(ValueError, match="add_embedding"):
        ldm_unet_names(["add_embedding.linear_1.weight"])
