"""Tiny models of every kind that may be pruned, with random weights, and the arguments of a call."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from small_denoisers import build
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from pruning_lib.denoisers import example_inputs


def vae() -> nn.Module:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **kinds).eval()


def clip_text() -> nn.Module:
    torch.manual_seed(0)
    config = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(**config, vocab_size=50)).eval()


MODELS = {"unet": build, "dit": lambda: build("dit"), "vae": vae, "clip_text": clip_text}


def inputs_of(model: nn.Module) -> dict:
    """Arguments of one call."""
    if isinstance(model, CLIPTextModel):
        return {"input_ids": torch.tensor([[1, 2, 3, 49]])}
    if isinstance(model, AutoencoderKL):
        return {"sample": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
    return example_inputs(model, batch=2, device="cpu", tokens=5)


@torch.no_grad()
def run(model: nn.Module) -> torch.Tensor:
    """Return the first tensor of an answer; of the VAE, the picture."""
    return model(**inputs_of(model))[0]


def linears(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear layers of these (in, out) shapes, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in shapes)).to(dtype)


def bits(module: nn.Module) -> dict[str, bytes]:
    """The exact bytes of every parameter; unlike equality, they tell -0.0 from 0.0."""
    found = module.named_parameters()
    return {name: p.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, p in found}
