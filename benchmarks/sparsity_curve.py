"""Record of chapter 4: how good pictures stay as weights become zero.

For every mask the same captions are drawn from the same noise; ten minutes for 64 on two CPU cores. A greater
--pictures goes on from what is there.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

import pruning_book as pb
import pruning_lib as pl
from pruning_book.frechet import frechet
from pruning_book.sensitivity import measure_sensitivity
from pruning_book.widgets import sparsity as setting
from pruning_lib.quality import clip_score, psnr, retrieval_rank, ssim
from pruning_lib.weights.magnitude import Sensitivity, allocate, prune_magnitude
from pruning_lib.weights.masks import PrunedWeights
from pruning_lib.weights.nm import prune_nm
from pruning_lib.weights.select import IGNORE, prunable_weights

from .common import TOP, Record, interval, noise, once, once_drawn, rounded, unit

CHUNK = 32  # pictures kept together
PATTERNS = ((3, 4), (2, 4), (4, 8), (1, 4))
# The calls on which each layer's sensitivity is measured: these steps, for captions of their own.
SENSITIVITY_STEPS, SENSITIVITY_PROMPTS = (1, 5, 8), 2
SENSITIVITY_STOPS = (0.3, 0.5, 0.7, 0.9, 0.99)
IDLE = 1e-5  # relative squared error of the output
FEWER = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # stops of the rows that stand beside the main ones


@dataclass(frozen=True)
class Setting:
    """One row of the record: what is pruned, how, and how far."""

    part: str
    scope: str
    asked: float

    @property
    def name(self) -> str:
        return f"{self.part}-{self.scope.replace(':', 'of')}-{self.asked:g}"


UNPRUNED = Setting("unet", "global", 0.0)


def settings() -> list[Setting]:
    """Return every row, the most wanted first."""
    stops = [stop for stop in setting.STOPS if stop]
    groups = [
        *(("unet", scope, stops) for scope in ("global", "layer", "sensitivity")),
        *(("unet", f"{n}:{m}", [1 - n / m]) for n, m in PATTERNS),
        ("unet", "inert", [1.0]),
        ("vae", "global", stops),
        ("unet", "random", stops),
        ("unet", "global, inert left alone", FEWER),
        ("text_encoder", "global", FEWER),
        ("unet", "random, shares by sensitivity", (0.5, 0.7, 0.8)),
        ("unet", "global, idle layers left alone", FEWER),
    ]
    return [UNPRUNED, *(Setting(part, scope, stop) for part, scope, asked in groups for stop in asked)]


def pruned(pipe, row: Setting, sensitivity: Sensitivity):
    """Return the handle of a row's masks, which are in place from then on."""
    module = getattr(pipe, row.part)
    if row.asked == 0:
        return contextlib.nullcontext()
    if row.scope == "inert":
        # All of their weights at zero: the one mask without any magnitude in it.
        weights = {k: w for k, w in prunable_weights(module).weights.items() if k.startswith(setting.INERT)}
        masks = {k: torch.zeros_like(w, dtype=torch.bool) for k, w in weights.items()}
        return PrunedWeights(module, masks, "inert", 1.0)
    if row.scope.endswith("left alone"):
        spared = setting.INERT if row.scope == "global, inert left alone" else idle_layers(sensitivity)
        return prune_magnitude(module, row.asked, ignore=(*IGNORE, *spared))
    if row.scope == "random, shares by sensitivity":
        return prune_at_random(module, row.asked, sensitivity)
    if ":" in row.scope:
        return prune_nm(module, *map(int, row.scope.split(":")))
    extra = {"sensitivity": sensitivity} if row.scope == "sensitivity" else {}
    return prune_magnitude(module, row.asked, scope=row.scope, **extra)


def idle_layers(sensitivity: Sensitivity) -> list[str]:
    """Return the layers whose error at the last stop is below `IDLE`: the model hardly uses them."""
    return [name for name, errors in zip(sensitivity.layers, sensitivity.errors, strict=True) if errors[-1] < IDLE]


def prune_at_random(module: torch.nn.Module, sparsity: float, sensitivity: Sensitivity) -> PrunedWeights:
    """Give each layer as many zeros as its sensitivity says, but at random places: where, without which."""
    weights = prunable_weights(module).weights
    generator, masks = torch.Generator().manual_seed(0), {}
    for name, count in allocate(sensitivity, sparsity, weights).items():
        mask = torch.ones(weights[name].numel(), dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=generator)[:count]] = False
        masks[name] = mask.view(weights[name].shape).to(weights[name].device)
    return PrunedWeights(module, masks, "random, shares by sensitivity", sparsity)


