"""Ways in which a pipeline may be used while a schedule is applied, each on tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import diffusers
import torch
from on_gpu import STEPS
from small_denoisers import build
from tiny import tiny
from torch import Tensor, nn

from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.units import HOOK, units_of


def drawing(pipe, *args, batch: int = 1, **options) -> tuple[object, Callable[..., Tensor]]:
    """Return the pipeline, and what draws latents with it, always from the same noise; options may be changed."""
    pipe.set_progress_bar_config(disable=True)

    def draw(**changed) -> Tensor:
        noise = [torch.Generator().manual_seed(i) for i in range(batch)]
        how = {"num_inference_steps": STEPS, "output_type": "latent", **options, **changed}
        return torch.as_tensor(pipe(*args, generator=noise, **how).images)

    return pipe, draw


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def text():
    """Text to image: two levels and 13 units."""
    return drawing(tiny(), "lion", guidance_scale=3.0)


def image_to_image():
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**tiny().components, requires_safety_checker=False)
    return drawing(pipe, "lion", guidance_scale=3.0, image=rand(1, 3, 8, 8, seed=3), strength=0.61)


def controlled():
    parts = tiny().components
    torch.manual_seed(2)
    control = diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8,)).eval()
    with torch.no_grad():
        for weight in control.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    parts |= {"controlnet": control, "requires_safety_checker": False}
    pipe = diffusers.StableDiffusionControlNetPipeline(**parts)
    return drawing(pipe, "lion", guidance_scale=3.0, image=rand(1, 3, 8, 8, seed=4), height=8, width=8)


def prompted(kind, encoders: tuple[str, ...], words: int, pooled: int, scheduler, **models):
    """Return a pipeline without encoders, and embeddings of these widths, with their opposites as what to avoid."""
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4, "shift_factor": 0.0}
    absent = dict.fromkeys(f"{what}{name}" for name in encoders for what in ("text_encoder", "tokenizer"))
    pipe = kind(vae=diffusers.AutoencoderKL(**sizes).eval(), scheduler=scheduler, **models, **absent)
    given = {"prompt_embeds": rand(1, 77, words) - 0.5, "pooled_prompt_embeds": rand(1, pooled) - 0.5}
    return pipe, {**given, **{f"negative_{name}": -value for name, value in given.items()}, "height": 8, "width": 8}


def sdxl():
    """SDXL's shape: no attention at the top, several transformer blocks below, sizes and crops as conditions."""
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    levels = {"down_block_types": down, "up_block_types": up, "transformer_layers_per_block": (1, 2)}
    unet, kind = build("sdxl", layers_per_block=2, **levels), diffusers.StableDiffusionXLPipeline
    pipe, given = prompted(kind, ("", "_2"), 12, 10, tiny().scheduler, unet=unet)
    return drawing(pipe, guidance_scale=3.0, **given)


def classes():
    pipe = tiny("classes")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)  # draws no noise of its own
    return drawing(pipe, [3, 207], batch=2, output_type="np")


def sd3():
    """An MMDiT with flow matching: two streams, the picture's and the text's."""
    model, kind = build("sd3", num_layers=3, in_channels=4, out_channels=4), diffusers.StableDiffusion3Pipeline
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe, given = prompted(kind, ("", "_2", "_3"), 10, 7, scheduler, transformer=model)
    return drawing(pipe, **given)


def flux():
    """An MMDiT whose later blocks have one stream; its pipeline names the two calls of a guided step."""
    model = build("flux", num_layers=2, num_single_layers=2, patch_size=1, guidance_embeds=False)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe, given = prompted(diffusers.FluxPipeline, ("", "_2"), 10, 7, scheduler, transformer=model)
    return drawing(pipe, true_cfg_scale=2.0, **given)


# name -> what makes the pipeline and its call
WAYS = {
    "text": text,
    "image to image": image_to_image,
    "ControlNet": controlled,
    "SDXL": sdxl,
    "DiT": classes,
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
