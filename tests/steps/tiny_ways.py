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
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLPipeline,
)
from peft import LoraConfig
from small_denoisers import build
from tiny_pipes import pipe_of
from torch import Tensor, nn

from pruning_book.stand_in import stand_in
from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.hooks import HOOK
from pruning_lib.steps.units import units_of

STEPS = 5
Draw = Callable[..., Tensor]


def drawing(pipe, *args, batch: int = 1, **options) -> tuple[object, Draw]:
    """Return the pipeline, and what draws latents with it, always from the same noise; options may be changed."""
    pipe.set_progress_bar_config(disable=True)

    def draw(**changed) -> Tensor:
        noise = [torch.Generator().manual_seed(i) for i in range(batch)]
        how = {"num_inference_steps": STEPS, "output_type": "latent", **options, **changed}
        return torch.as_tensor(pipe(*args, generator=noise, **how).images)

    return pipe, draw


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def text(batch: int = 1, guidance: float = 3.0, kind: str = "tiny", change=lambda pipe: pipe):
    """Text to image: two levels and 10 units, or the structure of a published model."""
    pipe = pipe_of("text") if kind == "tiny" else stand_in(kind, scale=0.03, sample_size=8)
    prompts = ["lion", "pizza", "red heart"][:batch]
    return drawing(change(pipe), prompts, batch=batch, guidance_scale=guidance)


def with_lora(pipe):
    """Add LoRA weights that change the picture."""
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    return pipe


def image_to_image():
    pipe = StableDiffusionImg2ImgPipeline(**pipe_of("text").components, requires_safety_checker=False)
    return drawing(pipe, "lion", guidance_scale=3.0, image=rand(1, 3, 8, 8, seed=3), strength=0.61)


def inpainting():
    pipe = StableDiffusionInpaintPipeline(**pipe_of("text").components, requires_safety_checker=False)
    given = {"image": rand(1, 3, 8, 8, seed=3), "mask_image": rand(1, 1, 8, 8).round(), "height": 8, "width": 8}
    return drawing(pipe, "lion", guidance_scale=3.0, strength=0.61, **given)


def controlled():
    base = pipe_of("text")
    torch.manual_seed(2)
    control = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8,)).eval()
    with torch.no_grad():
        for weight in control.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    pipe = StableDiffusionControlNetPipeline(**base.components, controlnet=control, requires_safety_checker=False)
    return drawing(pipe, "lion", guidance_scale=3.0, image=rand(1, 3, 8, 8, seed=4), height=8, width=8)


def prompted(pipe, words: tuple[int, int], pooled: int, batch: int = 1, **options):
    """Draw with embeddings of these sizes instead of a text, and with their opposites as what is to be avoided."""
    words, whole = (x - 0.5 for x in (rand(batch, *words), rand(batch, pooled)))
    given = {"prompt_embeds": words, "pooled_prompt_embeds": whole}
    given |= {f"negative_{name}": -value for name, value in given.items()}
    return drawing(pipe, batch=batch, height=8, width=8, **given, **options)


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.0).eval()


def without_encoders(kind, scheduler, *names: str, **parts):
    encoders = dict.fromkeys(f"{what}{name}" for name in names for what in ("text_encoder", "tokenizer"))
    return kind(vae=tiny_vae(), scheduler=scheduler, **parts, **encoders)


def sdxl():
    """SDXL's shape: no attention at the top, several transformer blocks below, sizes and crops as conditions."""
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    levels = {"down_block_types": down, "up_block_types": up, "transformer_layers_per_block": (1, 2)}
    unet = build("sdxl", layers_per_block=2, **levels)
    pipe = without_encoders(StableDiffusionXLPipeline, pipe_of("text").scheduler, "", "_2", unet=unet)
    return prompted(pipe, (77, 12), 10, batch=2, guidance_scale=3.0)


def classes():
    pipe = pipe_of("classes")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # draws no noise of its own
    return drawing(pipe, [3, 207], batch=2, output_type="np")


def pixart():
    size = {"height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}
    return drawing(pipe_of("text, transformer"), "lion", **size)


def sd3(**sampler):
    """An MMDiT with flow matching: two streams, the picture's and the text's."""
    transformer = build("sd3", num_layers=3, in_channels=4, out_channels=4)
    scheduler, names = FlowMatchEulerDiscreteScheduler(**sampler), ("", "_2", "_3")
    return prompted(without_encoders(StableDiffusion3Pipeline, scheduler, *names, transformer=transformer), (5, 10), 7)


def flux():
    """An MMDiT whose later blocks have one stream; its pipeline names the two calls of a guided step."""
    transformer = build("flux", num_layers=2, num_single_layers=2, patch_size=1, guidance_embeds=False)
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = without_encoders(FluxPipeline, scheduler, "", "_2", transformer=transformer)
    return prompted(pipe, (5, 10), 7, true_cfg_scale=2.0)


# name -> what makes the pipeline and its call
WAYS: dict[str, Callable[[], tuple[object, Draw]]] = {
    "text": text,
    "batch of three, no guidance": functools.partial(text, batch=3, guidance=1.0),
    "sd-2.1": functools.partial(text, kind="sd-2.1"),
    "LoRA": functools.partial(text, change=with_lora),
    "image to image": image_to_image,
    "inpainting": inpainting,
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
    for unit in units_of(denoiser, grain):
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


def expected(schedule, begins: int = 0, calls: int = 1) -> dict[str, int]:
    """Return how often each unit runs: all of them at the first call, then the live ones."""
    live = schedule.live()[begins:].clone()
    live[0] = True
    return {name: calls * n for name, n in zip(schedule.grid.names, live.sum(0).tolist(), strict=True)}


def hooks_left(denoiser: nn.Module) -> list[str]:
    """Return the paths of modules on which a hook of ours is still in place."""
    registries = {path: getattr(m, "_diffusers_hook", None) for path, m in denoiser.named_modules()}
    return [path for path, registry in registries.items() if registry and registry.get_hook(HOOK)]
