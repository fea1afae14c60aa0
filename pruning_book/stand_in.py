"""Stand-ins: pipelines with the structure of the papers' models and random weights, at any width.

A stand-in has every layer of its model under the same name and wired in the same way, so whatever runs on it runs on
the model: a dry run costs seconds instead of hours.  Its pictures mean nothing.  The text encoder is a random one of
the right output width, with emoji-sd's tokenizer; a UNet with text draws through emoji-sd's autoencoder.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from pruning_lib.checks import check_device, check_number, nearest
from pruning_lib.loading import denoiser_config, models_folder
from pruning_lib.sampling import quietly

STAND_INS = ("sd-1.4", "sd-1.5", "sd-2.1", "dit-xl-2-256", "pixart-alpha", "ldm-celebahq-256")
_HEAD = 12  # width of a head in a smaller transformer: its embeddings come in thirds (PixArt) and quarters


def stand_in(
    name: str = "sd-1.5",
    *,
    scale: float = 0.1,
    sample_size: int | None = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> DiffusionPipeline:
    """Build a pipeline with a model's structure and random weights, its progress bar off.

    PixArt has the embedding of the picture's size only at its published size, as in diffusers; at others, call its
    pipeline with `use_resolution_binning=False`.

    Args:
        name: one of `STAND_INS`; another is a ValueError.
        scale: what widths and, in transformers, heads are multiplied by, in (0, 1]; 1 is the published architecture.
            Depth, kinds of blocks and wiring never change.
        sample_size: side of the latent. Default 16, which draws 64 x 64 pixels here; None for the published one.
        seed, dtype: of the weights.
        device: where the pipeline goes. Default: the CPU. Where one is named, the denoiser's weights are drawn there,
            by `drawn`: a published size then takes seconds on a GPU instead of a minute on the CPU.

    Example:
        >>> stand_in("sd-1.5")("lion", num_inference_steps=2).images[0].size
        (64, 64)
    """
    if name not in STAND_INS:
        raise ValueError(f"There is no stand-in for {name!r}. {nearest(str(name), STAND_INS)}")
    check_number("scale", scale, "(0, 1]")
    device = None if device is None else check_device(device)
    config = dict(denoiser_config(name)[0])
    kind = config["_class_name"]
    if scale != 1:
        config |= _narrower_unet(config, scale) if "UNet" in kind else _narrower_transformer(config, scale)
    config["sample_size"] = sample_size or config["sample_size"]
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        if device is None:
            denoiser = getattr(diffusers, kind).from_config(config).eval()
        else:
            denoiser = drawn(config, device=device, dtype=dtype, seed=seed)
        with quietly():
            pipe = _PIPELINES[kind](denoiser)
    finally:
        torch.random.set_rng_state(state)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, device, dtype)  # diffusers' own `to` warns about half precision on a CPU
    return pipe


def drawn(config: dict[str, Any], *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """Build a diffusers model, in evaluation mode, whose weights are drawn where they stay.

    Matrices and kernels are normal with deviation 0.02, biases 0, scales of norms 1: small enough that half precision
    does not overflow at any published depth. The CPU holds none of them at any time. `config` holds the `_class_name`;
    `seed` is of the generator on that device: another kind of device draws other numbers.
    """
    with init_empty_weights(include_buffers=False):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        for name, empty in module.named_parameters(recurse=False):
            value = torch.empty(empty.shape, device=device, dtype=dtype)
            if value.ndim < 2:
                value.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                value.normal_(0, 0.02, generator=generator)
            setattr(module, name, nn.Parameter(value))
    return nn.Module.to(model, device, dtype).eval()


def _width(published: int, scale: float) -> int:
    """Return a narrower width; multiples of 8, so that norms and heads have whole parts, and different ones stay so."""
    return max(8, round(published * scale / 8) * 8)


def _narrower_unet(config: dict[str, Any], scale: float) -> dict[str, Any]:
    widths = [_width(width, scale) for width in config["block_out_channels"]]
    new = {"block_out_channels": widths, "norm_num_groups": 8}
    heads = config["attention_head_dim"]  # in a UNet with text: how many, else: how wide
    new["attention_head_dim"] = [max(1, w // 8) for w in widths] if isinstance(heads, list) else 8
    if "cross_attention_dim" in config:
        new["cross_attention_dim"] = _width(config["cross_attention_dim"], scale)
    return new


def _narrower_transformer(config: dict[str, Any], scale: float) -> dict[str, Any]:
    heads = max(1, round(config["num_attention_heads"] * scale))
    new = {"num_attention_heads": heads, "attention_head_dim": _HEAD}
    if "caption_channels" in config:
        new |= {"cross_attention_dim": _HEAD * heads, "caption_channels": _width(config["caption_channels"], scale)}
    return new


def _ddim(**more) -> DDIMScheduler:
    # The noise levels that Stable Diffusion 1.x was trained with; what the others were trained with differs little.
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return DDIMScheduler(**levels, **more)


def _vae() -> nn.Module:
    return diffusers.AutoencoderKL.from_pretrained(models_folder() / "emoji-sd" / "vae").eval()


def _tokenizer(length: int) -> CLIPTokenizer:
    tokenizer = CLIPTokenizer.from_pretrained(models_folder() / "emoji-sd" / "tokenizer")
    tokenizer.model_max_length = length
    return tokenizer


def _with_text(unet: nn.Module) -> DiffusionPipeline:
    tokenizer, width = _tokenizer(77), unet.config.cross_attention_dim
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 8}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    scheduler = _ddim(steps_offset=1, set_alpha_to_one=False)
    vae, text = _vae(), CLIPTextModel(CLIPTextConfig(**words, **sizes)).eval()
    parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **without)


def _with_t5(transformer: nn.Module) -> DiffusionPipeline:
    tokenizer, width = _tokenizer(120), transformer.config.caption_channels
    sizes = {"d_model": width, "d_kv": 8, "d_ff": width, "num_layers": 1, "num_heads": 1}
    text = T5Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text).eval(),
        vae=_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _with_classes(transformer: nn.Module) -> DiffusionPipeline:
    return diffusers.DiTPipeline(transformer=transformer, vae=_vae(), scheduler=_ddim())


def _without_prompts(unet: nn.Module) -> DiffusionPipeline:
    sizes = {"block_out_channels": (16,), "latent_channels": 3, "norm_num_groups": 8, "num_vq_embeddings": 16}
    return diffusers.LDMPipeline(vqvae=diffusers.VQModel(**sizes).eval(), unet=unet, scheduler=_ddim())


_PIPELINES = {
    "UNet2DConditionModel": _with_text,
    "DiTTransformer2DModel": _with_classes,
    "PixArtTransformer2DModel": _with_t5,
    "UNet2DModel": _without_prompts,
}