def sensitivity_of(pipe) -> dict:
    """Measure the UNet's sensitivity on a few calls that the pipeline makes while it draws."""
    captions = pb.captions(setting.MODEL)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [captions[i] for i in order[:SENSITIVITY_PROMPTS]]
    calls: list[dict[str, Tensor]] = []

    def keep(_, args: tuple, kwargs: dict) -> None:
        tensors = {key: value for key, value in kwargs.items() if torch.is_tensor(value)}
        calls.append({"sample": args[0], "timestep": args[1], **tensors})

    hook = pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    options = {"num_inference_steps": setting.STEPS, "guidance_scale": setting.GUIDANCE, "output_type": "latent"}
    pipe(prompts, generator=noise(len(prompts), 100), **options)
    hook.remove()
    how = {"sparsities": SENSITIVITY_STOPS, "progress": partial(tqdm, desc="sensitivity", unit="layer")}
    return asdict(measure_sensitivity(pipe.unet, [calls[i] for i in SENSITIVITY_STEPS], **how))


def pictures_of(row: Setting, chunk: int, pipe, prompts: list[str], sensitivity: Sensitivity, work: Path) -> dict:
    """Return one chunk of one row, drawn once: uint8 "images", and "latents" if unpruned."""

    def draw() -> dict[str, Tensor]:
        if row.part == "vae":  # the UNet draws the same latents, so only decode them anew
            latents = pictures_of(UNPRUNED, chunk, pipe, prompts, sensitivity, work)["latents"]
            with pruned(pipe, row, sensitivity):
                images = setting.decode(pipe, latents)
        else:
            with pruned(pipe, row, sensitivity):
                images, latents = setting.draw(pipe, prompts, first=chunk * CHUNK)
        found = {"images": (255 * images).round().to(torch.uint8)}
        return found if row.asked else {**found, "latents": latents}

    return once_drawn(work / f"{row.name}-{chunk}.pt", draw)


def judge(images: Tensor, whole: Tensor, prompts: list[str], clip, captions: list[str]) -> dict:
    """Return the figures of one row: means with intervals, and SSIM and CLIP score of each picture."""
    drawn, reference = unit(images), unit(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too few for the rank: the record says so, and all rows have the same n
        distance = frechet(whole, images, features=clip, n_boot=100).to_dict()
    likeness, noise_db, scores = ssim(reference, drawn), psnr(reference, drawn), clip_score(clip, images, prompts)
    equal = noise_db.isinf()
    return {
        "ssim": interval(likeness),
        "psnr_db": None if equal.any() else interval(noise_db),
        "equal_pictures": int(equal.sum()),
        "clip_score": interval(scores),
        "top5": interval((retrieval_rank(clip, images, prompts, captions) <= TOP).double()),
        "frechet": {**distance, "rank_deficient": distance["n_a"] <= distance["dim"]},
        "per_picture": {"ssim": rounded(likeness, 4), "clip_score": rounded(scores, 2)},
    }


def measure(work: Path, pictures: int = 64, device: str = "cpu") -> Record:
    """Draw what is missing and judge everything; so many pictures a mask, a multiple of 32."""
    if pictures < CHUNK or pictures % CHUNK:
        raise SystemExit(f"--pictures {pictures}: give a multiple of {CHUNK}")
    pipe, captions = pl.load(setting.MODEL, device=device), pb.captions(setting.MODEL)
    prompts = setting.spread_captions(captions, pictures)
    sensitivity = Sensitivity.from_dict(once(work / "sensitivity.json", sensitivity_of, pipe))
    chunks = [prompts[i : i + CHUNK] for i in range(0, pictures, CHUNK)]
    images: dict[Setting, Tensor] = {}
    for row in tqdm(settings(), desc="masks", unit="mask"):
        parts = [pictures_of(row, i, pipe, part, sensitivity, work)["images"] for i, part in enumerate(chunks)]
        images[row] = torch.cat(parts)
    clip, rows = pb.load_clip(setting.MODEL), []
    for row in tqdm(settings(), desc="judging", unit="mask"):
        with pruned(pipe, row, sensitivity) as handle:
            n, zeros = (handle.n, handle.zeros) if handle else (prunable_weights(pipe.unet).n, 0)
        found = judge(images[row], images[UNPRUNED], prompts, clip, captions)
        rows.append({"part": row.part, "scope": row.scope, "asked": row.asked, "n": n, "zeros": zeros, **found})
    data = {
        **{"model": setting.MODEL, "sampler": "DDIM, trailing", "steps": setting.STEPS, "guidance": setting.GUIDANCE},
        **{"n": pictures, "prompts": prompts, "first_seed": setting.FIRST_SEED, "inert": list(setting.INERT)},
        **{"idle_below": IDLE, "idle_layers": idle_layers(sensitivity), "ignored": list(IGNORE), "rows": rows},
        "sensitivity": {**asdict(sensitivity), "steps": list(SENSITIVITY_STEPS), "prompts": SENSITIVITY_PROMPTS},
    }
    seeds = [setting.FIRST_SEED + i for i in range(pictures)]
    return Record(data, seeds=seeds, n=pictures, device=device)
