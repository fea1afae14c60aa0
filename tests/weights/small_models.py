"""Tiny models of every kind that may be pruned, with random weights, and the arguments of a call."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def dit() -> nn.Module:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ).eval()


def vae() -> nn.Module:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def clip_text() -> nn.Module:
    torch.manual_seed(0)
    config = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(**config, vocab_size=50)).eval()


MODELS = {"unet": unet, "dit": dit, "vae": vae, "clip_text": clip_text}


def inputs_of(name: str) -> dict:
    """Arguments of one call of the model `name`."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return {
        "unet": {"sample": noise, "timestep": torch.tensor(3), "encoder_hidden_states": noise[:, 0, :5]},
        "dit": {"hidden_states": noise, "timestep": torch.tensor([3, 3]), "class_labels": torch.tensor([1, 2])},
        "vae": {"sample": noise[:, :3].repeat(1, 1, 2, 2)},
        "clip_text": {"input_ids": torch.tensor([[1, 2, 3, 49]])},
    }[name]


@torch.no_grad()
def run(name: str, model: nn.Module) -> torch.Tensor:
    """Return the first tensor of an answer; of the VAE, the picture."""
    return model(**inputs_of(name))[0]


def linears(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear layers of these (in, out) shapes, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in shapes)).to(dtype)


def bits(module: nn.Module) -> dict[str, bytes]:
    """The exact bytes of every parameter; unlike equality, they tell -0.0 from 0.0."""
    found = module.named_parameters()
    return {name: p.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, p in found}
