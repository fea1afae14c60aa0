"""Ways in which a pipeline may be used while a schedule is applied, each on tiny random models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import contextmanager

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from on_gpu import macs_of_run
from peft import LoraConfig
from tiny_pipes import pipe_of
from torch import Tensor, nn

from pruning_book.stand_in import stand_in
from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.hooks import HOOK
from pruning_lib.steps.units import list_units

__all__ = ["STEPS", "WAYS", "counting", "hooks_left", "macs_of_run", "with_lora"]

STEPS = 5
PROMPTS = ["lion", "pizza", "red heart"]
Draw = Callable[[], Tensor]


def noise(n: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd(kind: str = "tiny"):
    """Return a pipeline of two levels and 10 units, or one with the structure of a published model."""
    return pipe_of("text") if kind == "tiny" else stand_in(kind, scale=0.03, sample_size=8)


def text(batch: int = 1, guidance: float = 3.0, kind: str = "tiny", change=lambda pipe: pipe):
    """Text to image, the common case."""
    pipe = change(sd(kind))

    def draw() -> Tensor:
        return pipe(
            PROMPTS[:batch],
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=noise(batch),
            output_type="latent",
        ).images

    return pipe, draw


def with_lora(pipe):
    """Add LoRA weights that change the picture."""
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    return pipe


def image_to_image(inpaint: bool):
    kind = StableDiffusionInpaintPipeline if inpaint else StableDiffusionImg2ImgPipeline
    pipe = quiet(kind(**sd().components, requires_safety_checker=False))
    make = torch.Generator().manual_seed(3)
    given = {"image": torch.rand(1, 3, 8, 8, generator=make), "strength": 0.61}
    if inpaint:
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., :4] = 1
        given |= {"mask_image": mask, "height": 8, "width": 8}

    def draw() -> Tensor:
        return pipe(
            "lion", num_inference_steps=STEPS, guidance_scale=3.0, generator=noise(), output_type="latent", **given
        ).images

    return pipe, draw


def controlled():
    base = sd()
    torch.manual_seed(2)
    control = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8,)).eval()
    with torch.no_grad():
        for weight in control.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    pipe = StableDiffusionControlNetPipeline(**base.components, controlnet=control, requires_safety_checker=False)
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))

    def draw() -> Tensor:
        return pipe(
            "lion",
            image=picture,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=noise(),
            height=8,
            width=8,
            output_type="latent",
        ).images

    return quiet(pipe), draw


def tiny_vae(**options) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, **options).eval()


def sdxl():
    """SDXL's shape: no attention at the top, several transformer blocks below, sizes and crops as conditions."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=8,
        norm_num_groups=4,
        attention_head_dim=(1, 2, 2),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    ).eval()
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = StableDiffusionXLPipeline(vae=tiny_vae(), unet=unet, scheduler=sd().scheduler, **parts)
    make = torch.Generator().manual_seed(0)
    words, pooled = torch.randn(2, 77, 8, generator=make), torch.randn(2, 8, generator=make)

    def draw() -> Tensor:
        return pipe(
            prompt_embeds=words,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=-words,
            negative_pooled_prompt_embeds=-pooled,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=noise(2),
            height=8,
            width=8,
            output_type="latent",
        ).images

    return quiet(pipe), draw


def classes():
    pipe = pipe_of("classes")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # draws no noise of its own

    def draw() -> Tensor:
        drawn = pipe([3, 207], num_inference_steps=STEPS, generator=noise(2), output_type="np").images
        return torch.from_numpy(drawn)

    return pipe, draw


def pixart():
    pipe = pipe_of("text, transformer")

    def draw() -> Tensor:
        return pipe(
            "lion",
            num_inference_steps=STEPS,
            generator=noise(),
            height=8,
            width=8,
            output_type="latent",
            use_resolution_binning=False,
            clean_caption=False,
        ).images

    return pipe, draw


def flow_text(width: int, pooled: int) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(0)
    return torch.randn(1, 5, width, generator=make), torch.randn(1, pooled, generator=make)


def without_encoders(kind, *names: str, **parts):
    encoders = dict.fromkeys([f"{what}{name}" for name in names for what in ("text_encoder", "tokenizer")])
    return quiet(kind(scheduler=FlowMatchEulerDiscreteScheduler(), **parts, **encoders))


def sd3():
    """An MMDiT with flow matching: two streams, the picture's and the text's."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()
    pipe = without_encoders(
        StableDiffusion3Pipeline, "", "_2", "_3", transformer=transformer, vae=tiny_vae(shift_factor=0.0)
    )
    words, pooled = flow_text(16, 8)

    def draw() -> Tensor:
        return pipe(
            prompt_embeds=words,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=-words,
            negative_pooled_prompt_embeds=-pooled,
            num_inference_steps=STEPS,
            generator=noise(),
            height=8,
            width=8,
            output_type="latent",
        ).images

    return pipe, draw


def flux():
    """An MMDiT whose later blocks have one stream; its pipeline names the two calls of a guided step."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    pipe = without_encoders(FluxPipeline, "", "_2", transformer=transformer, vae=tiny_vae(shift_factor=0.0))
    words, pooled = flow_text(16, 8)

    def draw() -> Tensor:
        return pipe(
            prompt_embeds=words,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=-words,
            negative_pooled_prompt_embeds=-pooled,
            true_cfg_scale=2.0,
            num_inference_steps=STEPS,
            generator=noise(),
            height=8,
            width=8,
            output_type="latent",
        ).images

    return pipe, draw


# name -> what makes the pipeline and its call
WAYS: dict[str, Callable[[], tuple[object, Draw]]] = {
    "text": text,
    "sd-1.5": functools.partial(text, kind="sd-1.5"),
    "batch of three": functools.partial(text, batch=3),
    "no guidance": functools.partial(text, guidance=1.0),
    "sd-2.1": functools.partial(text, kind="sd-2.1"),
    "LoRA": functools.partial(text, change=with_lora),
    "image to image": functools.partial(image_to_image, inpaint=False),
    "inpainting": functools.partial(image_to_image, inpaint=True),
    "ControlNet": controlled,
    "SDXL": sdxl,
    "DiT": classes,
    "PixArt": pixart,
    "SD3": sd3,
    "Flux": flux,
}


@contextmanager
def counting(pipe, grain: str = "layers"):
    """Count, for every unit, the calls in which one of its innermost modules really ran; yields name -> count."""
    _, denoiser = denoiser_of(pipe)
    found, handles = {}, []
    for unit in list_units(denoiser, grain):
        # in the last module: when a unit is skipped, nothing inside it may run
        inside = [m for m in denoiser.get_submodule(unit.modules[-1]).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        found[unit.name] = 0

        def count(*_, name=unit.name) -> None:
            found[name] += 1

        handles.append(inside[0].register_forward_pre_hook(count))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def hooks_left(denoiser: nn.Module) -> list[str]:
    """Return the paths of modules on which a hook of ours is still in place."""
    registries = {path: getattr(m, "_diffusers_hook", None) for path, m in denoiser.named_modules()}
    return [path for path, registry in registries.items() if registry and registry.get_hook(HOOK)]
