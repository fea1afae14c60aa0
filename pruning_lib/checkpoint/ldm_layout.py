"""The names of the original Stable Diffusion code ("LDM"), made from those of diffusers.

It is the exact inverse of diffusers' own `convert_ldm_unet_checkpoint`, `convert_ldm_vae_checkpoint` and
`convert_ldm_clip_checkpoint`. A file in this layout is what sharing sites hold. Here it is made for tests, chapters
and benchmarks, and to put a VAE of diffusers into a single file. It covers Stable Diffusion 1 and 2 and emoji-sd with a
CLIP text encoder of transformers; not OpenCLIP's names, and not the two text encoders of SDXL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from .parts import ema_name

__all__ = [
    "TEXT_PREFIX",
    "UNET_PREFIX",
    "VAE_PREFIX",
    "ldm_ema",
    "ldm_text_names",
    "ldm_unet_names",
    "ldm_vae_names",
    "to_ldm",
]

UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_RENAMED = {
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def ldm_unet_names(names: Iterable[str]) -> dict[str, str]:
    """Return diffusers' name -> LDM's, without prefix, for the weights of a UNet.

    Args:
        names: all names of its state dict; the number of layers per block is read from them.

    Raises:
        ValueError: a name that this layout does not have.
    """
    names = list(names)
    layers = 1 + max((int(m[1]) for n in names if (m := re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", n))), default=0)
    found = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        block = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
        middle = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
        if module in _UNET_ENDS:
            found[name] = f"{_UNET_ENDS[module]}.{kind}"
        elif middle:
            place = 1 if middle[1] == "attentions" else 2 * int(middle[2])
            found[name] = f"middle_block.{place}.{_inside(middle[1], middle[3])}"
        elif block:
            way, number, what, layer, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
            if what == "downsamplers":
                found[name] = f"input_blocks.{(number + 1) * (layers + 1)}.0.op.{kind}"
            elif what == "upsamplers":
                attends = any(n.startswith(f"up_blocks.{number}.attentions.") for n in names)
                found[name] = f"output_blocks.{number * (layers + 1) + layers}.{2 if attends else 1}.conv.{kind}"
            else:
                first = 1 + number * (layers + 1) if way == "down" else number * (layers + 1)
                side = "input_blocks" if way == "down" else "output_blocks"
                found[name] = f"{side}.{first + layer}.{int(what == 'attentions')}.{_inside(what, rest)}"
        else:
            raise ValueError(f"{name} has no place in LDM's layout of a UNet; known are Stable Diffusion 1 and 2.")
    return found


def _inside(what: str, rest: str) -> str:
    if what == "attentions":
        return rest
    module, _, kind = rest.rpartition(".")
    return f"{_RESNET[module]}.{kind}"


def ldm_vae_names(names: Iterable[str]) -> dict[str, str]:
    """Return diffusers' name -> LDM's, without prefix, for the weights of an `AutoencoderKL`."""
    names = list(names)
    ups = 1 + max((int(m[1]) for n in names if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", n))), default=0)
    found = {}
    for name in names:
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{ups - 1 - int(m[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{ups - 1 - int(m[1])}.upsample.", new)
        new = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", new)
        new = new.replace("mid_block.attentions.0.", "mid.attn_1.")
        for old, short in _VAE_RENAMED.items():
            new = new.replace(f".{old}.", f".{short}.")
        found[name] = new
    return found


def ldm_text_names(names: Iterable[str]) -> dict[str, str]:
    """Return transformers' name -> that of the published files, which always have `text_model.` in front."""
    return {name: name if name.startswith("text_model.") else f"text_model.{name}" for name in names}


def to_ldm(
    unet: Mapping[str, Tensor] | None = None,
    vae: Mapping[str, Tensor] | None = None,
    text_encoder: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return one state dict in LDM's layout from the parts' own; a part that is None is left out.

    Args:
        unet, vae, text_encoder: state dicts as diffusers and transformers name them.

    Returns:
        Name -> tensor. Nothing is copied; the VAE's attention becomes 1x1 convolutions, as LDM has it.
    """
    state = {}
    for prefix, part, rename in (
        (UNET_PREFIX, unet, ldm_unet_names),
        (VAE_PREFIX, vae, ldm_vae_names),
        (TEXT_PREFIX, text_encoder, ldm_text_names),
    ):
        names = rename(part) if part is not None else {}
        for name, new in names.items():
            matrix = prefix == VAE_PREFIX and ".attn_1." in new and part[name].dim() == 2
            state[prefix + new] = part[name][..., None, None] if matrix else part[name]
    return state


def ldm_ema(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the EMA part of an LDM file from a UNet's averaged state dict, in diffusers' names."""
    return {ema_name(UNET_PREFIX + new): unet[name] for name, new in ldm_unet_names(unet).items()}
