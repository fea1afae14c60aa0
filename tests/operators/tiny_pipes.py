"""Tiny pipelines of every way in which latents are asked for, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    LDMPipeline,
    PixArtAlphaPipeline,
    StableDiffusionPipeline,
    VQModel,
)
from tiny_denoisers import make
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

import pruning_lib

__all__ = ["PIPES", "PROMPTS", "pipe_of"]

_TOKENIZER = Path(pruning_lib.__file__).parents[1] / "pruning_book" / "models" / "emoji-sd" / "tokenizer"


def _vae(cls=AutoencoderKL):
    return cls(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)


def _sd() -> StableDiffusionPipeline:
    tokenizer = CLIPTokenizer.from_pretrained(_TOKENIZER)
    text = CLIPTextConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.model_max_length = 16
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=make("unet with text"),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _pixart() -> PixArtAlphaPipeline:
    tokenizer = CLIPTokenizer.from_pretrained(_TOKENIZER)
    text = T5Config(d_model=6, d_ff=8, num_layers=1, num_heads=2, d_kv=4, vocab_size=len(tokenizer))
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text),
        vae=_vae(),
        transformer=make("pixart"),
        scheduler=DPMSolverMultistepScheduler(),
    )


def _dit() -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(  # the pipeline takes class 1000 as "no class"
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    ).eval()
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return DiTPipeline(transformer, _vae(), DDPMScheduler())


PIPES = {
    "text": _sd,
    "text, transformer": _pixart,
    "classes": _dit,
    "random steps": lambda: DDPMPipeline(make("unet"), DDPMScheduler()),
    "unconditional": lambda: DDIMPipeline(make("unet"), DDIMScheduler()),
    "unconditional latents": lambda: LDMPipeline(_vae(VQModel), make("unet"), DDIMScheduler()),
}
PROMPTS = {"text": ["lion", "pizza", "red heart"], "text, transformer": ["lion", "pizza"], "classes": [3, 207, 4]}


def pipe_of(name: str):
    """Return the pipeline `name`, always with the same weights."""
    torch.manual_seed(1)
    pipe = PIPES[name]()
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe
