"""What a tensor of a checkpoint is for, told by its name.

The names are those of the single file of the original Stable Diffusion code and all that followed it
(`model.diffusion_model.*`), of diffusers and transformers, and what trainers wrap around either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Part -> what a reader is told. Inference needs the first group, or might; training alone needs the second.
KEPT = {
    "unet": "denoiser (UNet or transformer)",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "image_encoder": "image encoder",
    "controlnet": "ControlNet",
    "adapter": "LoRA or other adapter",
    "safety_checker": "safety checker",
    "schedule": "noise schedule, kept as it is",
    "other": "unknown, kept",
}
DROPPED = {
    "ema": "EMA copy",
    "optimizer": "optimiser state",
    "training": "training leftovers",
    "copy": "second copy of a part",
}
PARTS = {**KEPT, **DROPPED}

_WRAPPERS = {"state_dict", "model", "module", "model_state_dict", "net", "params"}
# Of nested keys the outer one says more than the inner ones.
_BY_OUTER_KEY = {
    "optimizer": "optimizer optimizers optimizer_states optimizer_state_dict optim opt_state".split(),
    "training": """
        lr_schedulers lr_scheduler lr_scheduler_state_dict scheduler callbacks loops scaler grad_scaler hyper_parameters
        random_states rng rng_state torch_manual_seed torch_cuda_manual_seed random_state numpy_random_seed
        native_amp_scaling_state amp
    """.split(),
    "ema": "ema model_ema ema_state_dict ema_model state_dict_ema shadow_params".split(),
}
_BY_NAME = (
    ("ema", r"(model_ema|ema|ema_model|(unet|transformer)_ema)\."),
    ("training", r"(first_stage_model\.)?(loss|discriminator|perceptual_loss)\."),
    ("adapter", r"(.*[._])?(lora|dora|hada|lokr|oft|boft)[._]|.*\.processor\.|(image_proj|ip_adapter|adapter)\."),
    ("optimizer", r"optimizer(_states?)?\."),
    ("schedule", r"(betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod)$"),
    ("schedule", r"(posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas|v_pred|ztsnr|edm_\w+(\.\w+)*)$"),
    # the component stands in front
    ("unet", r"((model\.)?diffusion_model|unet)\."),
    ("vae", r"(first_stage_model|vae)\."),
    ("image_encoder", r"image_encoder\.|(cond_stage_model|conditioner\.embedders)\.(.*\.)?vis(ual|ion_model)\."),
    ("text_encoder", r"(cond_stage_model|conditioner\.embedders|text_encoders?(_\d)?|clip_[lgh]|t5xxl)\."),
    ("controlnet", r"(control_model|controlnet)\."),
    ("safety_checker", r"safety_checker\."),
)
# What says no more than that a model follows, as compilers, trainers and OpenCLIP put it in front of every name.
_FRONT = re.compile(r"((model|module|net|_orig_mod|base_model|transformer)\.)*")
# State dicts of a single part: a VAE has an encoder and a decoder, the denoisers have neither.
_BY_BARE_NAME = (
    ("controlnet", r"(controlnet_\w+|input_hint_block|zero_convs|middle_block_out)\."),
    ("safety_checker", r"(concept|special_care)_embeds(_weights)?$"),
    ("vae", r"(encoder|decoder)\.(down|up|mid|conv|norm)|(post_)?quant_conv\."),
    ("text_encoder", r"(text_model|resblocks|embeddings|encoder\.(layers?|block)|decoder\.block|shared)\."),
    ("text_encoder", r"(final_layer_norm|text_projection|token_embedding|ln_final|embed_tokens)\."),
    ("text_encoder", r"layers\.\d+\.self_attn\."),
    ("text_encoder", r"(text_projection|positional_embedding)$"),
    ("image_encoder", r"(vision_model|visual_projection|visual)\."),
    ("unet", r"(down_blocks|up_blocks|mid_block|conv_in|conv_out|conv_norm_out|(time|add|class)_embedding)\."),
    ("unet", r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\."),
    ("unet", r"((single_)?transformer_blocks|(joint|double|single)_blocks|pos_embed|\w+_embedder)\."),
    ("unet", r"((img|txt|time|vector|guidance)_in|final_layer)\."),
)
_LOOK_LIKE = {"unet": "controlnet", "image_encoder": "safety_checker"}  # part -> which has its names and some more
_BY_FOLDER = (
    ("unet", r"unet|transformer|prior"),
    ("vae", r"vae|vqvae|vqgan|movq"),
    ("text_encoder", r"text_encoder"),
    ("image_encoder", r"image_encoder"),
    ("controlnet", r"controlnet"),
    ("safety_checker", r"safety_checker"),
)


def part_of(path: tuple[str, ...]) -> tuple[str, str]:
    """Return the part a tensor belongs to, and its name without what a trainer wrapped around it.

    Example:
        >>> part_of(("state_dict", "model.diffusion_model.out.2.bias"))
        ('unet', 'model.diffusion_model.out.2.bias')
    """
    keys = list(path)
    while len(keys) > 1 and keys[0] in _WRAPPERS:
        keys = keys[1:]
    name = ".".join(keys)
    if len(keys) > 1:
        for part, outer in _BY_OUTER_KEY.items():
            if keys[0] in outer:
                return part, name
    bare = _FRONT.sub("", name, count=1)
    other = "unet" if name.startswith("transformer.") else "other"
    return _first(_BY_NAME, name, bare) or _first(_BY_BARE_NAME, bare) or other, name


def _first(patterns: tuple, *names: str) -> str | None:
    return next((part for name in names for part, pattern in patterns if re.match(pattern, name)), None)


def parts_of(tensors: Sequence[tuple[tuple[str, ...], tuple[int, ...]]]) -> list[tuple[str, str]]:
    """Return what `part_of` does for every tensor of one file, given as keys and shape; here names tell of each other.

    Bare names with the same in front, if anything, are of one model: a ControlNet repeats the names of a UNet, a safety
    checker those of an image encoder, and a VAE is known by kernels in its encoder. Bare names that say nothing follow
    the others where these are of one part.
    """
    told = [part_of(keys) for keys, _ in tensors]
    if any(part == "adapter" for part, _ in told):
        told = [("adapter" if name.endswith(".alpha") else part, name) for part, name in told]
    families: dict[str, dict[int, str]] = {}  # what stands in front -> place, bare name
    for i, (part, name) in enumerate(told):
        front, bare = _FRONT.match(name).group(), _FRONT.sub("", name, count=1)
        if part not in DROPPED and not _first(_BY_NAME, name, bare):
            families.setdefault(front, {})[i] = bare
    for family in families.values():
        sure = {_first(_BY_BARE_NAME, bare) for bare in family.values()} - {None}
        instead = {part: by for part, by in _LOOK_LIKE.items() if by in sure}
        if any(bare.startswith("embeddings.patch_embed") for bare in family.values()):
            instead["text_encoder"] = "image_encoder"
        coder = [i for i, bare in family.items() if bare.startswith(("encoder.", "decoder."))]
        kernels = any(len(tensors[i][1]) > 2 for i in coder)
        for i in family:
            part, name = told[i]
            if part == "unet" and len(sure) == 1:  # perhaps for want of a better word
                part = min(sure)
            told[i] = "vae" if kernels and i in coder else instead.get(part, part), name
    models = {part for part, _ in told} - {"other", "schedule", "adapter", *DROPPED}
    for i, bare in (pair for family in families.values() for pair in family.items()):
        if told[i][0] == "other" and len(models) == 1 and "." in bare:
            told[i] = min(models), told[i][1]
    return told


def part_of_file(folder: str, name: str) -> str | None:
    """Return the part that a file in `folder` ("unet", or "" at the top) holds, None where its tensors must tell."""
    if ".non_ema." in name:
        return "copy"
    if folder:
        top = re.sub(r"^prior_|_\d+$", "", folder.split("/")[0])  # transformer_2, text_encoder_3, prior_text_encoder
        if top.endswith("_ema"):
            return "ema"
        return next((part for part, pattern in _BY_FOLDER if re.fullmatch(pattern, top)), None)
    if re.match(r"optimizer(_\d+)?\.", name):
        return "optimizer"
    if re.match(r"(scheduler(_\d+)?|scaler|sampler(_\d+)?|random_states_\d+|rng_state)\.(bin|pt|pth|pkl)$", name):
        return "training"
    return None


def ema_name(name: str) -> str:
    """Return what LDM's `LitEma` calls the copy of a live weight: the first part replaced, all other dots left out.

    Example:
        >>> ema_name("model.diffusion_model.out.2.bias")
        'model_ema.diffusion_modelout2bias'
    """
    return "model_ema." + "".join(name.split(".")[1:])


_LDM = re.compile(
    r"(diffusion_model|(?:in|out)put_blocks|middle_block|time_embed|label_emb|(?:in|out|emb)_layers|skip_connection|"
    r"transformer_blocks|attn[12]|attention|to_out|to_[qkv]|qkv|ff|net|proj_(?:in|out)|proj|norm[123]?|conv|op|out|"
    r"weight|bias)(\d*)"
)


def live_name(name: str) -> str | None:
    """Return the live name of an averaged weight, None where it has none; `ema_name` is undone by LDM's few words.

    Example:
        >>> live_name("model_ema.diffusion_modelinput_blocks110in_layers2weight")
        'model.diffusion_model.input_blocks.11.0.in_layers.2.weight'
    """
    keys = ["model"]
    for word, digits in _LDM.findall(name.removeprefix("model_ema.")):
        places = list(digits) if word == "label_emb" else [digits]
        keys += [word, *([digits[:-1], digits[-1:]] if word.endswith("put_blocks") else filter(None, places))]
    if ema_name(made := ".".join(keys)) == name:
        return made
    live = re.sub(
        r"(model_ema|ema_state_dict|ema_model|state_dict_ema|ema|(?=(unet|transformer)_ema))\.?", "", name, count=1
    )
    live = re.sub(r"^(unet|transformer)_ema\.", r"\1.", live)
    while (first := live.partition("."))[0] in _WRAPPERS and not first[2].startswith("diffusion_model."):
        live = first[2]
    live = f"model.{live}" if live.startswith("diffusion_model.") else live
    return live if "." in live and "shadow_params" not in name else None
