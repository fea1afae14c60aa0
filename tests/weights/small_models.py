"""Tiny models of every kind that may be pruned, with random weights."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

__all__ = ["MODELS", "bits", "clip_text", "dit", "inputs_of", "linears", "unet", "vae"]


def _seeded(make):
    def build(**options) -> nn.Module:
        torch.manual_seed(options.pop("seed", 0))
        return make(**options).eval()

    return build


@_seeded
def unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


@_seeded
def dit() -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )


@_seeded
def vae() -> nn.Module:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


@_seeded
def clip_text() -> nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    )


MODELS = {"unet": unet, "dit": dit, "vae": vae, "clip_text": clip_text}


def inputs_of(name: str) -> dict:
    """Arguments of one call of the model `name`."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "unet": lambda: dict(sample=noise(2, 4, 8, 8), timestep=torch.tensor(3), encoder_hidden_states=noise(2, 5, 8)),
        "dit": lambda: dict(
            hidden_states=noise(2, 4, 8, 8), timestep=torch.tensor([3, 3]), class_labels=torch.tensor([1, 2])
        ),
        "vae": lambda: dict(sample=noise(2, 3, 16, 16)),
        "clip_text": lambda: dict(input_ids=torch.tensor([[1, 2, 3, 49]])),
    }[name]()


def linears(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear layers of these (in, out) shapes, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in shapes)).to(dtype)


def bits(module: nn.Module) -> dict[str, bytes]:
    """The exact bytes of every parameter; unlike equality, they tell -0.0 from 0.0."""
    found = module.named_parameters()
    return {name: p.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, p in found}
