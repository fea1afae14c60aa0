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
    DPMSolverMultistepScheduler,
    LDMPipeline,
    PixArtAlphaPipeline,
    StableDiffusionPipeline,
    VQModel,
)
from tiny_denoisers import make
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

import pruning_lib

_TOKENIZER = Path(pruning_lib.__file__).parents[1] / "pruning_book" / "models" / "emoji-sd" / "tokenizer"


def _vae(cls=AutoencoderKL):
    return cls(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)


def _sd() -> StableDiffusionPipeline:
    tokenizer = CLIPTokenizer.from_pretrained(_TOKENIZER)
    words = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes, **words)
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


PIPES = {
    "text": _sd,
    "text, transformer": _pixart,
    "classes": lambda: DiTPipeline(make("dit"), _vae(), DDPMScheduler()),
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
