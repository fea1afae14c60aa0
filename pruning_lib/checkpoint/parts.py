"""What a tensor of a checkpoint is for, told by its name.

The names are those of the single file of the original Stable Diffusion code and all that followed it
(`model.diffusion_model.*`), of diffusers and transformers, and what trainers wrap around either.
"""

from __future__ import annotations

import re

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
    ("ema", r"model_ema\.|ema\.|unet_ema\."),
    ("training", r"(first_stage_model\.)?(loss|discriminator|perceptual_loss)\."),
    ("unet", r"(model\.diffusion_model|unet|transformer)\."),
    ("vae", r"(first_stage_model|vae)\."),
    ("text_encoder", r"(cond_stage_model|conditioner\.embedders|text_encoders?(_\d)?)\."),
    ("controlnet", r"(control_model|controlnet)\."),
    ("safety_checker", r"safety_checker\."),
    ("adapter", r"(.*\.)?(lora_|hada_|lokr_)|.*\.lora[._](up|down|A|B|linear_layer)\.|.*\.processor\."),
    ("optimizer", r"optimizer(_states?)?\."),
    ("schedule", r"(betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod)$"),
    ("schedule", r"(posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas|v_pred|ztsnr|edm_\w+(\.\w+)*)$"),
    # state dicts of a single part: a VAE has an encoder and a decoder, the denoisers have neither
    ("vae", r"(encoder|decoder)\.(down|up|mid|conv|norm)|(post_)?quant_conv\."),
    ("unet", r"(down_blocks|up_blocks|mid_block|conv_in|conv_out|conv_norm_out|(time|add|class)_embedding)\."),
    ("unet", r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\."),
    ("unet", r"((single_)?transformer_blocks|(joint|double|single)_blocks|pos_embed|x_embedder|[tyx]_embedder)\."),
    ("text_encoder", r"(text_model|transformer\.text_model|embeddings|encoder\.(layers?|block)|final_layer_norm)\."),
    ("text_encoder", r"(text_projection|shared)\."),
    ("image_encoder", r"(vision_model|visual_projection)\."),
)
_BY_FOLDER = (
    ("unet", r"unet|transformer|prior"),
    ("ema", r"unet_ema|transformer_ema"),
    ("vae", r"vae|vqvae"),
    ("text_encoder", r"text_encoder(_[23])?"),
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
    for part, pattern in _BY_NAME:
        if re.match(pattern, name):
            return part, name
    return "other", name


def part_of_file(folder: str, name: str) -> str | None:
    """Return the part that a file in `folder` ("unet", or "" at the top) holds, None where its tensors must tell."""
    if ".non_ema." in name:
        return "copy"
    if folder:
        top = folder.split("/")[0]
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
