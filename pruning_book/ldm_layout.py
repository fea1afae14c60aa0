"""The names of the original Stable Diffusion code ("LDM"), in which sites share checkpoints, from those of diffusers.

It is the exact inverse of diffusers' own `convert_ldm_unet_checkpoint`, `convert_ldm_vae_checkpoint` and
`convert_ldm_clip_checkpoint`. It covers Stable Diffusion 1 and 2 and emoji-sd with a CLIP text encoder of transformers;
not OpenCLIP's names, and not the two text encoders of SDXL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from pruning_lib.checkpoint.parts import ema_name

UNET_PREFIX = "model.diffusion_model."


# Modules of diffusers = of LDM.
_UNET = """
    time_embedding.linear_1=time_embed.0 time_embedding.linear_2=time_embed.2 conv_in=input_blocks.0.0
    conv_norm_out=out.0 conv_out=out.2
"""
_RESNET = """
    norm1=in_layers.0 conv1=in_layers.2 time_emb_proj=emb_layers.1 norm2=out_layers.0 conv2=out_layers.3
    conv_shortcut=skip_connection
"""
_VAE = "conv_shortcut=nin_shortcut conv_norm_out=norm_out group_norm=norm to_q=q to_k=k to_v=v to_out.0=proj_out"
_UNET, _RESNET, _VAE = (dict(pair.split("=") for pair in text.split()) for text in (_UNET, _RESNET, _VAE))


def ldm_unet_names(names: Iterable[str]) -> dict[str, str]:
    """Return diffusers' name -> LDM's, without prefix, for all weights of a UNet; a ValueError names what has none."""
    names = list(names)
    layers = 1 + max((int(m[1]) for n in names if (m := re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", n))), default=0)

    def inside(what: str, rest: str) -> str:
        module, _, kind = rest.rpartition(".")
        return rest if what == "attentions" else f"{_RESNET[module]}.{kind}"

    found = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        middle = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
        sampler = re.match(r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", name)
        block = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name)
        if module in _UNET:
            found[name] = f"{_UNET[module]}.{kind}"
        elif middle:
            what, place, rest = middle.groups()
            found[name] = f"middle_block.{1 if what == 'attentions' else 2 * int(place)}.{inside(what, rest)}"
        elif sampler and sampler[1] == "down":
            found[name] = f"input_blocks.{(int(sampler[2]) + 1) * (layers + 1)}.0.op.{kind}"
        elif sampler:
            attends = any(n.startswith(f"up_blocks.{sampler[2]}.attentions.") for n in names)
            found[name] = f"output_blocks.{(int(sampler[2]) + 1) * (layers + 1) - 1}.{1 + attends}.conv.{kind}"
        elif block:
            way, number, what, layer, rest = block.groups()
            place = int(number) * (layers + 1) + int(layer) + (way == "down")  # input block 0 is conv_in
            side = "input_blocks" if way == "down" else "output_blocks"
            found[name] = f"{side}.{place}.{int(what == 'attentions')}.{inside(what, rest)}"
        else:
            raise ValueError(f"{name} has no place in LDM's layout of a UNet; known are Stable Diffusion 1 and 2.")
    return found


def _vae_name(name: str, ups: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{ups - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{ups - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
    for old, new in _VAE.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def to_ldm(
    unet: Mapping[str, Tensor] | None = None,
    vae: Mapping[str, Tensor] | None = None,
    text_encoder: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return one state dict in LDM's layout, nothing copied, from the parts' own; None is left out."""
    state = {UNET_PREFIX + new: unet[name] for name, new in ldm_unet_names(unet or ()).items()}
    ups = 1 + max((int(m[1]) for n in vae or () if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", n))), default=0)
    for name, tensor in (vae or {}).items():
        new = "first_stage_model." + _vae_name(name, ups)
        state[new] = tensor[..., None, None] if ".attn_1." in new and tensor.dim() == 2 else tensor
    for name, tensor in (text_encoder or {}).items():  # published files always have "text_model." in front
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return state


def ldm_ema(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the EMA part of an LDM file from a UNet's averaged state dict, in diffusers' names."""
    return {ema_name(UNET_PREFIX + new): unet[name] for name, new in ldm_unet_names(unet).items()}
