"""Ways to call a tiny pipeline and things to switch on in it, and what holds for a schedule beside each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable

import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from sweep import check_steps
from tiny_pipelines import Case
from torch import Tensor, nn

from pruning_lib.denoisers import denoiser_of


class Absent(Exception):
    """A pipeline does not offer something; the message says what."""


WAYS: dict[str, Callable[[Case], object]] = {}


def way(switch: Callable[[Case], object]) -> Callable[[Case], object]:
    """Register what changes a case in place, and raises whatever it likes where the pipeline does not offer that."""
    WAYS[switch.__name__] = switch
    return switch


def _needs(condition: object, what: str) -> None:
    if not condition:
        raise Absent(what)


def _takes(case: Case, *names: str) -> str:
    """Return the first of these that the pipeline's call takes."""
    takes = inspect.signature(type(case.pipe).__call__).parameters
    found = next((name for name in names if name in takes), "")
    _needs(found, f"takes none of {', '.join(names)}")
    return found


def _method(owner: object, name: str) -> Callable:
    found = getattr(owner, name, None)
    _needs(found, f"has no {name}")
    return found


def _doubled(key: str, value: object) -> object:
    """Give a second sample: of texts and embeddings another one, of pictures and lengths the same."""
    if isinstance(value, list):
        return [value[0], -value[0] if isinstance(value[0], Tensor) else value[0]]
    if not isinstance(value, Tensor) or "embeds" not in key + "mask" * key.endswith("mask"):
        return value
    return torch.cat([value, value if "mask" in key or not value.is_floating_point() else -value])


@way
def batch(case: Case) -> None:
    if case.prompt:
        name, (first,) = case.prompt
        case.prompt = name, [first, "dog" if isinstance(first, str) else first + 1]
    elif any(isinstance(value, Tensor) and "embeds" in key for key, value in case.options.items()):
        case.options.update({key: _doubled(key, value) for key, value in case.options.items() if "embeds" in key})
        case.options.update(
            {key: torch.cat([v, v]) for key, v in case.options.items() if "mask" in key and "image" not in key}
        )
    else:
        case.options[_takes(case, "batch_size")] = 2
    if isinstance(case.options.get("negative_prompt"), list):
        case.options["negative_prompt"] = case.options["negative_prompt"] * 2


@way
def other_guidance(case: Case) -> None:
    """Guidance off where the recipe has it on, and on where it is off."""
    scale = _takes(case, "true_cfg_scale", "guidance_scale", "max_guidance_scale")
    off = case.options.get(scale, 1.0) > 1.0
    case.options[scale] = 1.0 if off else 3.0
    if off and "min_guidance_scale" in case.options:
        case.options["min_guidance_scale"] = 1.0
    if scale == "true_cfg_scale" and not off:
        case.options["negative_prompt"] = ["dog"]


@way
def negative_prompt(case: Case) -> None:
    _needs(case.prompt and case.prompt[0] == "prompt", "takes no texts")
    case.options[_takes(case, "negative_prompt")] = ["dog"]


@way
def two_each(case: Case) -> None:
    case.options[_takes(case, "num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")] = 2


@way
def lora(case: Case) -> None:
    denoiser = denoiser_of(case.pipe)[1]
    found = [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and any("attn" in part or "attention" in part for part in name.split("."))
    ]
    _needs(found, "has no attention")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        _method(denoiser, "add_adapter")(LoraConfig(r=2, target_modules=found, init_lora_weights=False))


@way
def attention_slicing(case: Case) -> None:
    _method(denoiser_of(case.pipe)[1], "set_attention_slice")
    case.pipe.enable_attention_slicing(1)


@way
def vae_slicing(case: Case) -> None:
    _method(getattr(case.pipe, "vae", None), "enable_slicing")()
    two_each(case)


@way
def fused_qkv(case: Case) -> None:
    _method(denoiser_of(case.pipe)[1], "fuse_qkv_projections")()


@way
def freeu(case: Case) -> None:
    _method(denoiser_of(case.pipe)[1], "enable_freeu")(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


@way
def forward_chunking(case: Case) -> None:
    _method(denoiser_of(case.pipe)[1], "enable_forward_chunking")(chunk_size=1, dim=1)


@way
def channels_last(case: Case) -> None:
    denoiser = denoiser_of(case.pipe)[1]
    _needs(any(p.ndim == 4 for p in denoiser.parameters()), "has no weights with channels")
    denoiser.to(memory_format=torch.channels_last)


@way
def group_offload(case: Case) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(denoiser_of(case.pipe)[1], onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@way
def sequential_offload(case: Case) -> None:
    cpu_offload(denoiser_of(case.pipe)[1], torch.device("cpu"))


@way
def gradient_checkpointing(case: Case) -> None:
    denoiser = denoiser_of(case.pipe)[1]
    _needs(getattr(denoiser, "_supports_gradient_checkpointing", False), "has no gradient checkpointing")
    denoiser.enable_gradient_checkpointing()
    denoiser.train()  # where alone it works


@way
def callback(case: Case) -> None:
    def fade(pipe: object, step: int, timestep: object, given: dict) -> dict:
        return {"latents": given["latents"].mul_(0.9)}

    case.options[_takes(case, "callback_on_step_end")] = fade


# Several ways at once, for a quick look at all of them; alone each is tried by `make compat`.
BUNDLES = {
    "called": ("batch", "two_each", "callback"),
    "asked": ("other_guidance", "vae_slicing", "gradient_checkpointing"),
    "changed": ("lora", "attention_slicing", "channels_last", "forward_chunking"),
    "fused": ("fused_qkv", "freeu", "group_offload"),
    "offloaded": ("negative_prompt", "sequential_offload"),
}


# Tokens drawn from nearly the same numbers are the same tokens.
OFF_BESIDE = {"amused": {"differs"}}


def switched_on(build: Callable[[], Case], ways: Iterable[str]) -> tuple[Case, list[str]]:
    """Return a case with all of these ways in which the pipeline, alone, runs together, and which they are."""
    case, on = build(), []
    for name in ways:
        tried = build()
        try:
            for each in (*on, name):
                WAYS[each](tried)
            runs = bool(tried().isfinite().all())
        except Exception:  # of the pipeline alone: it does not offer this
            runs = False
        if runs:
            case, on = tried, [*on, name]
    return case, on


def check_ways(build: Callable[[], Case], ways: Iterable[str], grain: str, known: Collection[str] = ()) -> str:
    """Say "yes", "refused: ..." or "wrong: ..." of a schedule beside these ways; "absent" without any of them."""
    case, on = switched_on(build, ways)
    if not on:
        return "absent"
    try:
        found = check_steps(case, grain)
    except Exception as error:
        found = {"it": f"{type(error).__name__}: {str(error)[:200]}"}
    wrong = {key: said for key, said in found.items() if said != "yes" and key not in known}
    if "grid" in wrong:
        return wrong["grid"]
    return f"wrong with {', '.join(on)}: {wrong}" if wrong else "yes"
